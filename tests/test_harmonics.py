"""Colours that depend on the direction of view: spherical harmonics, their gradients, scenes, checkpoints, exports."""

import json
import math
import struct
from pathlib import Path

import gsply
import numpy as np
import pytest
import test_raster
import torch
from test_results import FIGURE
from torch import Tensor

from sdlab.cameras import CameraSettings, turntable
from sdlab.export.interchange import write_gaussian_glb, write_spz
from sdlab.export.writers import Still, finite, write_ply
from sdlab.harmonics import COUNTS, rotated
from sdlab.live.session import Session
from sdlab.meshes import gltf
from sdlab.priors.mixture import MixturePrior
from sdlab.raster import BACKENDS
from sdlab.raster.harmonics import basis, colours
from sdlab.rng import StepRng
from sdlab.scenes.splats import Splats
from sdlab.settings import preset
from sdlab.starts.placing import from_y_up, to_y_up
from sdlab.types import RawSplats
from sdlab.ui.lane import WITHOUT_SH

DEGREES = (1, 2, 3)


def directed(degree: int, n: int = 200, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Return rgbs [n, 3], coefficients [n, K, 3] and means [n, 3] of Gaussians whose colours are clearly above 0."""
    g = torch.Generator().manual_seed(degree)
    rgbs, sh = torch.rand(n, 3, generator=g) + 4, torch.randn(n, COUNTS[degree], 3, generator=g) / 2
    return [x.to(dtype) for x in (rgbs, sh, 0.5 * torch.randn(n, 3, generator=g))]


def small(**changes):
    quick = {"prior.size": 16, "prior.images": 16, "prior.null_images": 16, "scene.n_init": 100, "steps": 20}
    return preset("gallery").patch_all([*quick.items(), *changes.items()])


# ---- the functions ---------------------------------------------------------------------------------------------------


def test_they_are_orthonormal():
    """Over the sphere, by a quadrature that is exact for polynomials of degree 7."""
    heights, weights = np.polynomial.legendre.leggauss(8)
    angles = 2 * np.pi * np.arange(16) / 16
    z, angle = (x.ravel() for x in np.meshgrid(heights, angles, indexing="ij"))
    ring = np.sqrt(1 - z * z)
    Y = basis(torch.tensor(np.stack([ring * np.cos(angle), ring * np.sin(angle), z], 1)), 3).numpy()
    Y = np.concatenate([np.full((len(Y), 1), 0.5 / math.sqrt(math.pi)), Y], 1)
    area = np.repeat(weights, 16) * 2 * np.pi / 16
    assert np.allclose(Y.T @ (area[:, None] * Y), np.eye(16), atol=1e-12)


def test_their_order_and_signs_are_those_of_splat_files():
    """The constants of the 3DGS release, rounded."""
    x, y, z = 0.48, -0.6, 0.64
    expected = [
        *(-0.4886 * y, 0.4886 * z, -0.4886 * x),
        *(1.0925 * x * y, -1.0925 * y * z, 0.3154 * (2 * z * z - x * x - y * y), -1.0925 * x * z),
        0.5463 * (x * x - y * y),
        *(-0.5900 * y * (3 * x * x - y * y), 2.8906 * x * y * z, -0.4570 * y * (4 * z * z - x * x - y * y)),
        *(0.3732 * z * (2 * z * z - 3 * x * x - 3 * y * y), -0.4570 * x * (4 * z * z - x * x - y * y)),
        *(1.4453 * z * (x * x - y * y), -0.5900 * x * (x * x - 3 * y * y)),
    ]
    found = basis(torch.tensor([x, y, z]), 3)
    assert np.allclose(found, expected, atol=2e-4)
    for degree in (0, *DEGREES):
        assert torch.equal(basis(torch.tensor([x, y, z]), degree), found[: COUNTS[degree]])


@pytest.mark.parametrize("degree", DEGREES)
def test_a_turned_scene_has_turned_colours(degree: int):
    rgbs, sh, means = directed(degree)
    R = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64))[0]
    R = R * torch.linalg.det(R)
    viewmats = turntable(3, CameraSettings(), 8).viewmats.double()
    turned = viewmats.clone()
    turned[:, :3, :3] = viewmats[:, :3, :3] @ R.T
    mixed = torch.from_numpy(rotated(sh.numpy(), R.numpy()))
    torch.testing.assert_close(
        colours(rgbs, mixed, means @ R.T, turned), colours(rgbs, sh, means, viewmats), rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("degree", DEGREES)
def test_gradients_are_those_of_differences(degree: int):
    given = [x.requires_grad_() for x in directed(degree, 5)]
    viewmats = turntable(2, CameraSettings(), 8).viewmats.double()
    assert torch.autograd.gradcheck(lambda *x: colours(*x, viewmats), given)


@pytest.mark.parametrize("degree", DEGREES)
def test_kernels_agree_with_torch(degree: int):
    """Colours, some of them cut off at 0, and all gradients: float32 on a CPU against float64."""
    viewmats = turntable(2, CameraSettings(), 8).viewmats
    rgbs, sh, means = directed(degree)
    found = []
    for dtype in (torch.float64, torch.float32):
        given = [x.to(dtype, copy=True).requires_grad_() for x in (rgbs - 4, sh, means)]
        seen = colours(*given, viewmats.to(dtype))
        seen.square().sum().backward()
        found.append([seen.detach(), *(x.grad for x in given)])
    assert (found[0][0] == 0).any()
    for expected, here in zip(*found, strict=True):
        assert test_raster.distance_between(here, expected) < 1e-5


def test_no_colour_is_below_0():
    rgbs, sh, means = directed(1)
    assert float(colours(rgbs - 4.9, sh, means, turntable(2, CameraSettings(), 8).viewmats.double()).min()) == 0


# ---- rendered --------------------------------------------------------------------------------------------------------


def of_each_view() -> test_raster.Case:
    """Colours of their own for each of two views."""
    scene = test_raster.cloud(200)
    scene[4] = torch.rand(2, 200, 3, generator=torch.Generator().manual_seed(1))
    return test_raster.Case(scene, test_raster.cameras(40, 30, views=2), torch.tensor([[0.2, 0.5, 0.9], [1.0, 0, 0]]))


@pytest.mark.parametrize("name", ["cpu", "tiled"])
def test_back_ends_draw_colours_of_each_view(name: str):
    case = of_each_view()
    exact, mine = case.inputs(torch.float64), case.inputs(torch.float32)
    truth, render = case.render(BACKENDS["reference"], exact), case.render(BACKENDS[name], mine)
    case.loss(truth).backward()
    case.loss(render).backward()
    for found, expected in zip(render[:3], truth[:3], strict=True):
        assert test_raster.distance_between(found, expected) < 1e-4
    for what, a, b in zip(test_raster.NAMES, mine, exact, strict=True):
        assert test_raster.distance_between(a.grad, b.grad) < 1e-3, what


@pytest.mark.parametrize("degree", DEGREES)
def test_the_gradient_of_the_coefficients_is_the_oracles(degree: int):
    """Of a rendered image, in float32 on the CPU, against float64."""
    case = of_each_view()
    sh = directed(degree)[1] / 8
    found = []
    for name, dtype in (("reference", torch.float64), ("cpu", torch.float32)):
        means, quats, scales, opacities, _, background = case.inputs(dtype)
        leaf = sh.to(dtype, copy=True).requires_grad_()
        seen = colours(torch.full((200, 3), 0.5, dtype=dtype), leaf, means, case.cams.viewmats.to(dtype))
        render = case.render(BACKENDS[name], [means, quats, scales, opacities, seen, background])
        case.loss(render).backward()
        found.append((render.rgb.detach(), leaf.grad, means.grad))
    for expected, here in zip(*found, strict=True):
        assert test_raster.distance_between(here, expected) < 1e-3


def test_colours_of_another_number_of_views_are_refused():
    case = of_each_view()
    case.scene[4] = torch.rand(3, 200, 3)
    with pytest.raises(ValueError, match=r"colors has shape \(3, 200, 3\); it must be \(2, 200, 3\)"):
        case.render(BACKENDS["cpu"], [*case.scene, case.background])


# ---- scenes ----------------------------------------------------------------------------------------------------------


def test_without_a_degree_nothing_is_there():
    session = Session(small())
    session.run(until=1)
    assert "sh" not in session.state.scene.params
    assert session.state.scene.splats().sh is None


@pytest.mark.parametrize("rule", ["share", "mcmc"])
def test_a_run_learns_them_and_resumes_bit_for_bit(rule: str, tmp_path: Path):
    often = {"scene.densify_every": 3, "scene.densify_from": 0.0, "scene.density": rule, "scene.max_gaussians": 150}
    s = small(**{"scene.sh_degree": 2, **often})
    whole, half, again = Session(s), Session(s), Session(s)
    whole.run(until=10)
    half.run(until=5)
    half.save(tmp_path)
    again.prepare()
    again.restore(tmp_path)
    again.run(until=10)
    params = whole.state.scene.params
    assert params["sh"].shape == (len(params["means"]), 8, 3)
    assert len(params["means"]) > 100, "density control has added some"
    assert float(params["sh"].abs().max()) > 1e-3
    for name, value in again.state.scene.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(whole.state.scene.state_dict()[name])), name
    other = Session(small(**{"scene.sh_degree": 1, **often}))
    other.prepare()
    with pytest.raises(ValueError, match=r"sh has shape"):
        other.state.scene.load_state_dict(whole.state.scene.state_dict())


def test_their_own_gaussians_look_like_the_scene():
    session = Session(small(**{"scene.sh_degree": 3}))
    session.run(until=3)
    scene = session.state.scene
    with torch.no_grad():
        scene.params["sh"].normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        cams = turntable(3, CameraSettings(), 24)
        expected = scene.render(cams, torch.ones(3, 3)).rgb
        found = Still(scene.splats()).render(cams, torch.ones(3, 3)).rgb
        plain = Still(scene.splats()._replace(sh=None)).render(cams, torch.ones(3, 3)).rgb
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert float((plain - expected).abs().max()) > 0.1


@pytest.mark.parametrize("degree", [0, 1])
def test_the_view_says_what_it_leaves_out(degree: int, monkeypatch: pytest.MonkeyPatch):
    from test_ui import Driven

    driven = Driven()
    s = small(**{"scene.sh_degree": degree})
    monkeypatch.setattr(type(driven.session), "effective", property(lambda _: s))
    assert driven.lane.legend == (WITHOUT_SH if degree else "")


# ---- files -----------------------------------------------------------------------------------------------------------


def shaded(degree: int) -> RawSplats:
    g = np.random.default_rng(degree)
    return FIGURE._replace(sh=g.uniform(-0.9, 0.9, (len(FIGURE.means), COUNTS[degree], 3)).astype(np.float32))


def test_rows_and_what_is_not_finite():
    s = shaded(2)
    s.sh[7, 0, 0] = np.nan
    kept = finite(s)
    assert len(kept.means) == len(kept.sh) == len(s.means) - 1
    assert np.array_equal(s.rows(slice(3)).sh, s.sh[:3], equal_nan=True)


@pytest.mark.parametrize("degree", DEGREES)
def test_the_ply_has_the_columns_of_the_3dgs_release(degree: int, tmp_path: Path):
    s, k = shaded(degree), COUNTS[degree]
    write_ply(tmp_path / "x.ply", s)
    head, _, body = (tmp_path / "x.ply").read_bytes().partition(b"end_header\n")
    names = [line.split()[-1] for line in head.decode().splitlines() if line.startswith("property")]
    rest = [f"f_rest_{i}" for i in range(3 * k)]
    assert names[6:9] + names[9 : 9 + 3 * k] + names[9 + 3 * k : 10 + 3 * k] == [
        *("f_dc_0", "f_dc_1", "f_dc_2"),
        *rest,
        "opacity",
    ]
    table = np.frombuffer(body, "<f4").reshape(len(s.means), len(names))
    assert np.array_equal(table[:, 9 : 9 + k], s.sh[:, :, 0]), "all coefficients of red come first"
    assert np.array_equal(table[:, 9 + 2 * k : 9 + 3 * k], s.sh[:, :, 2])
    found = gsply.plyread(tmp_path / "x.ply")
    assert found.shN.shape == s.sh.shape
    assert np.allclose(found.opacities, s.opacity_logits)


@pytest.mark.parametrize("degree", DEGREES)
def test_spz_and_gltf_hold_them_turned_upright(degree: int, tmp_path: Path):
    s = shaded(degree)
    upright = to_y_up(s)
    assert np.allclose(from_y_up(upright).sh, s.sh, atol=1e-5)
    write_spz(tmp_path / "x.spz", s)
    found = gsply.read_spz(str(tmp_path / "x.spz"))
    inside = abs(upright.sh) < 0.99  # a turned coefficient may be larger than the format's range
    assert np.allclose(found.shN[inside], upright.sh[inside], atol=1 / 250)
    write_gaussian_glb(tmp_path / "x.glb", s)
    raw = (tmp_path / "x.glb").read_bytes()
    (length,) = struct.unpack("<I", raw[12:16])
    tree, data = json.loads(raw[20 : 20 + length]), raw[28 + length :]
    attributes = tree["meshes"][0]["primitives"][0]["attributes"]
    k = 0
    for order in range(1, degree + 1):
        for i in range(2 * order + 1):
            accessor = tree["accessors"][attributes[f"KHR_gaussian_splatting:SH_DEGREE_{order}_COEF_{i}"]]
            view = tree["bufferViews"][accessor["bufferView"]]
            values = np.frombuffer(data, "<f4", 3 * accessor["count"], view["byteOffset"]).reshape(-1, 3)
            assert np.array_equal(values, upright.sh[:, k])
            k += 1
    assert k == COUNTS[degree]
    assert not any("SH_DEGREE_4" in name or f"SH_DEGREE_{degree + 1}" in name for name in attributes)


# ---- scenes that start from files ------------------------------------------------------------------------------------


def started(path: Path, degree: int, **changes) -> dict[str, Tensor]:
    """Return the parameters of a scene of some degree that starts from a file."""
    config = Splats(start="file", file=str(path), sh_degree=degree, **changes)
    params = config.build(StepRng(0, -1), torch.device("cpu"), MixturePrior().load(torch.device("cpu")), "").params
    return {name: value.detach() for name, value in params.items()}


@pytest.mark.parametrize(("stored", "degree"), [(3, 3), (3, 1), (1, 3), (2, 0)])
def test_a_scene_takes_a_files_harmonics(stored: int, degree: int, tmp_path: Path):
    s = shaded(stored)._replace(sh=np.float32(0.3) * shaded(stored).sh)
    expected = np.zeros((900, COUNTS[degree], 3), np.float32)
    kept = min(COUNTS[stored], COUNTS[degree])
    expected[:, :kept] = s.sh[:, :kept]
    mixed = math.sqrt(7) / 256  # a turn mixes up to seven errors of rounding
    files = (write_ply, "x.ply", 0), (write_gaussian_glb, "x.glb", 1e-6), (write_spz, "x.spz", mixed)
    for write, name, error in files:
        write(tmp_path / name, s)
        params = started(tmp_path / name, degree)
        if degree == 0:
            assert "sh" not in params
            continue
        assert np.allclose(params["sh"], expected, atol=error), "as in the world, whatever is up in the file"


def test_a_turned_file_has_turned_harmonics(tmp_path: Path):
    """By the scene's own turn, and by the node of a glTF."""
    write_gaussian_glb(tmp_path / "x.glb", shaded(2))
    glb = gltf.read((tmp_path / "x.glb").read_bytes(), "x")
    half = math.sqrt(0.5)
    glb.tree["nodes"][0]["rotation"] = [0, half, 0, half]  # about y, which is up
    (tmp_path / "turned.glb").write_bytes(gltf.glb_bytes(glb.tree, glb.binary))
    by_node, by_knob = started(tmp_path / "turned.glb", 2), started(tmp_path / "x.glb", 2, turn=90.0)
    plain = started(tmp_path / "x.glb", 2)
    assert float((by_node["sh"] - plain["sh"]).abs().max()) > 0.3
    for name in ("means", "sh"):
        torch.testing.assert_close(by_node[name], by_knob[name], rtol=0, atol=1e-5)
