"""The closed-form score against brute force: dense covariances, autograd and numerical integration."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdlab.priors import closed_form
from sdlab.priors.closed_form import CANDIDATES, Background, Gallery, block_size, posterior_mean, unpacked
from sdlab.priors.gallery import alphas_cumprod
from sdlab.priors.sources.toybox import ToyboxSource

GROUND = Background(0.7, 0.3)
TEXT = "a red bear, front view"


def random_gallery(n: int, size: int, seed: int = 0, factor: int = 1, background: Background = GROUND) -> Gallery:
    """Images whose colours and coverage vary over cells of 4 x 4; premultiplied: no colour exceeds its coverage."""
    g = torch.Generator().manual_seed(seed)
    cells = torch.rand(n, 4, max(size // 4, 2), max(size // 4, 2), generator=g)
    smooth = torch.nn.functional.interpolate(cells, (size, size), mode="bilinear", align_corners=False)
    cover, colour = smooth[:, 3:], smooth[:, :3] * smooth[:, 3:]
    return Gallery.of((torch.cat([colour, cover], 1) * 255).round().to(torch.uint8), background, factor)


def log_density(galleries: list[Gallery], weights: Tensor, z: Tensor, alpha: float, sigma: float, spread: float):
    """log p_t(z) of one z [3, S, S] by dense multivariate normals, float64."""
    logs = []
    for gallery, weight in zip(galleries, weights.tolist(), strict=True):
        if weight == 0:
            continue
        x, holes = unpacked(gallery.rgba, gallery.background, torch.float64)
        for xi, ti in zip(x, holes, strict=True):
            tau2 = gallery.background.std**2
            cov = (sigma**2 + alpha**2 * spread**2) * torch.eye(len(ti), dtype=torch.float64)
            cov = cov + 4 * alpha**2 * tau2 * torch.outer(ti, ti)
            normal = torch.distributions.MultivariateNormal(torch.zeros(len(ti), dtype=torch.float64), cov)
            logs.append(normal.log_prob(z.flatten(1) - alpha * xi).sum() + math.log(weight / len(gallery)))
    return torch.logsumexp(torch.stack(logs), 0)


def levels(size: int) -> list[tuple[float, float]]:
    return [(math.cos(a), math.sin(a)) for a in (0.05, 0.3, 0.8, 1.2, 1.5)]


@pytest.mark.parametrize("spread", [0.0, 0.1])
@pytest.mark.parametrize("weights", [[1.0, 0.0], [0.3, 0.7]])
def test_eps_is_the_gradient_of_the_log_density(spread, weights):
    galleries = [random_gallery(5, 4, seed=1), random_gallery(7, 4, seed=2)]
    share = torch.tensor([weights])
    g = torch.Generator().manual_seed(3)
    for alpha, sigma in levels(4):
        z = torch.randn(1, 3, 4, 4, generator=g, dtype=torch.float64, requires_grad=True)
        (score,) = torch.autograd.grad(log_density(galleries, share[0], z[0], alpha, sigma, spread), z)
        x0 = posterior_mean(
            galleries, share, z.detach(), torch.tensor([alpha]).double(), torch.tensor([sigma]).double(), spread
        )
        eps = (z.detach() - alpha * x0) / sigma
        assert torch.linalg.norm(eps + sigma * score) <= 1e-6 * torch.linalg.norm(eps)


def test_the_background_is_integrated_out():
    """One image and one channel's worth of background, against Gauss-Hermite quadrature over its colour."""
    gallery = random_gallery(1, 4, seed=5)
    x, holes = unpacked(gallery.rgba, GROUND, torch.float64)
    nodes, quadrature = np.polynomial.hermite_e.hermegauss(120)
    alpha, sigma = 0.8, 0.6
    z = alpha * x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    shift = torch.from_numpy(nodes) * GROUND.std  # b - m
    mean = torch.zeros_like(x[0])
    for c in range(3):
        clean = x[0, c] + 2 * shift[:, None] * holes[0]  # [nodes, P]
        log = -(z[0, c] - alpha * clean).square().sum(1) / (2 * sigma**2) + torch.from_numpy(quadrature).log()
        mean[c] = torch.softmax(log, 0) @ clean
    at = torch.tensor([alpha]).double(), torch.tensor([sigma]).double()
    x0 = posterior_mean([gallery], torch.ones(1, 1), z.view(1, 3, 4, 4), *at)
    torch.testing.assert_close(x0.flatten(2)[0], mean, rtol=0, atol=1e-6)


# ---- approximation -------------------------------------------------------------------------------------------------


def test_candidates_find_the_same_score_as_all_images():
    """Within 2e-2 of the exact eps (root mean square per image) at any noise, within 1e-3 up to sigma 0.75."""
    gallery = random_gallery(600, 16, seed=7, factor=4)
    null = random_gallery(900, 16, seed=8, factor=4)
    share = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    x, _ = unpacked(gallery.rgba[:3], GROUND, torch.float32)
    noise = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(9))
    for alpha, sigma in levels(16):
        at = torch.full((3,), alpha), torch.full((3,), sigma)
        z = alpha * x.view(3, 3, 16, 16) + sigma * noise
        fast = posterior_mean([gallery, null], share, z, *at, candidates=64)
        exact = posterior_mean([gallery, null], share, z, *at)
        error = (alpha / sigma * (fast - exact)).square().mean((1, 2, 3)).sqrt()
        assert error.max() <= (1e-3 if sigma < 0.75 else 2e-2), (sigma, error)
        assert fast.dtype == exact.dtype == torch.float32


def test_all_candidates_are_the_exact_sum_in_float32():
    gallery = random_gallery(40, 8, seed=10, factor=2)
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(11))
    at = torch.full((2,), 0.6), torch.full((2,), 0.8)
    fast = posterior_mean([gallery], torch.ones(2, 1), z, *at, candidates=40)
    exact = posterior_mean([gallery], torch.ones(2, 1), z, *at)
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-5)


def images_that_fit_no_gallery(size: int) -> dict[str, Tensor]:
    """Images [3, size, size] in -1 .. 1 as they come from unfinished scenes, and one of the gallery itself."""
    own, other = (ToyboxSource().draw(ToyboxSource().key(TEXT), 64, size, seed).float() / 255 for seed in (0, 1))

    def on(ground: Tensor, rgba: Tensor) -> Tensor:
        return 2 * (rgba[:3] + (1 - rgba[3:]) * ground.view(3, -1, 1)) - 1

    grey, purple = torch.full((3,), 0.8), torch.tensor([0.5, 0.1, 0.6])
    centred = torch.linspace(-1, 1, size)
    radius = (centred[:, None].square() + centred.square()).sqrt().expand(3, -1, -1)
    average = torch.stack([on(grey, x) for x in own]).mean(0)
    return {
        "of the gallery": on(grey, own[0]),
        "of the same text": on(purple, other[0]),
        "two at once": (on(grey, other[1]) + on(purple, other[2])) / 2,
        "average": torch.nn.functional.avg_pool2d(average, 5, 1, 2),
        "grey ball": torch.where(radius < 0.5, 0.4 - radius, torch.ones(()).expand_as(radius)),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("size", "count", "text"), [(64, 1024, TEXT), (64, 4096, ""), (32, 4096, "")])
def test_eps_is_as_close_to_the_sum_over_all_images_as_stated(size, count, text):
    """Root mean square error, from t = 20 to 980; all images in float32 are compared with float64 below."""
    source = ToyboxSource()
    gallery = Gallery.of(source.draw(source.key(text), count, size, seed=0), Background())
    assert gallery.factor > 1
    squared = alphas_cumprod((32 / size) ** 2)
    noise = torch.randn(3, size, size, generator=torch.Generator().manual_seed(1))
    rows = images_that_fit_no_gallery(size)
    for t in (20, 100, 300, 500, 600, 700, 800, 900, 980):
        alpha, sigma = float(squared[t].sqrt()), float((1 - squared[t]).sqrt())
        at = torch.full((len(rows),), alpha), torch.full((len(rows),), sigma)
        z = alpha * torch.stack(list(rows.values())) + sigma * noise
        ones = torch.ones(len(rows), 1)
        fast = posterior_mean([gallery], ones, z, *at, candidates=CANDIDATES)
        whole = posterior_mean([gallery], ones, z, *at, candidates=count)
        error = (alpha / sigma * (fast - whole)).square().mean((1, 2, 3)).sqrt()
        assert error.max() <= (1e-3 if t <= 700 else 5e-3), (t, dict(zip(rows, error.tolist(), strict=True)))


@pytest.mark.slow
def test_single_precision_is_enough_for_the_sum_over_all_images():
    source = ToyboxSource()
    gallery = Gallery.of(source.draw("", 1024, 32, seed=0), Background())
    squared = alphas_cumprod()
    rows = torch.stack(list(images_that_fit_no_gallery(32).values())).double()
    noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (1, 100, 300, 500, 700, 900, 980):
        alpha, sigma = squared[t].sqrt().expand(len(rows)), (1 - squared[t]).sqrt().expand(len(rows))
        z = alpha[0] * rows + sigma[0] * noise
        whole, exact = (
            posterior_mean([gallery], torch.ones(len(rows), 1), z, alpha, sigma, 0.0, n) for n in (1024, None)
        )
        error = (alpha[0] / sigma[0] * (whole - exact)).square().mean((1, 2, 3)).sqrt()
        assert error.max() <= 1e-4, (t, error)


def toys(size: int, device: str = "cpu") -> tuple[list[Gallery], Tensor, tuple[Tensor, Tensor]]:
    """Two galleries with fewer candidates than images, 5 rows of z_t and their levels from low to high noise."""
    galleries = [random_gallery(300, size, seed=12, factor=2), random_gallery(500, size, seed=13, factor=2)]
    alpha, sigma = (torch.tensor(x) for x in zip(*levels(size), strict=True))
    x = torch.cat([galleries[i % 2].rgba[i : i + 1, :3] for i in range(5)]).float() / 127.5 - 1
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(14))
    z = alpha.view(-1, 1, 1, 1) * x + sigma.view(-1, 1, 1, 1) * noise
    return [g.to(torch.device(device)) for g in galleries], z.to(device), (alpha.to(device), sigma.to(device))


MIXED = torch.tensor([[1.0, 0.0], [0.3, 0.7], [0.0, 1.0], [0.5, 0.5], [1.0, 2.0]])


@pytest.mark.parametrize("candidates", [None, 32])
def test_a_row_has_the_same_bits_whatever_its_neighbours(candidates):
    galleries, z, at = toys(16)
    together = posterior_mean(galleries, MIXED, z, *at, 0.05, candidates)
    for i in range(len(z)):
        alone = posterior_mean(
            galleries, MIXED[i : i + 1], z[i : i + 1], at[0][i : i + 1], at[1][i : i + 1], 0.05, candidates
        )
        assert torch.equal(alone, together[i : i + 1])
    order = [3, 1, 4, 0]
    shuffled = posterior_mean(galleries, MIXED[order], z[order], at[0][order], at[1][order], 0.05, candidates)
    assert torch.equal(shuffled, together[order])


def test_kernels_and_torch_agree(monkeypatch):
    galleries, z, at = toys(16)
    compiled = posterior_mean(galleries, MIXED, z, *at, 0.05, 32)
    monkeypatch.setattr(closed_form, "_compiled", lambda x: False)
    plain = posterior_mean(galleries, MIXED, z, *at, 0.05, 32)
    assert not torch.equal(compiled, plain), "the kernels were not used"
    torch.testing.assert_close(compiled, plain, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_cuda_agrees_with_the_cpu():
    galleries, z, at = toys(16)
    there, z_there, at_there = toys(16, "cuda")
    expected = posterior_mean(galleries, MIXED, z, *at, 0.05, 32)
    found = posterior_mean(there, MIXED.cuda(), z_there, *at_there, 0.05, 32)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "size", "factor"),
    [
        (1024, 32, 1),
        (1024, 64, 2),
        (1024, 96, 3),
        (4096, 32, 2),
        (4096, 64, 4),
        (4096, 96, 6),
        (50_000, 64, 4),
        (9, 67, 1),
    ],
)
def test_block_means_fit_their_budget(count, size, factor):
    assert block_size(count, size) == factor


def test_memory_is_as_stated():
    rgba = torch.zeros(5, 4, 32, 32, dtype=torch.uint8)
    assert Gallery.of(rgba, GROUND, 1).nbytes == 5 * 4 * 32**2
    assert Gallery.of(rgba, GROUND, 2).nbytes == 5 * 4 * 32**2 * 1.25


def test_weights_scale_freely_and_rows_are_independent():
    galleries = [random_gallery(6, 4, seed=1), random_gallery(6, 4, seed=2)]
    z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    at = torch.tensor([0.9, 0.2]).double(), torch.tensor([0.43, 0.98]).double()
    together = posterior_mean(galleries, torch.tensor([[1.0, 3.0], [2.0, 0.0]]), z, *at)
    first = posterior_mean(galleries, torch.tensor([[0.25, 0.75]]), z[:1], at[0][:1], at[1][:1])
    torch.testing.assert_close(together[:1], first)


def test_bad_galleries_are_refused():
    with pytest.raises(ValueError, match=r"expected uint8 \[N, 4, S, S\]"):
        Gallery.of(torch.zeros(3, 4, 8, 8), GROUND, 2)
    with pytest.raises(ValueError, match="cannot be reduced by a factor of 3"):
        Gallery.of(torch.zeros(3, 4, 8, 8, dtype=torch.uint8), GROUND, 3)
    gallery = random_gallery(2, 4)
    with pytest.raises(ValueError, match="without images"):
        Gallery.of(torch.zeros(0, 4, 8, 8, dtype=torch.uint8), GROUND)
    with pytest.raises(ValueError, match=r"z_t \(1, 3, 8, 8\): images of this gallery are \(3, 4, 4\)"):
        posterior_mean([gallery], torch.ones(1, 1), torch.zeros(1, 3, 8, 8), torch.ones(1), torch.ones(1))
    with pytest.raises(ValueError, match="all zero"):
        posterior_mean([gallery], torch.zeros(1, 1), torch.zeros(1, 3, 4, 4), torch.ones(1), torch.ones(1))
