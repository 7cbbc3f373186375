"""Colours that depend on the direction of view, against images computed here: float64, Legendre functions, loops."""

import math

import numpy as np
import pytest
import torch
from scipy.special import lpmv
from test_harmonics import small
from test_moments import assert_same, child_of
from test_splats import built, densify, pulled

from sdlab import lens, modes
from sdlab.cameras import CameraSettings, turntable
from sdlab.harmonics import COUNTS
from sdlab.live.messages import Goto, Resume
from sdlab.live.session import Session
from sdlab.raster import rasteriser_for
from sdlab.raster.harmonics import colours as seen_colours
from sdlab.scenes.splats import SplatScene

WIDTH = 24
BEHIND = torch.tensor([[0.2, 0.5, 0.9], [1.0, 1.0, 1.0]])
CAMS = turntable(2, CameraSettings(), WIDTH, elevation=20.0)


def scene(degree: int, n: int = 30) -> SplatScene:
    """Return Gaussians of all shapes within the ball, with clear harmonics."""
    found, _ = built(n_init=n, sh_degree=degree, radius=0.7)
    g = torch.Generator().manual_seed(degree)
    with torch.no_grad():
        p = found.params
        p["log_scales"].copy_(torch.rand(n, 3, generator=g) - 2.6)
        p["quats"].copy_(torch.randn(n, 4, generator=g))
        p["opacity_logits"].copy_(2 * torch.randn(n, generator=g))
        if degree:
            p["sh"].copy_(0.4 * torch.randn(p["sh"].shape, generator=g))
    return found


# ---- the reference ---------------------------------------------------------------------------------------------------


def harmonics(d: np.ndarray, degree: int) -> np.ndarray:
    """Return the real spherical harmonics [N, K] of unit directions: orders -l to l of each degree l from 1 on."""
    angle = np.arctan2(d[:, 1], d[:, 0])
    found = []
    for n in range(1, degree + 1):
        for m in range(-n, n + 1):
            k = abs(m)
            norm = math.sqrt((2 * n + 1) / (4 * math.pi) * math.factorial(n - k) / math.factorial(n + k))
            ring = math.sqrt(2) * (np.cos(k * angle) if m > 0 else np.sin(k * angle)) if m else 1.0
            found.append(norm * ring * lpmv(k, n, d[:, 2]))  # with the Condon-Shortley phase
    return np.stack(found, 1) if found else np.zeros((len(d), 0))


def colours(s: dict[str, np.ndarray], means: np.ndarray, view: int) -> np.ndarray:
    """Return what the camera sees of each Gaussian [N, 3] if it were at `means`."""
    world_to_camera = CAMS.viewmats[view].double().numpy()
    eye = np.linalg.inv(world_to_camera)[:3, 3]
    d = means - eye
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    rgbs = 1 / (1 + np.exp(-s["color_logits"]))
    if "sh" not in s:
        return rgbs
    degree = COUNTS.index(s["sh"].shape[1])
    return np.maximum(rgbs + np.einsum("nk,nkc->nc", harmonics(d, degree), s["sh"]), 0)


def image(s: dict[str, np.ndarray], rgbs: np.ndarray, view: int) -> np.ndarray:
    """Blend Gaussians of given colours front to back, pixel by pixel over all Gaussians: [3, H, W]."""
    world_to_camera, K = CAMS.viewmats[view].double().numpy(), CAMS.Ks[view].double().numpy()
    W, at = world_to_camera[:3, :3], s["means"] @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
    y, x = np.meshgrid(*2 * [np.arange(WIDTH) + 0.5], indexing="ij")
    seen, left, open_ = np.zeros((3, WIDTH, WIDTH)), np.ones((WIDTH, WIDTH)), np.ones((WIDTH, WIDTH), bool)
    for i in np.argsort(at[:, 2]):
        (tx, ty, tz), (fx, fy) = at[i], K[[0, 1], [0, 1]]
        w, a, b, c = s["quats"][i] / np.linalg.norm(s["quats"][i])
        R = np.array(
            [
                [1 - 2 * (b * b + c * c), 2 * (a * b - w * c), 2 * (a * c + w * b)],
                [2 * (a * b + w * c), 1 - 2 * (a * a + c * c), 2 * (b * c - w * a)],
                [2 * (a * c - w * b), 2 * (b * c + w * a), 1 - 2 * (a * a + b * b)],
            ]
        )
        J = np.array([[fx / tz, 0, -fx * tx / tz**2], [0, fy / tz, -fy * ty / tz**2]])
        M = J @ W @ R * np.exp(s["log_scales"][i])
        conic = np.linalg.inv(M @ M.T + 0.3 * np.eye(2))
        d = np.stack([x - fx * tx / tz - K[0, 2], y - fy * ty / tz - K[1, 2]])
        falloff = np.exp(-0.5 * np.einsum("ihw,ij,jhw->hw", d, conic, d))
        alpha = np.minimum(falloff / (1 + np.exp(-s["opacity_logits"][i])), 0.999)
        alpha = np.where((alpha >= 1 / 255) & open_, alpha, 0)
        open_ &= left * (1 - alpha) > 1e-4
        alpha = np.where(open_, alpha, 0)
        seen += left * alpha * rgbs[i][:, None, None]
        left = left * (1 - alpha)
    return seen + left * BEHIND[view].double().numpy()[:, None, None]


def doubles(s: SplatScene) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy() for name, value in s.params.items()}


# ---- images and gradients --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_images_are_the_references(degree: int):
    s = scene(degree)
    rendered, found = s.render(CAMS, BEHIND).rgb.detach().numpy(), doubles(s)
    for view in range(2):
        expected = image(found, colours(found, found["means"], view), view)
        assert abs(expected - BEHIND[view].numpy()[:, None, None]).mean() > 0.05, "there is something to see"
        assert abs(rendered[view] - expected).max() < 2e-5


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_gradients_are_those_of_differences(degree: int):
    """Of the coefficients, and of the positions by way of the direction of view alone."""
    s = scene(degree, 12)
    found = doubles(s)
    pull = torch.randn(2, 3, WIDTH, WIDTH, generator=torch.Generator().manual_seed(7))
    p = {name: value.detach() for name, value in s.params.items()}
    leaves = {name: p[name].clone().requires_grad_() for name in ("means", "sh")}
    rgbs = seen_colours(p["color_logits"].sigmoid(), leaves["sh"], leaves["means"], CAMS.viewmats)
    shape = p["means"], p["quats"], p["log_scales"].exp(), p["opacity_logits"].sigmoid()
    rgb = rasteriser_for("cpu")(*shape, rgbs, CAMS.viewmats, CAMS.Ks, WIDTH, WIDTH, BEHIND).rgb
    (rgb * pull).sum().backward()

    def value(means: np.ndarray, sh: np.ndarray) -> float:
        seen = [image(found, colours({**found, "sh": sh}, means, view), view) for view in range(2)]
        return float((np.stack(seen) * pull.double().numpy()).sum())

    given, h, rng = {name: found[name] for name in leaves}, 1e-4, np.random.default_rng(3)
    for name, leaf in leaves.items():
        mine = leaf.grad.double().numpy()
        for _ in range(3):
            along = rng.normal(size=mine.shape)
            up, down = (value(**{**given, name: given[name] + sign * h * along}) for sign in (1, -1))
            slack = 1e-3 * np.linalg.norm(mine)
            assert (mine * along).sum() == pytest.approx((up - down) / (2 * h), rel=1e-3, abs=slack)


# ---- density control and runs ----------------------------------------------------------------------------------------


def marked(n: int, **knobs: float | str):
    """Return a scene and its optimiser in which a Gaussian's coefficients are 1 to 24 times its first colour logit."""
    s, optim = built(n_init=n, sh_degree=2, scale_max=1.0, **knobs)
    with torch.no_grad():
        s.params["sh"].copy_(s.params["color_logits"][:, :1, None] * torch.arange(1.0, 25).reshape(8, 3))
    return s, optim


def still_marked(s: SplatScene) -> bool:
    p = s.params
    return torch.equal(p["sh"], p["color_logits"][:, :1, None] * torch.arange(1.0, 25).reshape(8, 3))


@pytest.mark.parametrize("rule", ["share", "mcmc"])
def test_cloned_split_moved_and_removed_gaussians_keep_their_harmonics(rule: str):
    s, optim = marked(50, density=rule, densify_share=0.1, split_scale=0.08, stir=0.0)
    with torch.no_grad():
        s.params["log_scales"].fill_(math.log(0.05))
        s.params["log_scales"][10:12] = math.log(0.1)
        s.params["opacity_logits"][:5] = -8.0
    pulled(s, [0.0] * 9 + [float(i) for i in range(41)][::-1])
    done = densify(s, optim)
    assert done == ({"cloned": 2, "split": 2, "pruned": 5} if rule == "share" else {"moved": 5, "added": 5})
    assert len(s.params["sh"]) == len(s.params["means"]) == (49 if rule == "share" else 55)
    assert still_marked(s)


@pytest.mark.slow
def test_a_branch_a_jump_and_a_comparison_leave_the_run_as_it_is():
    s = small(**{"scene.sh_degree": 3, "scene.densify_every": 4, "scene.densify_from": 0.0, "steps": 60})
    parent, other = Session(s), Session(s)
    parent.run(until=6)
    child = child_of(parent)
    for session in (parent, child):
        session.run(until=12)
    assert_same(parent, child)
    assert float(parent.state.scene.params["sh"].detach().abs().max()) > 1e-3
    other.run(until=12)
    found = list(lens.comparison_steps(other.state, other.effective, other.prior, other.bank, names=["sds", "csd"]))[-1]
    assert found.rms[0] > 0
    assert_same(parent, other)
    other.do(Goto(0))
    assert other.state.step == 0
    assert not other.state.scene.params["sh"].any()
    other.send(Resume())
    other.run(until=12)
    assert_same(parent, other)


# ---- what a render shows ---------------------------------------------------------------------------------------------


def shell(degree: int, n: int = 4000) -> SplatScene:
    """Return an opaque sphere of radius 0.6 around the origin, of small flat Gaussians."""
    s, _ = built(n_init=n, sh_degree=degree, scale_min=1e-3)
    heights, turns = 1 - 2 * (torch.arange(n) + 0.5) / n, torch.arange(n) * math.pi * (3 - math.sqrt(5))
    ring = (1 - heights**2).sqrt()
    outward = torch.stack([ring * turns.cos(), ring * turns.sin(), heights], 1)
    with torch.no_grad():
        p = s.params
        p["means"].copy_(0.6 * outward)
        p["log_scales"].copy_(torch.tensor([0.02, 0.02, 0.002]).log().expand(n, 3))
        half = torch.stack([1 + outward[:, 2], -outward[:, 1], outward[:, 0], 0 * ring], 1)  # from +z to outward
        p["quats"].copy_(half / half.norm(dim=1, keepdim=True))
        p["opacity_logits"].fill_(6.0)
        if degree:
            p["sh"].normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    return s


@pytest.mark.parametrize("degree", [0, 3])
def test_a_spheres_depth_normals_and_opacity_are_known(degree: int):
    size, away = 65, 3.0
    cams = turntable(1, CameraSettings(distance_min=away, distance_max=away), size, elevation=0.0)
    with torch.no_grad():
        render = shell(degree).render(cams, torch.ones(1, 3))
    centres = (torch.arange(size) + 0.5 - size / 2) / cams.Ks[0, 0, 0]
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    slope = x**2 + y**2 + 1  # a pixel's ray is z (x, y, 1)
    inside = away**2 - slope * (away**2 - 0.6**2)
    depth = (away - inside.clamp_min(0).sqrt()) / slope
    middle = inside > 0.5 * inside.max()  # slopes up to 45 degrees: a Gaussian, 0.02 wide, has the depth of its middle
    assert 300 < middle.sum() < size * size / 2
    found = modes.distances(render)
    assert (found - depth)[middle].abs().max() < 0.02
    assert (render.alpha[0, 0][middle] > 0.99).all()
    assert render.alpha[0, 0][inside < -0.5].max() == 0
    surface = torch.stack([x * depth, y * depth, depth], -1) - torch.tensor([0, 0, away])
    outward = (surface / 0.6) @ cams.viewmats[0, :3, :3]
    cosines = (modes.normals(render, cams) * outward)[middle].sum(-1)
    assert cosines.mean() > 0.97
    number = modes.covering(render.info, size, size)
    assert number[32, 32] >= 2, "front and back"
    assert number[0, 0] == 0


def test_harmonics_change_colours_alone():
    cams = turntable(1, CameraSettings(), 48)
    with torch.no_grad():
        directed, plain = (shell(degree, 1000).render(cams, torch.ones(1, 3)) for degree in (3, 0))
    behind = torch.ones(3)
    for mode in modes.MODES:
        pictures = [modes.show(mode, render, cams, behind).picture for render in (directed, plain)]
        assert np.array_equal(*pictures) == (mode != "color"), mode
