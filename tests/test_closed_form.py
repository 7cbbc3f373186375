"""The closed-form score against brute force: dense covariances, autograd and numerical integration."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sdlab.priors.closed_form import Background, Gallery, posterior_mean, unpacked

GROUND = Background(0.7, 0.3)


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
    torch.testing.assert_close(fast, exact, rtol=0, atol=1e-4)


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
    with pytest.raises(ValueError, match="all zero"):
        posterior_mean([gallery], torch.zeros(1, 1), torch.zeros(1, 3, 4, 4), torch.ones(1), torch.ones(1))
