"""Noise that lasts: white and standard normal in every view, equal where views see the same, and a sampler with SDS."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from test_kindred_losses import bound

from sdlab import noise
from sdlab.cameras import CameraSettings, look_at, sample_cameras
from sdlab.inversion import ddim
from sdlab.live.session import Session
from sdlab.losses.sds import SDS
from sdlab.priors.mixture import MixturePrior
from sdlab.rng import StepRng
from sdlab.settings import preset
from sdlab.types import Noised, Render

SIZE, RADIUS = 32, 0.7
LIKE = torch.zeros(1, 3, SIZE, SIZE)


def camera(azimuth, elevation=0.0, size=SIZE):
    return look_at(torch.tensor([azimuth]), torch.tensor([elevation]), torch.tensor([3.0]), 40.0, size, size)


def ball(cams, size=SIZE):
    """Return what cameras see of an opaque ball around the origin, computed along the rays."""
    at = torch.arange(size) + 0.5
    x, y = ((at - cams.Ks[0, 0, 2]) / cams.Ks[0, 0, 0]).expand(size, size), None
    y = ((at - cams.Ks[0, 1, 2]) / cams.Ks[0, 1, 1]).expand(size, size).T
    squared = x**2 + y**2 + 1
    far = cams.distance[0]
    root = far**2 - squared * (far**2 - RADIUS**2)
    depth = torch.where(root > 0, (far - root.clamp_min(0).sqrt()) / squared, torch.zeros(()))
    alpha = (root > 0).float()
    return Render(alpha.expand(1, 3, size, size), alpha[None, None], depth[None, None])


def of(kind, azimuth, elevation=0.0, seed=0, step=0, share=1.0, like=LIKE):
    cams = camera(azimuth, elevation, like.shape[-1])
    return noise.draw(kind, share, StepRng(seed, step), like, cams, ball(cams, like.shape[-1]))


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_fresh_noise_is_the_stream_of_the_step():
    assert torch.equal(of("fresh", 0.0, step=3), StepRng(0, 3).randn("noise", LIKE))


@pytest.mark.parametrize("kind", ["world", "object"])
def test_the_same_camera_twice_sees_the_same_and_another_seed_does_not(kind):
    one = of(kind, 20.0, 10.0)
    assert torch.equal(one, of(kind, 20.0, 10.0, step=7))
    assert abs(correlation(one, of(kind, 20.0, 10.0, seed=1))) < 0.1
    assert abs(correlation(one, of(kind, 200.0, 10.0))) < 0.1, "from the other side"


@pytest.mark.parametrize(("kind", "share"), [("world", 1.0), ("object", 1.0), ("object", 0.6)])
def test_a_view_is_white_and_standard_normal(kind, share):
    """Over 600 seeds: mean, variance and fourth moment of every entry, and the correlation of every pair."""
    like, n = torch.zeros(1, 1, 8, 8), 600
    seen = torch.stack(
        [of(kind, 30.0, 20.0, seed=seed, share=share, like=like).flatten() for seed in range(n)]
    ).double()
    assert seen.mean(0).abs().max() < 5 / n**0.5
    covariance = seen.T @ seen / n - torch.eye(64)
    assert covariance.abs().max() < 5 * (2 / n) ** 0.5
    assert covariance.square().mean() * n == pytest.approx(1 + 1 / 64, rel=0.1), "no more than chance"
    assert seen.pow(4).mean() == pytest.approx(3.0, abs=0.2)


def test_the_noise_of_an_object_is_an_orthonormal_mixture_of_independent_cells(monkeypatch):
    """With one channel for each entry of the table, the noise is the matrix from entries to pixels itself."""
    size = 8
    entries = noise.ENTRIES * size**2
    monkeypatch.setattr(noise, "_drawn", lambda seed, stream, shape: torch.eye(entries))
    cams = camera(30.0, 20.0, size)
    ((behind, points, opaque),) = noise._each(torch.full((1, entries, size, size), torch.nan), cams, ball(cams, size))
    matrix = noise.on_surface(0, behind, points, opaque).flatten(1).T
    matrix = matrix[matrix.isfinite().all(1)].double()
    assert len(matrix) > 15, "pixels on the ball"
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)).double(), rtol=0, atol=1e-6)
    assert (matrix > 0).sum(1).float().mean() > 3, "a pixel collects several cells"


def test_entries_that_several_pixels_touch_go_to_one_of_them():
    entry, pixel = noise.owners(torch.tensor([5, 5, 2, 5, 9, 2]), torch.tensor([3, 1, 0, 3, 2, 0]), 4)
    assert entry.tolist() == [2, 5, 9]
    assert pixel.tolist() == [0, 1, 2]


def test_the_window_moves_with_the_camera():
    step = 180.0 / SIZE  # degrees in azimuth and in elevation that move it by one pixel
    here = of("world", 0.0)
    torch.testing.assert_close(of("world", 5 * step)[..., :-5], here[..., 5:])
    torch.testing.assert_close(of("world", 0.0, 5 * step)[..., 5:, :], here[..., :-5, :])
    assert torch.equal(of("world", 360.0), here)
    assert torch.equal(of("world", -180.0), of("world", 180.0))


def test_cameras_see_the_same_noise_at_the_same_place_of_the_surface():
    """Turned by a fraction of a pixel most of it stays; turned by many, it is found where the surface has gone."""
    like = torch.zeros(1, 8, 64, 64)
    here = of("object", 0.0, like=like)
    near = [correlation(here, of("object", turn, like=like)) for turn in (0.0, 0.5, 1.0, 20.0)]
    middle = (slice(None), slice(None), slice(24, 40))
    assert near == sorted(near, reverse=True)
    assert near[1] > 0.5
    assert abs(near[3]) < 0.1
    turn = 10.0
    there = of("object", turn, like=like)[middle]
    shift = round(RADIUS * math.sin(math.radians(turn)) * float(camera(0.0, size=64).Ks[0, 0, 0]) / (3.0 - RADIUS))
    columns = slice(26, 38)
    moved = slice(columns.start - shift, columns.stop - shift)
    found = {
        k: correlation(here[middle][..., columns], there[..., moved.start + k : moved.stop + k]) for k in (-9, 0, 9)
    }
    assert found[0] > 0.3
    assert max(abs(found[-9]), abs(found[9])) < 0.1


def test_what_no_camera_sees_keeps_one_noise():
    a, b = (noise.draw("object", 1.0, StepRng(0, step), LIKE) for step in (0, 5))
    assert torch.equal(a, b)
    assert not torch.equal(a, noise.draw("fresh", 1.0, StepRng(0, 0), LIKE))


def test_sds_with_lasting_noise_and_a_falling_t_is_ddim():
    """z_t = alpha z + sigma noise follows the prior's flow if every step of SDS has the length that sigma / alpha
    falls by."""
    prior = MixturePrior(height=4, width=4, precision="fp64").load(torch.device("cpu"))
    model, levels = bound(prior), [900, 700, 500, 300, 100]
    fixed = noise.draw("world", 1.0, StepRng(0, 0), torch.zeros(4, *prior.shape, dtype=torch.float64))
    z, sampled = torch.zeros_like(fixed), None
    for here, there in itertools.pairwise(levels):
        t, below = torch.full((4,), here), torch.full((4,), there)
        (alpha, sigma), (alpha_next, sigma_next) = prior.marginal(t), prior.marginal(below)
        z_t = alpha * z + sigma * fixed
        sampled = z_t if sampled is None else sampled
        x = Noised(z, fixed, t, alpha, sigma, z_t)
        z = z - (sigma / alpha - sigma_next / alpha_next) * SDS(cfg=3.0).gradient(x, model, None).residual
        eps_c, eps_u = model.eps(sampled, t, "pos", "uncond")
        sampled = ddim(model, sampled, t, below, eps_u + 3.0 * (eps_c - eps_u))
        torch.testing.assert_close(alpha_next * z + sigma_next * fixed, sampled, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["mixture", "playground"])
@pytest.mark.parametrize("kind", ["world", "object"])
def test_every_scene_takes_every_noise_and_resumes(name, kind, tmp_path):
    small = {"mixture": [("scene.n_init", 60), ("scene.max_gaussians", 90)], "playground": [("scene.n", 5)]}[name]
    s = preset(name).patch_all([*small, ("steps", 100), ("schedule.noise", kind), ("schedule.noise_share", 0.9)])
    whole, rest = Session(s), Session(s)
    for session in (whole, rest):
        session.prepare()
    whole.run(until=2)
    whole.save(tmp_path)
    rest.restore(tmp_path)
    for session in (whole, rest):
        session.run(until=4)
    for own, other in zip(whole.state.scene.params.values(), rest.state.scene.params.values(), strict=True):
        assert torch.equal(own, other)
    assert whole.state.skipped == 0


def test_depth_becomes_places_of_the_world():
    cams = sample_cameras(CameraSettings(views=3), StepRng(0, 0), SIZE)
    places = torch.tensor([[0.1, -0.2, 0.3], [0.0, 0.4, -0.1]])
    for i in range(3):
        seen = cams.viewmats[i, :3, :3] @ places.T + cams.viewmats[i, :3, 3, None]
        pixel = cams.Ks[i] @ (seen / seen[2])
        for place, (u, v), depth in zip(places, pixel[:2].T.tolist(), seen[2], strict=True):
            found = noise.in_world(depth.expand(1, SIZE, SIZE), cams[i : i + 1])[0].view(SIZE, SIZE, 3)
            near = found[int(v), int(u)]
            assert (near - place).norm() < 0.08, "within the pixel"
