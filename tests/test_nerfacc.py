"""nerfacc in place of the torch code for volumes: its formulas, the adapter over emulated kernels, and the fallback."""

import importlib
import os
import sys
import warnings
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils import cpp_extension

from sdlab.cameras import CameraSettings, turntable
from sdlab.console import Remark
from sdlab.priors.mixture import MixturePrior
from sdlab.rng import StepRng
from sdlab.scenes.field import Field
from sdlab.volume import marching, rays
from sdlab.volume.marching import TORCH, Marching, must_agree
from sdlab.volume.rays import Rays, Samples

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_decided():
    marching._on_cuda.cache_clear()
    yield
    marching._on_cuda.cache_clear()


# ---- before it is trusted --------------------------------------------------------------------------------------------


def half_a_step_later(*args) -> Samples:
    found = rays.sample(*args)
    return found._replace(distances=found.distances + 1 / marching.N_STEPS)


def from_far_to_near(*args) -> Samples:
    return Samples(*(column.flip(0) for column in rays.sample(*args)))


def blind_to_cells(through: Rays, bound: float, count: int, offsets: Tensor, occupied: Tensor) -> Samples:
    return rays.sample(through, bound, count, offsets, torch.ones_like(occupied))


def without_shadows(optical: Tensor, ray: Tensor, count: int):
    w, _ = rays.weights(optical, ray, count)
    return -torch.expm1(-optical), w


def without_gradient(optical: Tensor, ray: Tensor, count: int):
    w, transmittance = rays.weights(optical, ray, count)
    return w, transmittance.detach()


def test_the_torch_code_agrees_with_itself():
    must_agree(TORCH, CPU)


@pytest.mark.parametrize(
    "wrong",
    [
        *(TORCH._replace(sample=f) for f in (half_a_step_later, from_far_to_near, blind_to_cells)),
        *(TORCH._replace(weights=f) for f in (without_shadows, without_gradient)),
    ],
)
def test_what_disagrees_is_not_trusted(wrong):
    with pytest.raises(RuntimeError, match="the torch code"):
        must_agree(wrong, CPU)


@pytest.fixture
def installed(monkeypatch):
    """Called with functions of the adapter, it pretends that nerfacc is installed on a CUDA device."""

    def install(**functions) -> None:
        own = SimpleNamespace(**{"load": lambda: None, "sample": rays.sample, "weights": rays.weights, **functions})
        monkeypatch.setitem(sys.modules, "sdlab.volume.nerfacc", own)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
        monkeypatch.setattr(marching, "must_agree", lambda found, device: must_agree(found, CPU))

    return install


def test_what_agrees_is_used_on_cuda_only(installed):
    calls = []
    installed(sample=lambda *args: calls.append(1) or rays.sample(*args))
    assert marching.marching_on(CPU) is TORCH
    assert not calls
    assert marching.marching_on(torch.device("cuda")).sample is not TORCH.sample
    assert len(calls) == 1, "it is compared once"
    marching.marching_on(torch.device("cuda", 0))
    assert len(calls) == 1


def broken_compiler():
    raise RuntimeError("error: nvcc is too old\nand a long command line")


@pytest.mark.parametrize(
    ("what", "why"), [({"load": broken_compiler}, "nvcc is too old"), ({"weights": without_shadows}, "weights")]
)
def test_a_failure_falls_back_with_one_remark(what, why, installed):
    installed(**what)
    with pytest.warns(Remark, match=why) as said:
        assert marching.marching_on(torch.device("cuda")) is TORCH
    assert len(said) == 1
    assert "\n" not in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert marching.marching_on(torch.device("cuda")) is TORCH


def test_without_nerfacc_nothing_is_said(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert marching.marching_on(torch.device("cuda")) is TORCH


def test_it_is_compiled_with_the_compiler_of_gsplat(monkeypatch, tmp_path):
    from sdlab.volume import nerfacc as adapter

    monkeypatch.setenv("SDLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.9")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(adapter.gsplat_kernels, "toolkit", lambda: tmp_path / "cuda")
    stale = tmp_path / "cache" / "nerfacc" / adapter.gsplat_kernels.folder().name / "nerfacc_cuda" / "lock"
    stale.parent.mkdir(parents=True)
    stale.touch()
    before, seen = dict(os.environ), []

    def imported(name: str) -> SimpleNamespace:
        seen.append({**os.environ, "home": str(cpp_extension.CUDA_HOME), "waits": stale.exists()})
        return SimpleNamespace(_C=None if len(seen) > 1 else object())

    monkeypatch.setattr(adapter.importlib, "import_module", imported)
    adapter.load()
    assert seen[0]["PATH"].startswith(str(tmp_path / "cuda" / "bin"))
    assert seen[0]["TORCH_EXTENSIONS_DIR"] == str(stale.parents[1])
    assert seen[0]["home"] == str(tmp_path / "cuda")
    assert not seen[0]["waits"], "torch would wait for a process that is no more"
    assert dict(os.environ) == before
    with pytest.raises(RuntimeError, match="nvcc was not found"):
        adapter.load()


# ---- nerfacc itself --------------------------------------------------------------------------------------------------


@pytest.fixture
def nerfacc(monkeypatch) -> ModuleType:
    """nerfacc's own Python over emulations of the three kernels that the adapter calls."""
    package = pytest.importorskip("nerfacc", reason="nerfacc is not installed: pip install -e .[nerfacc]")
    emulated = ModuleType("nerfacc.cuda._backend")
    kernels = {"traverse_grids": _traverse, "ray_aabb_intersect": _cross, "exclusive_sum": _exclusive_sum}
    monkeypatch.setattr(emulated, "_C", SimpleNamespace(**kernels), raising=False)
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", emulated)
    monkeypatch.setattr(importlib.import_module("nerfacc.volrend"), "pack_info", _pack)
    return package


def _pack(ray: Tensor, count: int) -> Tensor:
    counts = torch.bincount(ray, minlength=count)
    return torch.stack([counts.cumsum(0) - counts, counts], 1)


def _exclusive_sum(starts: Tensor, counts: Tensor, x: Tensor, normalize: bool, backward: bool) -> Tensor:
    assert x.dtype == torch.float32
    out = torch.empty_like(x)
    for start, count in zip(starts.tolist(), counts.tolist(), strict=True):
        part = slice(start, start + count)
        own = x[part].flip(0) if backward else x[part]
        before = own.cumsum(0) - own
        out[part] = before.flip(0) if backward else before
    return out


def _cross(origins, directions, boxes, near, far, miss):
    from nerfacc.grid import _ray_aabb_intersect

    return _ray_aabb_intersect(origins, directions, boxes, near, far, miss)


def _traverse(origins, directions, mask, grids, boxes, t_sorted, t_indices, hits, nears, fars, step, *options):
    """Keep the intervals after a ray's near plane whose middles are in an occupied cell, before its far plane."""
    assert all(x.is_contiguous() for x in (origins, directions, grids, boxes, nears, fars))
    assert (origins.dtype, grids.dtype, t_indices.dtype) == (torch.float32, torch.bool, torch.int64)
    middles = nears[:, None] + (torch.arange(200) + 0.5) * step
    places = origins[:, None] + middles[..., None] * directions[:, None]
    side, (low, high) = grids.shape[1], boxes.view(2, 3)
    cells = ((places - low) / (high - low) * side).floor().long()
    within = ((cells >= 0) & (cells < side)).all(-1) & (middles < fars[:, None]) & (nears < fars)[:, None]
    x, y, z = cells.clamp(0, side - 1).unbind(-1)
    ray, at = torch.nonzero(within & grids[0, x, y, z], as_tuple=True)
    starts, counts = _pack(ray, len(origins)).unbind(1)
    found = SimpleNamespace(vals=middles[ray, at], ray_indices=ray, chunk_starts=starts, chunk_cnts=counts)
    found.is_valid = found.is_left = found.is_right = torch.ones_like(ray, dtype=torch.bool)
    return found, found, fars


def test_the_adapter_agrees(nerfacc):
    from sdlab.volume import nerfacc as adapter

    must_agree(Marching(adapter.sample, adapter.weights), CPU)


def test_a_volume_looks_and_learns_the_same(nerfacc):
    from sdlab.volume import nerfacc as adapter

    scene = Field(resolution=16, channels=4, hidden=8).build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")
    cams = turntable(2, CameraSettings(), 16)
    found = []
    for functions in (TORCH, Marching(adapter.sample, adapter.weights)):
        scene._marching = functions
        render = scene.render(cams, torch.ones(2, 3))
        pull = torch.linspace(-1, 1, render.rgb.numel()).view_as(render.rgb)
        gradients = torch.autograd.grad((render.rgb * pull).sum() + render.depth.mean(), list(scene.params.values()))
        found.append((*(x.detach() for x in render[:3]), *(g / g.abs().max() for g in gradients)))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=2e-4)  # a sample at the border of a cell may differ


def test_no_sample_is_no_error(nerfacc):
    from sdlab.volume import nerfacc as adapter

    nothing = adapter.weights(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 3)
    assert [len(x) for x in nothing] == [0, 0]


def test_its_formulas_are_ours(nerfacc):
    """The functions for rays with equally many samples, which are plain torch: weights, colour, depth and gradients."""
    g = torch.Generator().manual_seed(0)
    n, m = 6, 20
    sigma, rgb = (torch.rand(*shape, generator=g) for shape in ((n, m), (n, m, 3)))
    ends = torch.linspace(1.0, 3.0, m + 1)
    starts, ends = ends[:-1].expand(n, m), ends[1:].expand(n, m)
    found = []
    for theirs in (True, False):
        density, colour = (x.clone().requires_grad_() for x in (8 * sigma, rgb))
        if theirs:
            w, transmittance, _ = nerfacc.render_weight_from_density(starts, ends, density)
            seen = [
                nerfacc.accumulate_along_rays(w, values) for values in (colour, None, (starts + ends)[..., None] / 2)
            ]
        else:
            ray = torch.arange(n).repeat_interleave(m)
            w, transmittance = rays.weights((density * (ends - starts)).flatten(), ray, n)
            columns = (colour.view(-1, 3), torch.ones(n * m, 1), (starts + ends).reshape(-1, 1) / 2)
            seen = [rays.summed(w[:, None] * column, ray, n) for column in columns]
        pull = normalize(torch.ones(n, 3) + seen[0].detach())
        ((seen[0] * pull).sum() + seen[1].square().sum() + 0.3 * seen[2].sum()).backward()
        found.append((w.view(n, m), transmittance.view(n, m), *seen, density.grad, colour.grad))
    for here, there in zip(*found, strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_the_kernels_agree_on_this_gpu():
    pytest.importorskip("nerfacc", reason="nerfacc is not installed: pip install -e .[nerfacc]")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Remark)
        assert marching.marching_on(torch.device("cuda")) is not TORCH
