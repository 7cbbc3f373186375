"""Where a start stands and how large it is; and that the user is told what was left out, limited or moved."""

from __future__ import annotations

import html
import math
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clouds as tiny
import torch
import trimesh

from sdlab.cli import main
from sdlab.export.writers import write_ply
from sdlab.live.manager import Seat
from sdlab.live.messages import Noted, Patch, Reset
from sdlab.live.session import Session
from sdlab.meshes.surface import mesh_of
from sdlab.priors.mixture import MixturePrior
from sdlab.rng import StepRng
from sdlab.scenes.splats import Splats, SplatScene
from sdlab.settings import preset
from sdlab.starts import own
from sdlab.starts.clouds import Start, cloud_of
from sdlab.types import Cloud, RawSplats
from sdlab.ui.lane import Lane
from sdlab.viewport.splat_view import SplatView

CPU = torch.device("cpu")
UTM = (500_123.0, 5_400_456.0, 312.0)  # metres, as surveyors have them


def start(raw: bytes, n: int = 400) -> Start:
    return cloud_of(raw, n, np.random.default_rng(0), "the file", "z")


def places(found: Cloud | RawSplats) -> np.ndarray:
    return found.points if isinstance(found, Cloud) else found.means


def built(raw: bytes, tmp_path: Path, **knobs: Any) -> SplatScene:
    (tmp_path / "start").write_bytes(raw)
    config = Splats(start="file", file=str(tmp_path / "start"), **knobs)
    return config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")


def means(scene: SplatScene) -> np.ndarray:
    return scene.params["means"].detach().numpy()


# ---- far from the origin


def at_utm(kind: str) -> bytes:
    """Return the ellipsoid, 1 m long, where surveyors would have it, in a file with enough digits."""
    at = 0.5 * tiny.ellipsoid()[0] + UTM
    box = trimesh.creation.box((1, 0.6, 0.3))
    box.apply_translation(UTM)
    if kind == "points":
        return tiny.ply(tiny.positions(at, "f8"))
    if kind == "points in ASCII":  # declared as float, but written with all digits
        return tiny.ply(tiny.positions(at, "f8"), "ascii").replace(b"property double", b"property float")
    if kind == "Gaussians":
        return tiny.ply(tiny.gaussians() | tiny.positions(at, "f8"))
    if kind == "a PLY mesh":
        text = "ply\nformat ascii 1.0\nelement vertex 8\nproperty double x\nproperty double y\nproperty double z\n"
        text += "element face 12\nproperty list uchar int vertex_indices\nend_header\n"
        text += "".join(f"{x} {y} {z}\n" for x, y, z in box.vertices)
        return (text + "".join(f"3 {a} {b} {c}\n" for a, b, c in box.faces)).encode()
    return trimesh.exchange.obj.export_obj(box, digits=9).encode()


@pytest.mark.parametrize("kind", ["points", "points in ASCII", "Gaussians", "a PLY mesh", "an OBJ"])
def test_double_coordinates_are_centred_before_they_are_rounded(kind: str) -> None:
    at = places(start(at_utm(kind)).found)
    assert at.dtype == np.float32
    if "points" in kind or kind == "Gaussians":
        moved, wanted = (np.sort(x - x.min(0), axis=0) for x in (at, 0.5 * tiny.ellipsoid()[0]))
        assert abs(moved - wanted).max() < 2e-6
    else:
        assert np.ptp(at, axis=0) == pytest.approx((1, 0.6, 0.3), rel=0.05)
        assert all(len(np.unique(at[:, i])) > 150 for i in range(3)), "no sheets"


def test_near_coordinates_stay_where_they_are() -> None:
    at = 3 * tiny.ellipsoid()[0] + (5, -2, 1)
    found = start(tiny.ply(tiny.positions(at))).found
    assert np.sort(places(found), axis=0) == pytest.approx(np.sort(at.astype(np.float32), axis=0))


# ---- rows that are no numbers


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", ["x", "y", "z", "f_dc_1", "scale_0", "rot_2", "opacity"])
def test_bad_rows_of_gaussians_are_left_out_and_counted(column: str, value: float) -> None:
    columns = tiny.gaussians()
    columns[column][1][[3, 77]] = value
    found = start(tiny.ply(columns))
    good = math.isnan(value) is False and (
        column == "opacity" or (column == "scale_0" and value < 0) or column == "f_dc_1"
    )
    assert len(places(found.found)) == (400 if good else 398)
    assert all(np.isfinite(values).all() for values in found.found if values is not None)
    said = "; ".join(found.remarks)
    if column == "opacity" and good:
        assert said == "2 of 400 opacities are infinite and limited to 0.2% and 99.8%"
        assert abs(found.found.opacity_logits).max() == pytest.approx(6.23, abs=0.01)  # type: ignore[union-attr]
    elif column == "scale_0" and good:
        assert said == "2 of 400 Gaussians have no thickness and get a hundredth of their width"
    elif not good:
        assert said == "2 of 400 Gaussians contain NaN or infinity and are left out"


@pytest.mark.parametrize("column", ["x", "red"])
def test_bad_rows_of_points_are_left_out_and_counted(column: str) -> None:
    at, rgbs = tiny.ellipsoid()
    columns = tiny.positions(at) | tiny.colours(rgbs, "f4")
    columns[column][1][5] = math.nan
    found = start(tiny.ply(columns))
    assert len(places(found.found)) == 399
    assert np.isfinite(found.found.rgbs).all()
    assert found.remarks == ("1 of 400 points contains NaN or infinity and is left out",)


# ---- stray points


@pytest.mark.parametrize("many", [1, 8])
@pytest.mark.parametrize("what", ["points", "Gaussians"])
@pytest.mark.parametrize("away", [20.0, 1e6, 1e30])
def test_stray_points_do_not_decide_the_size(what: str, many: int, away: float, tmp_path: Path) -> None:
    columns = tiny.positions(tiny.ellipsoid()[0]) if what == "points" else tiny.gaussians()
    columns["x"][1][:many] = away * np.linspace(1, 2, many)
    found = start(tiny.ply(columns))
    assert len(places(found.found)) == 400 - many
    verb = "lies" if many == 1 else "lie"
    assert f"{many} of 400 {what} {verb} more than 5 times as far out as the rest" in "".join(found.remarks)
    scene = built(tiny.ply(columns), tmp_path)
    assert np.ptp(means(scene)[:, 0]) == pytest.approx(1.6, abs=0.1)
    assert "left out" in scene.note


@pytest.mark.parametrize("kind", ["stl", "ply", "glb"])
@pytest.mark.parametrize("side", [0.01, 1.0])
def test_stray_faces_do_not_decide_the_size_of_a_mesh(kind: str, side: float) -> None:
    """A scene and a gallery see the same box, whether the stray triangle is a speck or as large as its sides."""
    box = trimesh.creation.box((2, 2, 2)).subdivide().subdivide()
    speck = trimesh.Trimesh(side * np.array([(0, 0, 0), (1, 0, 0), (0, 1, 0.0)]) + (90, 0, 0), [(0, 1, 2)])
    raw = trimesh.util.concatenate([box, speck]).export(file_type=kind)
    found = start(raw)
    assert np.ptp(places(found.found), axis=0) == pytest.approx((2, 2, 2), rel=0.02)
    assert found.remarks == ("1 of 193 faces lies more than 5 times as far out as the rest and is left out",)
    mesh = mesh_of(raw, "the file", "z", math.sqrt(3))
    assert len(mesh.faces) == 192
    assert np.ptp(mesh.vertices[np.unique(mesh.faces)], axis=0) == pytest.approx((2, 2, 2), rel=1e-5)


def test_nothing_is_stray_in_usual_shapes() -> None:
    g = np.random.default_rng(0)
    line = np.stack([np.linspace(0, 1, 400), np.zeros(400), np.zeros(400)], 1)
    ball = g.normal(size=(4000, 3))
    lollipop = np.concatenate([0.1 * ball / np.linalg.norm(ball, axis=1, keepdims=True), line[:300] * 0.45])
    for at in (line, ball, lollipop, line[:3], line[:1], np.zeros((50, 3))):
        found = start(tiny.ply(tiny.positions(at)), 10_000)
        assert len(places(found.found)) == len(at)
        assert not found.remarks


# ---- scenes of this program


def scene_of_ours(tmp_path: Path, older: bool = False) -> bytes:
    """Return the PLY of a scene that stands off its middle and does not reach its bounds, as a run leaves it."""
    g = np.random.default_rng(0)
    quats = g.normal(size=(300, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    at = g.uniform((-0.9, -0.2, -0.5), (0.5, 0.3, 0.94), (300, 3))
    parts = (at, quats, np.log(g.uniform(0.02, 0.1, (300, 3))), g.normal(size=300), g.uniform(0.1, 0.9, (300, 3)))
    write_ply(tmp_path / "scene.ply", RawSplats(*(np.asarray(p, np.float32) for p in parts)))
    raw = (tmp_path / "scene.ply").read_bytes()
    return raw.replace(f"comment {own.COMMENT}\n".encode(), b"") if older else raw


@pytest.mark.parametrize("older", [False, True], ids=["with the comment", "from before it"])
def test_own_scene_keeps_its_frame(older: bool, tmp_path: Path) -> None:
    raw = scene_of_ours(tmp_path, older)
    scene = built(raw, tmp_path)
    wanted = start(raw).found
    assert isinstance(wanted, RawSplats)
    assert np.array_equal(means(scene), wanted.means)
    assert scene.params["log_scales"].detach().numpy() == pytest.approx(wanted.log_scales, abs=1e-6)
    assert "keeps its size and place, so scene.radius has no effect" in scene.note
    turned = means(built(raw, tmp_path, turn=90.0))
    assert turned[:, 0] == pytest.approx(-wanted.means[:, 1], abs=1e-6), "it can be turned"
    small = built(raw, tmp_path, bound=0.5)
    assert np.linalg.norm(means(small), axis=1).max() <= 0.8, "it does not fit, so it is fitted as any other file"
    assert "larger than scene.bound = 0.5, so it is scaled to scene.radius = 0.8" in small.note
    assert "keeps its size" not in small.note


@pytest.mark.parametrize("change", ["normals", "another column", "wide", "unit", "bright", "a comment", "double", "up"])
def test_files_of_others_are_not_taken_for_ours(change: str, tmp_path: Path) -> None:
    found = start(scene_of_ours(tmp_path, older=True)).found
    assert isinstance(found, RawSplats)
    f_dc = (found.rgbs - 0.5) / 0.28209479177387814
    values = (found.means, np.zeros((300, 3)), f_dc, found.opacity_logits[:, None], found.log_scales, found.quats)
    table = np.concatenate(values, 1)
    columns = {name: ["f4", table[:, i]] for i, name in enumerate(own.COLUMNS)}
    comments: list[str] = []

    def read(**more: Any) -> Start:
        return start(tiny.ply({k: (v[0], v[1]) for k, v in (columns | more).items()}, comments=comments))

    assert read().is_own
    if change == "normals":
        columns["nz"][1] = np.ones(300)
    elif change == "another column":
        assert not read(f_rest_0=["f4", np.zeros(300)]).is_own
        return
    elif change == "wide":
        columns["scale_0"][1] = columns["scale_0"][1] + 3
    elif change == "unit":
        columns["rot_0"][1] = 2 * columns["rot_0"][1]
    elif change == "bright":
        columns["f_dc_0"][1] = columns["f_dc_0"][1] + 3
    elif change == "a comment":
        comments.append("made by something else")
    elif change == "double":
        columns["opacity"][0] = "f8"
    elif change == "up":
        raw = tiny.ply({k: (v[0], v[1]) for k, v in columns.items()})
        assert not cloud_of(raw, 9, np.random.default_rng(0), "the file", "y").is_own, "the user says otherwise"
        return
    assert not read().is_own


def test_run_can_start_from_the_scene_of_another(tmp_path: Path) -> None:
    """Its Gaussians are where they were, to the last bit, after steps, export and start."""
    first = Session(preset("mixture").patch("scene.n_init", 60))
    first.run(until=3)
    first.export(tmp_path, 16)
    wanted = first.state.scene.splats()
    assert wanted is not None
    again = built((tmp_path / "scene.ply").read_bytes(), tmp_path)
    assert np.array_equal(means(again), wanted.means)


# ---- limits of the scene


def test_limits_of_scales_and_bounds_are_said_and_hold_at_once(tmp_path: Path) -> None:
    columns = tiny.gaussians() | {
        f"scale_{i}": ("f4", np.full(400, math.log(s))) for i, s in enumerate((0.0012, 0.05, 2))
    }
    scene = built(tiny.ply(columns), tmp_path, scale_min=0.02, radius=2.0, bound=0.95)
    widths = scene.params["log_scales"].detach().exp()
    assert float(widths.min()) == pytest.approx(0.02)
    assert float(widths.max()) == pytest.approx(0.2)
    assert abs(means(scene)).max() == pytest.approx(0.95)
    assert "400 of 400 Gaussians are widened to scene.scale_min = 0.02" in scene.note
    assert "400 of 400 Gaussians shrink to scene.scale_max = 0.2" in scene.note
    out = int((np.abs(means(scene)) >= 0.9499).any(1).sum())
    assert f"{out} of 400 Gaussians are moved into the box of half-width scene.bound = 0.95" in scene.note
    before = means(scene).copy()
    scene.constrain()
    assert np.array_equal(means(scene), before), "the first step changes nothing"
    assert built(tiny.ply(tiny.gaussians()), tmp_path, scale_min=1e-4).note == ""


@pytest.mark.parametrize("kind", ["ball", "object"])
def test_radius_beyond_the_bounds_is_said_of_any_start(kind: str) -> None:
    config = Splats(start=kind, start_text="a red bear", radius=2.0, n_init=300)
    scene = config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")
    assert "moved into the box of half-width scene.bound = 1.05" in scene.note
    inside = Splats(start=kind, start_text="a red bear", n_init=300)
    assert inside.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "").note == ""


# ---- the user is told


@pytest.fixture
def stray(tmp_path: Path) -> Path:
    columns = tiny.positions(tiny.ellipsoid()[0])
    columns["x"][1][0] = 1e4
    (tmp_path / "stray.ply").write_bytes(tiny.ply(columns))
    return tmp_path / "stray.ply"


SAID = "1 of 400 points lies more than 5 times as far out as the rest and is left out"


def test_session_notes_what_was_left_out_at_each_start(stray: Path) -> None:
    changes = (("scene.file", str(stray)), ("scene.start", "file"))
    session = Session(preset("mixture"))
    session.run(until=1)
    for command in (Patch(changes), Reset()):
        session.do(command)
    texts = [e.text for e in session.events.since(0)[0] if isinstance(e, Noted)]
    assert texts == [f"scene.file = {str(stray)!r}: {SAID}"]


def test_run_prints_what_was_left_out(stray: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["run", "mixture", "--steps", "1", "--out", str(tmp_path / "run")]
    assert main([*words, "--set", "scene.start=file", "--set", f"scene.file={stray}"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert lines == [f"sdlab: note: scene.file = {str(stray)!r}: {SAID}"], "one line, once"


class NoView(SplatView):
    """A view without a server."""

    def __init__(self) -> None:
        self._film_at = None


def test_page_shows_what_was_left_out(stray: Path) -> None:
    session = Session(preset("mixture").patch("scene.file", str(stray)).patch("scene.start", "file"))
    session.prepare()
    lane = Lane(Seat("seat", session, threading.Thread()), NoView(), "mixture")
    assert SAID in html.unescape(lane.read()[0])
