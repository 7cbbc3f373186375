"""gsplat on CUDA against the CPU rasteriser and the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from test_raster import CASES, NAMES, ball, distance_between

from sdlab.raster import BACKENDS, cpu, rasteriser_for, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def on_cuda(case, inputs, name="gsplat"):
    moved = [t.detach().cuda().requires_grad_() for t in inputs]
    background = moved[5] if len(moved) == 6 else None
    cams = case.cams
    render = BACKENDS[name](*moved[:5], cams.viewmats.cuda(), cams.Ks.cuda(), cams.width, cams.height, background)
    return moved, render


@pytest.mark.parametrize("build", CASES)
@pytest.mark.parametrize("oracle", ["reference", "cpu"])
def test_gsplat_agrees(oracle, build):
    assert_agreement(oracle, build)


def assert_agreement(oracle, build):
    """Compare images, depth, gradients and what density control reads."""
    case = build()
    exact = case.inputs(torch.float64 if oracle == "reference" else torch.float32)
    truth = case.render(reference.rasterize if oracle == "reference" else cpu.rasterize, exact)
    mine, render = on_cuda(case, case.inputs(torch.float32))
    for out, expected in zip(render[:3], truth[:3], strict=True):
        assert out.shape == expected.shape
        assert distance_between(out.cpu(), expected) < 1e-3

    case.loss(truth).backward()
    sum((out.double() * pull.cuda()).sum() for out, pull in zip(render[:3], case.pulls(), strict=True)).backward()
    for name, leaf, expected in zip(NAMES, mine, exact, strict=False):
        if name == "quats" and build is ball:  # rotating a sphere changes nothing: the true gradient is 0
            assert leaf.grad.abs().max() < 1e-3 * mine[2].grad.abs().max()
        else:
            assert distance_between(leaf.grad.cpu(), expected.grad) < 1e-3, name
    drawn, also = truth.info.radii > 0, render.info.radii.cpu() > 0
    assert (also | ~drawn).all()
    # gsplat rounds radii up before it leaves out what is off the screen: a few more count as drawn, on no pixel
    assert render.info.means2d_grad.cpu()[also & ~drawn].abs().sum() == 0
    assert distance_between(render.info.means2d.cpu()[drawn], truth.info.means2d[drawn]) < 1e-4
    assert distance_between(render.info.means2d_grad.cpu(), truth.info.means2d_grad) < 1e-3


def test_rasteriser_on_cuda():
    assert rasteriser_for("cuda") is BACKENDS["gsplat"]


def test_a_scene_on_the_cpu_is_refused():
    case = ball()
    with pytest.raises(ValueError, match="means is on cpu"):
        case.render(BACKENDS["gsplat"], case.inputs(torch.float32))
