"""The rasterisers against the float64 oracle, the oracle against finite differences, and the CPU back-end's threads."""

from __future__ import annotations

import dataclasses
import inspect
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from sdlab.cameras import look_at
from sdlab.raster import (
    BACKENDS,
    cpu,
    cpu_kernels,
    model,
    rasteriser_for,
    reference,
    tiled,
    torch_project,
    world_covariances,
)
from sdlab.raster import gsplat as gsplat_backend
from sdlab.raster.torch_project import rotation_matrices
from sdlab.types import Cameras, Render

NAMES = ("means", "quats", "scales", "opacities", "colors", "background")


class Case(NamedTuple):
    """A scene, its cameras and a background, all float32."""

    scene: list[Tensor]  # means, quats, scales, opacities, colors
    cams: Cameras
    background: Tensor | None

    def inputs(self, dtype: torch.dtype) -> list[Tensor]:
        """Return new leaves in another precision with the same values, so that input rounding adds no error."""
        leaves = self.scene if self.background is None else [*self.scene, self.background]
        return [t.detach().to(dtype).clone().requires_grad_() for t in leaves]

    def render(self, rasterize: Callable[..., Render], inputs: list[Tensor]) -> Render:
        dtype, cams = inputs[0].dtype, self.cams
        background = inputs[5] if len(inputs) == 6 else None
        return rasterize(*inputs[:5], cams.viewmats.to(dtype), cams.Ks.to(dtype), cams.width, cams.height, background)

    def pulls(self) -> list[Tensor]:
        """Return the upstream gradients of rgb, alpha and depth at every pixel, which define the test's loss."""
        rng = torch.Generator().manual_seed(9)
        shape = len(self.cams), 1, self.cams.height, self.cams.width
        return [torch.randn(shape[0], c, *shape[2:], generator=rng, dtype=torch.float64) for c in (3, 1, 1)]

    def loss(self, render: Render) -> Tensor:
        return sum(((out * pull).sum() for out, pull in zip(render[:3], self.pulls(), strict=True)), torch.zeros(()))


def cameras(width: int, height: int, views: int = 1, distance: float = 2.8) -> Cameras:
    azimuth = torch.tensor([20.0 + 70.0 * v for v in range(views)])
    elevation = torch.tensor([15.0 - 20.0 * v for v in range(views)])
    return look_at(azimuth, elevation, torch.full((views,), distance), 49.1, width, height)


def cloud(count: int, seed: int = 0, spread: float = 0.8) -> list[Tensor]:
    """Return Gaussians of all shapes and opacities within a ball."""
    rng = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng), dim=-1)
    means = spread * directions * torch.rand(count, 1, generator=rng) ** (1 / 3)
    quats = torch.randn(count, 4, generator=rng)
    scales = 0.12 * (0.2 + torch.rand(count, 3, generator=rng))
    opacities = 0.05 + 0.9 * torch.rand(count, generator=rng)
    return [means, quats, scales, opacities, torch.rand(count, 3, generator=rng)]


def ball() -> Case:
    """The start of a run: isotropic, nearly transparent."""
    scene = cloud(300)
    scene[2] = torch.full((300, 3), 0.19)
    scene[3] = torch.full((300,), 0.1)
    return Case(scene, cameras(48, 40), torch.tensor([[0.2, 0.5, 0.9]]))


def shell() -> Case:
    """The end of a run: flat discs on a surface; three cameras; an odd size."""
    scene = cloud(500)
    scene[0] = 0.7 * torch.nn.functional.normalize(scene[0], dim=-1)
    scene[2] = scene[2] * torch.tensor([1.0, 1.0, 0.2])
    return Case(scene, cameras(50, 37, views=3), torch.rand(3, 3, generator=torch.Generator().manual_seed(2)))


def thin() -> Case:
    """Needles in all directions: axis ratios of 1000 to 1, tens of pixels long."""
    scene = cloud(80)
    scene[2] = torch.tensor([0.5, 5e-4, 5e-4]).repeat(80, 1)
    return Case(scene, cameras(64, 64), None)


def huge() -> Case:
    """Gaussians that cover the screen many times over, among ordinary ones."""
    scene = cloud(60)
    scene[2][::3] = torch.tensor([4.0, 7.0, 5.0])
    scene[3][::3] = 0.3
    return Case(scene, cameras(40, 40), torch.zeros(1, 3))


def behind() -> Case:
    """The camera is inside the cloud: some Gaussians are behind it, some beside it, some very close."""
    scene = cloud(200, spread=2.0)
    return Case(scene, cameras(33, 17, views=2, distance=0.9), torch.rand(2, 3))


def opaque() -> Case:
    """Opacities of 0.98 to 1: beyond alpha_max at the centres, and pixels that stop after a few Gaussians."""
    scene = cloud(200)
    scene[3] = 0.98 + 0.02 * torch.rand(200, generator=torch.Generator().manual_seed(4))
    return Case(scene, cameras(48, 48, distance=1.9), torch.tensor([[1.0, 0.0, 0.5]]))


def off_centre() -> Case:
    """A principal point far from the centre, and pixels that are not square."""
    cams = cameras(41, 59, views=2)
    Ks = cams.Ks.clone()
    Ks[:, 0, 2] -= 13.3
    Ks[:, 1, 2] += 9.7
    Ks[:, 0, 0] *= 1.4
    return Case(cloud(200), dataclasses.replace(cams, Ks=Ks), None)


CASES = [ball, shell, thin, huge, behind, opaque, off_centre]


def distance_between(actual: Tensor, expected: Tensor) -> float:
    """Return the relative L2 distance."""
    return float((actual.double() - expected.double()).detach().norm() / expected.detach().double().norm())


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    cpu.set_threads(None)


# ---------------------------------------------------------------- against the oracle


@pytest.mark.slow
@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize(
    "rasterize",
    [cpu.rasterize, tiled.rasterize, partial(tiled.rasterize, tile_side=16)],
    ids=["cpu", "tiled", "tiled-16"],
)
def test_pictures_and_every_gradient_equal_the_oracles(rasterize: Callable[..., Render], build: Callable[[], Case]):
    case = build()
    mine, exact = case.inputs(torch.float32), case.inputs(torch.float64)
    render, truth = case.render(rasterize, mine), case.render(reference.rasterize, exact)
    for out, expected in zip(render[:3], truth[:3], strict=True):
        assert out.shape == expected.shape
        assert distance_between(out, expected) < 1e-5
    assert render.info is not None
    assert truth.info is not None
    assert torch.equal(render.info.radii, truth.info.radii)
    drawn = truth.info.radii > 0
    assert 0.2 < drawn.float().mean() <= 1
    assert distance_between(render.info.means2d[drawn], truth.info.means2d[drawn]) < 1e-6

    case.loss(render).backward()
    case.loss(truth).backward()
    for name, leaf, expected in zip(NAMES, mine, exact, strict=False):
        assert leaf.grad is not None
        assert expected.grad is not None
        if name == "quats" and build is ball:  # rotating a sphere changes nothing: the true gradient is 0
            assert leaf.grad.abs().max() < 1e-5 * mine[2].grad.abs().max()
        else:
            assert distance_between(leaf.grad, expected.grad) <= 1e-4, name
    assert render.info.means2d_grad is not None
    assert truth.info.means2d_grad is not None
    assert distance_between(render.info.means2d_grad, truth.info.means2d_grad) <= 1e-4


def test_cases_are_what_they_claim():
    """Each case above reaches the branch it is meant to test."""
    far = behind()
    depths = torch.einsum("bj,nj->bn", far.cams.viewmats[:, 2, :3], far.scene[0]) + far.cams.viewmats[:, 2, 3, None]
    assert (depths < 0.01).any(dim=1).all()
    assert (depths > 0.01).any(dim=1).all()

    def stopped(case: Case) -> Tensor:
        return case.render(reference.rasterize, case.inputs(torch.float64)).alpha > 0.99

    assert stopped(opaque()).float().mean() > 0.3
    assert (opaque().scene[3] > cpu_kernels.ALPHA_MAX).any()
    big, flat = huge(), thin()
    radii = big.render(reference.rasterize, big.inputs(torch.float64)).info.radii
    assert radii.max() > 5 * 40
    assert flat.render(reference.rasterize, flat.inputs(torch.float64)).info.radii.max() > 20


def broad() -> Case:
    """Four Gaussians so wide that every alpha is between the thresholds at every pixel, none about to swap in depth.

    Rendering is discontinuous at alpha = 1/255 and at the stop, so difference quotients are meaningful only away from
    them.
    """
    rng = torch.Generator().manual_seed(1)
    means = torch.tensor([[-0.4, 0.1, 0.2], [-0.1, 0.5, -0.1], [0.2, -0.4, 0.1], [0.5, -0.1, -0.2]])
    scene = [
        means,
        torch.randn(4, 4, generator=rng),
        1.1 + 0.4 * torch.rand(4, 3, generator=rng),
        0.3 + 0.3 * torch.rand(4, generator=rng),
        torch.rand(4, 3, generator=rng),
    ]
    return Case(scene, cameras(7, 6, views=2, distance=4.0), torch.rand(2, 3, generator=rng))


@pytest.mark.slow
def test_oracle_agrees_with_finite_differences():
    case = broad()

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(case.render(reference.rasterize, list(inputs))[:3])

    assert torch.autograd.gradcheck(outputs, case.inputs(torch.float64), eps=1e-6, atol=1e-6, rtol=1e-5)


def test_cpu_agrees_with_finite_differences_of_its_own_pictures():
    """Without an oracle. In float32 the quotient along a direction is accurate to a few parts in a thousand."""
    case, step = broad(), 4e-3
    inputs = case.inputs(torch.float32)
    case.loss(case.render(cpu.rasterize, inputs)).backward()
    for name, leaf in zip(NAMES, inputs, strict=True):
        direction = leaf.grad / leaf.grad.norm()
        ends = []
        for sign in (1, -1):
            moved = [t + sign * step * direction if t is leaf else t for t in inputs]
            ends.append(float(case.loss(case.render(cpu.rasterize, moved)).detach()))
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(float(leaf.grad.norm()), rel=5e-3), name


def test_a_single_gaussian_is_where_and_what_the_formula_says():
    """At the pixel under its mean, alpha = o; one standard deviation (with the low-pass filter) away, o exp(-1/2)."""
    focal, depth, sigma = 100.0, 4.0, 0.2
    K = torch.tensor([[[focal, 0, 16.5], [0, focal, 12.5], [0, 0, 1]]])
    quats = torch.tensor([[1.0, 0, 0, 0]])
    pixels = math.sqrt((focal * sigma / depth) ** 2 + 0.3)
    K[0, 0, 0] *= 4 / pixels  # now one standard deviation in x is about 4 pixels
    spread = math.sqrt((float(K[0, 0, 0]) * sigma / depth) ** 2 + 0.3)
    for name in ("cpu", "tiled", "reference"):
        render = BACKENDS[name](
            torch.tensor([[0.0, 0, depth]]), quats, torch.full((1, 3), sigma), torch.tensor([0.8]),
            torch.tensor([[1.0, 0.5, 0.25]]), torch.eye(4)[None], K, 33, 25, torch.tensor([[0.0, 0, 1]]),
        )  # fmt: skip
        assert float(render.alpha[0, 0, 12, 16]) == pytest.approx(0.8, rel=1e-5)
        assert float(render.alpha[0, 0, 12, 20]) == pytest.approx(0.8 * math.exp(-8 / spread**2), rel=1e-4)
        assert render.rgb[0, :, 12, 16].tolist() == pytest.approx([0.8, 0.4, 0.4], rel=1e-5)
        assert float(render.depth[0, 0, 12, 16]) == pytest.approx(0.8 * depth, rel=1e-5)
        assert render.info.means2d.tolist() == [[[16.5, 12.5]]]


def test_nearer_gaussians_hide_farther_ones_whatever_their_order():
    means = torch.tensor([[0.0, 0, 5], [0, 0, 3], [0, 0, 4]])
    colors = torch.eye(3)
    scene = [means, torch.eye(4)[:1].repeat(3, 1), torch.full((3, 3), 0.5), torch.full((3,), 0.9), colors]
    K = torch.tensor([[[8.0, 0, 4.5], [0, 8, 4.5], [0, 0, 1]]])
    for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
        pixel = cpu.rasterize(*(t[order] for t in scene), torch.eye(4)[None], K, 9, 9).rgb[0, :, 4, 4]
        assert pixel.tolist() == pytest.approx([0.009, 0.9, 0.09], rel=1e-4)


# ---------------------------------------------------------------- nothing to draw


def _empty() -> list[Tensor]:
    return [t[:0] for t in cloud(1)]


def _all_behind() -> list[Tensor]:
    scene = cloud(50)
    scene[0] = scene[0] + cameras(8, 8, distance=30.0).viewmats[0, :3, :3].T @ torch.tensor([0.0, 0, -20])
    return scene


def _transparent() -> list[Tensor]:
    scene = cloud(50)
    scene[3] = torch.full((50,), 0.003)
    return scene


@pytest.mark.parametrize("name", ["cpu", "tiled", "reference"])
@pytest.mark.parametrize("scene", [_empty, _all_behind, _transparent])
def test_nothing_to_draw_gives_the_background(name: str, scene: Callable[[], list[Tensor]]):
    case = Case(scene(), cameras(20, 13, views=2), torch.rand(2, 3))
    inputs = case.inputs(torch.float32)
    render = case.render(BACKENDS[name], inputs)
    assert torch.equal(render.rgb, case.background[:, :, None, None].expand(2, 3, 13, 20))
    assert not render.alpha.any()
    assert not render.depth.any()
    assert not render.info.radii.any()
    render.rgb.sum().backward()
    for leaf in inputs[:5]:
        assert leaf.grad is not None
        assert not leaf.grad.any()
    assert torch.equal(inputs[5].grad, torch.full((2, 3), 13.0 * 20))


def test_no_background_is_black():
    case = ball()
    black = case._replace(background=torch.zeros(1, 3))
    without = case._replace(background=None)
    assert torch.equal(
        black.render(cpu.rasterize, black.inputs(torch.float32)).rgb,
        without.render(cpu.rasterize, without.inputs(torch.float32)).rgb,
    )


# ---------------------------------------------------------------- extremes


def test_absurd_sizes_neither_crash_nor_poison_the_rest():
    """Runaway scales and positions, as caused by a far too high learning rate."""
    case = ball()
    scene = [t.clone() for t in case.scene]
    scene[2][:40] = torch.logspace(0, 37, 40)[:, None]
    scene[0][40:60] = torch.logspace(1, 37, 20)[:, None] * torch.tensor([1.0, -1, 1])
    scene[1][60:70] = 0.0
    inputs = case._replace(scene=scene).inputs(torch.float32)
    render = case.render(cpu.rasterize, inputs)
    case.loss(render).backward()
    assert all(bool(out.isfinite().all()) for out in render[:3])
    assert bool(inputs[4].grad.isfinite().all())


def test_exponential_is_as_exact_as_it_says():
    exp_8 = cpu_kernels._exp_8
    x = np.linspace(-0.75, 0.0, 20001, dtype=np.float32)
    relative = np.array([exp_8(v) for v in x]) / np.exp(8 * x.astype(np.float64)) - 1
    assert np.abs(relative).max() < 2e-6
    assert exp_8(np.float32(-50.0)) < 1 / 255


def test_depth_order_is_a_stable_sort():
    rng = np.random.default_rng(0)
    depths = rng.choice(np.concatenate([rng.uniform(0.01, 1e4, 300), [0.01, 1e-2, 1e30]]), 2000).astype(np.float32)
    assert np.array_equal(cpu_kernels.order_by_depth(depths), np.argsort(depths, kind="stable"))


# ---------------------------------------------------------------- threads


def _gradients(case: Case) -> list[Tensor]:
    inputs = case.inputs(torch.float32)
    render = case.render(cpu.rasterize, inputs)
    case.loss(render).backward()
    return [*render[:3], render.info.radii, render.info.means2d_grad, *(t.grad for t in inputs)]


@pytest.mark.parametrize("views", [1, 2, 3])
def test_any_number_of_threads_gives_the_same_bits(views: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "PAIRS_PER_PART", 500)  # so that views are split into parts even in a small scene
    case = Case(cloud(400), cameras(70, 45, views=views), torch.rand(views, 3))
    cpu.set_threads(1)
    alone = _gradients(case)
    for threads in (2, 3, 16):
        cpu.set_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(alone, _gradients(case), strict=True))


def test_callers_on_four_threads_do_not_disturb_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "PAIRS_PER_PART", 500)
    cpu.set_threads(2)
    cases = [Case(cloud(300, seed), cameras(40, 30 + seed, views=2), torch.rand(2, 3)) for seed in range(4)]
    serial = [_gradients(case) for case in cases]
    parallel: dict[int, list[list[Tensor]]] = {i: [] for i in range(4)}

    def session(i: int) -> None:
        for _ in range(8):
            parallel[i].append(_gradients(cases[i]))

    threads = [threading.Thread(target=session, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        assert len(parallel[i]) == 8
        for result in parallel[i]:
            assert all(torch.equal(a, b) for a, b in zip(serial[i], result, strict=True))


def test_an_error_in_a_helper_thread_reaches_the_caller():
    cpu.set_threads(4)

    def fail() -> None:
        raise ArithmeticError("in a job")

    with pytest.raises(ArithmeticError, match="in a job"):
        cpu.run_jobs([lambda: None, fail, lambda: None])


def test_fewer_than_one_thread_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        cpu.set_threads(0)


# ---------------------------------------------------------------- autograd and input checks


def test_accumulates_over_calls_and_leaves_constants_alone():
    case = ball()
    inputs = case.inputs(torch.float32)
    inputs[1].requires_grad_(False)
    inputs[3].requires_grad_(False)
    for _ in range(2):
        case.loss(case.render(cpu.rasterize, inputs)).backward()
    once = case.inputs(torch.float32)
    case.loss(case.render(cpu.rasterize, once)).backward()
    assert inputs[1].grad is None
    assert inputs[3].grad is None
    assert torch.equal(inputs[0].grad, 2 * once[0].grad)


def test_alpha_or_depth_alone_can_be_differentiated():
    case = ball()
    for output in ("alpha", "depth"):
        mine, exact = case.inputs(torch.float32), case.inputs(torch.float64)
        getattr(case.render(cpu.rasterize, mine), output).square().sum().backward()
        getattr(case.render(reference.rasterize, exact), output).square().sum().backward()
        assert distance_between(mine[0].grad, exact[0].grad) < 1e-4


def test_without_gradients_nothing_is_recorded():
    case = ball()
    with torch.no_grad():
        render = case.render(cpu.rasterize, case.inputs(torch.float32))
    assert not render.rgb.requires_grad
    assert render.info.means2d_grad is None


def test_a_parameter_changed_before_the_backward_pass_is_noticed():
    case = ball()
    inputs = case.inputs(torch.float32)
    loss = case.loss(case.render(cpu.rasterize, inputs))
    with torch.no_grad():
        inputs[0].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_other_precisions_and_layouts_are_accepted():
    case = ball()
    plain = case.render(cpu.rasterize, case.inputs(torch.float32))
    odd = case.inputs(torch.float64)
    odd[0] = odd[0].T.contiguous().T  # not contiguous
    odd[5] = odd[5][:1].expand(1, 3)
    render = case.render(cpu.rasterize, odd)
    assert torch.equal(render.rgb, plain.rgb)


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused_by_name(index: int, bad: float):
    case = ball()
    inputs = case.inputs(torch.float32)
    with torch.no_grad():
        inputs[index].view(-1)[-1] = bad
    with pytest.raises(ValueError, match=rf"^{NAMES[index]} contains NaN or infinity"):
        case.render(cpu.rasterize, inputs)


def test_cameras_that_are_not_finite_are_refused_by_name():
    case = ball()
    broken = case._replace(cams=dataclasses.replace(case.cams, viewmats=case.cams.viewmats * math.nan))
    with pytest.raises(ValueError, match=r"^viewmats contains NaN"):
        broken.render(cpu.rasterize, broken.inputs(torch.float32))


def test_wrong_shapes_and_sizes_are_refused_by_name():
    unchecked = inspect.unwrap(cpu.rasterize)  # without the run-time type checker of the tests
    case = ball()
    scene = [t.clone() for t in case.scene]
    scene[3] = scene[3][:-1]
    with pytest.raises(ValueError, match=r"opacities has shape \(299,\); it must be \(300,\)"):
        unchecked(*scene, case.cams.viewmats, case.cams.Ks, 8, 8)
    with pytest.raises(ValueError, match="0 x 8 pixels"):
        unchecked(*case.scene, case.cams.viewmats, case.cams.Ks, 0, 8)
    with pytest.raises(ValueError, match="means is on meta"):
        unchecked(case.scene[0].to("meta"), *case.scene[1:], case.cams.viewmats, case.cams.Ks, 8, 8)


# ---------------------------------------------------------------- the family


def test_covariances_in_the_world_are_those_of_the_formula():
    _, quats, scales, *_ = cloud(50)
    R = rotation_matrices(quats.double())
    wanted = R @ torch.diag_embed(scales.double().square()) @ R.transpose(1, 2)
    for found in (world_covariances(quats, scales), torch_project.world_covariances(quats, scales)):
        assert torch.allclose(found.double(), wanted, rtol=1e-5, atol=1e-8)
    assert torch.equal(world_covariances(quats, scales), cpu.world_covariances(quats, scales)), "here numba is faster"


def test_rasteriser_for_and_backends():
    assert rasteriser_for("cpu") is cpu.rasterize
    assert set(BACKENDS) == {"cpu", "gsplat", "tiled", "reference"}
    assert BACKENDS["tiled"] is tiled.rasterize
    if not torch.cuda.is_available():
        assert rasteriser_for("cuda") is tiled.rasterize
    with pytest.raises(KeyError, match="no rasteriser 'optix'; there are cpu, gsplat"):
        BACKENDS["optix"]


@pytest.mark.slow
def test_choosing_a_back_end_does_not_load_the_others():
    code = "import sys, sdlab.raster as r; r.rasteriser_for('cpu'); print({'gsplat', 'numba'} & sys.modules.keys())"
    assert _python(code) == "{'numba'}"
    assert _python("import sys, sdlab.raster; print('numba' in sys.modules)") == "False"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the message is for machines without CUDA")
def test_gsplat_without_cuda_says_what_to_do():
    case = ball()
    with pytest.raises(RuntimeError, match=r"no CUDA device.*'cpu' rasteriser"):
        case.render(BACKENDS["gsplat"], case.inputs(torch.float32))


def test_projection_equals_gsplats_own():
    """gsplat's CUDA kernels need a GPU, but its projection also exists in plain torch."""
    theirs = pytest.importorskip("gsplat.cuda._torch_impl")
    for build in (shell, huge, behind, off_centre):
        case = build()
        means, quats, scales = (t.detach() for t in case.inputs(torch.float64)[:3])
        viewmats, Ks = case.cams.viewmats.double(), case.cams.Ks.double()
        size = case.cams.width, case.cams.height
        covariances, _ = theirs._quat_scale_to_covar_preci(quats, scales, compute_preci=False)
        _, means2d, depths, conics, _ = theirs._fully_fused_projection(means, covariances, viewmats, Ks, *size)
        my_means2d, M, my_depths = torch_project.project(means, quats, scales, viewmats, Ks, *size)
        inverse = torch.linalg.inv(torch_project.covariance(M))
        front = depths > model.NEAR
        assert torch.allclose(my_depths, depths, atol=1e-12)
        assert torch.allclose(my_means2d[front], means2d[front], rtol=1e-10)
        for k, (i, j) in enumerate(((0, 0), (0, 1), (1, 1))):
            assert torch.allclose(inverse[front][:, i, j], conics[front][:, k], rtol=1e-7, atol=1e-9)


@pytest.mark.slow
def test_gsplat_adapter_converts_layouts_both_ways(monkeypatch: pytest.MonkeyPatch):
    """Uses a stand-in with gsplat's signature, layouts and means2d in the graph, so that it runs anywhere."""
    gsplat = pytest.importorskip("gsplat")
    signature = inspect.signature(gsplat.rasterization)

    def stand_in(*args: object, **options: object) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        call = signature.bind(*args, **options).arguments
        assert call["packed"] is False
        assert call["render_mode"] == "RGB+D"
        order = ("means", "quats", "scales", "opacities", "colors", "viewmats", "Ks", "width", "height", "backgrounds")
        render = reference.rasterize(*(call[name] for name in order))
        pictures = torch.cat([render.rgb, render.depth], 1).permute(0, 2, 3, 1)
        radii = torch.stack([render.info.radii, render.info.radii // 2], -1)
        return pictures, render.alpha.permute(0, 2, 3, 1), {"means2d": render.info.means2d, "radii": radii}

    monkeypatch.setattr(gsplat, "rasterization", stand_in)
    case = shell()
    mine, expected = case.inputs(torch.float32), case.inputs(torch.float32)
    cams = case.cams
    render = gsplat_backend._render(*mine[:5], cams.viewmats, cams.Ks, cams.width, cams.height, mine[5])
    truth = case.render(reference.rasterize, expected)
    for out, same in zip(render[:3], truth[:3], strict=True):
        assert torch.equal(out, same)
    assert torch.equal(render.info.radii, truth.info.radii)
    case.loss(render).backward()
    case.loss(truth).backward()
    assert torch.allclose(render.info.means2d_grad, truth.info.means2d_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_kernels_work_where_no_cache_can_be_written():
    """A read-only installation used without a home folder: numba then refuses to cache."""
    code = (
        "import numpy as np; from sdlab.raster import cpu_kernels as k;"
        "print(k.order_by_depth(np.array([2, 1], np.float32)).tolist(), k.order_by_depth.stats.cache_path)"
    )
    # Restrict numba to the one cache location that the environment would have to name.
    places = {"NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator", "NUMBA_CACHE_DIR": ""}
    assert _python(code, **places) == "[1, 0] None"


def _python(code: str, **environment: str) -> str:
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
