"""Starting points of a scene: files, toybox objects, Shap-E; and error messages for bad files."""

from __future__ import annotations

import math
import os
import re
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial

from sdlab.cameras import look_at
from sdlab.export.writers import write_ply
from sdlab.live.session import Session
from sdlab.priors.mixture import MixturePrior
from sdlab.rng import StepRng
from sdlab.scenes.splats import Splats, SplatScene
from sdlab.settings import Settings, preset
from sdlab.starts import clouds, placing
from sdlab.starts.shap_e import shap_e_points
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.pictures import COLOURS
from sdlab.toybox.surface import object_points
from sdlab.types import Cloud, RawSplats

CPU = torch.device("cpu")
RED, BLUE = (255, 0, 0, 255), (0, 0, 255, 255)


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def two_boxes() -> trimesh.Trimesh:
    """Return a red box of 2 x 1 x 1 that spans x = 0 .. 2, and above it a blue one with a quarter of its area."""
    red, blue = trimesh.creation.box((2, 1, 1)), trimesh.creation.box((1, 0.5, 0.5))
    red.visual.face_colors, blue.visual.face_colors = RED, BLUE
    red.apply_translation((1, 0, 0))
    blue.apply_translation((1, 0, 1.5))
    return trimesh.util.concatenate([red, blue])


def saved(path: Path, mesh: Any, kind: str) -> Path:
    raw = mesh.export(file_type=kind)
    path.write_bytes(raw.encode() if isinstance(raw, str) else raw)
    return path


def read(path: Path, n: int = 1000, up: str = "auto") -> Cloud | RawSplats:
    return clouds.read_cloud(path, n, numbers(), "scene.file", up).found


# ---- files


@pytest.mark.parametrize("kind", ["ply", "glb", "obj", "stl", "stl_ascii"])
def test_mesh_is_sampled_evenly_whatever_its_name_says(kind: str, tmp_path: Path) -> None:
    found = read(saved(tmp_path / "mesh.txt", two_boxes(), kind), 4000, up="z")
    assert isinstance(found, Cloud)
    assert found.points.shape == found.rgbs.shape == (4000, 3)
    assert found.points.dtype == found.rgbs.dtype == np.float32
    assert found.points.min(0) == pytest.approx([0, -0.5, -0.5], abs=0.02)
    assert found.points.max(0) == pytest.approx([2, 0.5, 1.75], abs=0.02)
    above = found.points[:, 2] > 1
    assert above.mean() == pytest.approx(0.2, abs=0.03)  # by area: 2.5 of 12.5
    if kind in ("ply", "glb", "obj"):
        assert found.rgbs[~above].mean(0) == pytest.approx([1, 0, 0], abs=0.02)
        assert found.rgbs[above].mean(0) == pytest.approx([0, 0, 1], abs=0.02)


def test_texture_gives_the_colours(tmp_path: Path) -> None:
    half = np.zeros((8, 8, 3), np.uint8)
    half[:, :4], half[:, 4:] = RED[:3], BLUE[:3]
    square = trimesh.Trimesh([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], [(0, 1, 2), (0, 2, 3)], process=False)
    corners = [(0, 0), (1, 0), (1, 1), (0, 1)]
    material = PBRMaterial(baseColorTexture=Image.fromarray(half))
    square.visual = trimesh.visual.TextureVisuals(uv=corners, material=material)
    found = read(saved(tmp_path / "square.glb", square, "glb"), 2000, up="z")
    assert isinstance(found, Cloud)
    left = found.points[:, 0] < 0.4
    assert found.rgbs[left].mean(0) == pytest.approx([1, 0, 0], abs=0.02)
    assert found.rgbs[found.points[:, 0] > 0.6].mean(0) == pytest.approx([0, 0, 1], abs=0.02)


def test_up_of_a_file() -> None:
    """glTF: y up, front +z, so +x is its left."""
    axes = Cloud(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32))
    moved = placing.from_y_up(axes)
    assert isinstance(moved, Cloud)
    assert moved.points.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]  # left, up, front


def test_glb_is_y_up_unless_told(tmp_path: Path) -> None:
    tall = trimesh.creation.box((1, 4, 1))
    for kind, up, axis in (("glb", "auto", 2), ("glb", "z", 1), ("ply", "auto", 1), ("ply", "y", 2)):
        found = read(saved(tmp_path / "tall", tall, kind), 500, up)
        assert isinstance(found, Cloud)
        assert np.ptp(found.points, axis=0).argmax() == axis, (kind, up)


def test_placed_parts_of_a_scene_stand_where_they_are_placed(tmp_path: Path) -> None:
    ball = trimesh.creation.icosphere(radius=0.1)
    scene = trimesh.Scene()
    for x in (-3.0, 3.0):
        scene.add_geometry(ball, transform=trimesh.transformations.translation_matrix((x, 0, 0)))
    found = read(saved(tmp_path / "two.glb", scene, "glb"), 400, up="z")
    assert isinstance(found, Cloud)
    assert sorted(set(found.points[:, 0].round().tolist())) == [-3, 3]


def test_points_of_a_cloud_are_thinned_and_never_doubled(tmp_path: Path) -> None:
    at = numbers().normal(size=(300, 3))
    cloud = trimesh.PointCloud(at, colors=np.tile(RED, (300, 1)).astype(np.uint8))
    path = saved(tmp_path / "points.ply", cloud, "ply")
    some, every = read(path, 100), read(path, 1000)
    assert isinstance(some, Cloud)
    assert isinstance(every, Cloud)
    assert len(some.points) == len(np.unique(some.points, axis=0)) == 100
    assert len(every.points) == 300
    assert every.rgbs.mean(0) == pytest.approx([1, 0, 0])


def ellipsoids(n: int = 50) -> RawSplats:
    g = numbers(3)
    quats = g.normal(size=(n, 4))
    quats /= np.linalg.norm(quats, axis=1, keepdims=True)
    parts = (
        g.uniform(-0.8, 0.8, (n, 3)),
        quats,
        g.uniform(-4, -2, (n, 3)),
        g.normal(size=n),
        g.uniform(0.1, 0.9, (n, 3)),
    )
    return RawSplats(*(np.asarray(p, np.float32) for p in parts))


def test_own_ply_comes_back(tmp_path: Path) -> None:
    splats = ellipsoids()
    write_ply(tmp_path / "scene.ply", splats)
    found = read(tmp_path / "scene.ply")
    assert isinstance(found, RawSplats)
    assert found.sh is None
    for mine, theirs in zip(found[:-1], splats[:-1], strict=True):
        assert np.allclose(mine, theirs, atol=1e-6)


def covariances(s: RawSplats) -> np.ndarray:
    from sdlab.raster.torch_project import rotation_matrices

    M = rotation_matrices(torch.from_numpy(s.quats)).numpy() * np.exp(s.log_scales)[:, None, :]
    return M @ M.transpose(0, 2, 1)


def test_gaussians_turn_with_their_places() -> None:
    splats = ellipsoids()
    c, s = math.cos(math.radians(30)), math.sin(math.radians(30))
    for moved, R in (
        (placing.turned(splats, 30), np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])),
        (placing.from_y_up(splats), np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])),
    ):
        assert isinstance(moved, RawSplats)
        assert np.allclose(moved.means, splats.means @ R.T, atol=1e-5)
        assert np.allclose(covariances(moved), R @ covariances(splats) @ R.T, atol=1e-5)


def test_fitted_is_centred_and_reaches_the_radius() -> None:
    splats = ellipsoids()
    moved = placing.fitted(splats._replace(means=5 + 3 * splats.means), 0.8)
    assert isinstance(moved, RawSplats)
    assert np.linalg.norm(moved.means, axis=1).max() == pytest.approx(0.8, rel=1e-5)
    assert moved.means.max(0) + moved.means.min(0) == pytest.approx([0, 0, 0], abs=1e-5)
    factor = np.ptp(moved.means[:, 0]) / (3 * np.ptp(splats.means[:, 0]))
    assert np.allclose(moved.log_scales, splats.log_scales + math.log(factor), atol=1e-5)
    far = placing.fitted(splats._replace(means=1e30 * splats.means), 0.8)
    assert isinstance(far, RawSplats)
    assert np.allclose(far.means, placing.fitted(splats, 0.8).means, atol=1e-5), "too large for squares in float32"
    single = placing.fitted(Cloud(np.ones((1, 3), np.float32), np.ones((1, 3), np.float32)), 0.8)
    assert isinstance(single, Cloud)
    assert single.points.tolist() == [[0, 0, 0]]


def test_spacing_of_a_lattice_far_from_the_origin() -> None:
    side = np.arange(12) * 0.01
    lattice = np.stack(np.meshgrid(side, side, side), -1).reshape(-1, 3) + 3.0
    assert placing.spacing(lattice.astype(np.float32), numbers()) == pytest.approx(0.01, rel=1e-3)
    assert placing.spacing(lattice[:1], numbers()) == 0.0


def huge(path: Path) -> None:
    with path.open("wb") as f:
        f.write(b"ply\n")
        f.truncate(2_000_000_000)  # sparse: uses no disk space


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("mesh.obj", "v 0 0 0")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as t:
        t.addfile(tarfile.TarInfo("mesh.obj"))


PLY = """ply
format ascii 1.0
element vertex {0}
property float x
property float y
property float z
{2}end_header
{1}
{3}
"""
FACES = "property list uchar int vertex_indices\n"


def mesh_with_nan(path: Path) -> None:
    path.write_text("v 0 0 0\nv 1 0 0\nv nan 1 0\nf 1 2 3\n")


BAD = {
    "cut": (lambda p: p.write_bytes(saved(p, two_boxes(), "glb").read_bytes()[:300]), "damaged"),
    "cut ply": (lambda p: p.write_bytes(saved(p, two_boxes(), "ply").read_bytes()[:-40]), "damaged"),
    "absurd count": (
        lambda p: p.write_bytes(
            b"ply\nformat binary_little_endian 1.0\nelement vertex 99999999999\nproperty float x\nend_header\n"
        ),
        "damaged|without faces",
    ),
    "2 GB": (huge, "2,000,000,000 bytes"),
    "only NaN": (lambda p: p.write_text(PLY.format(2, "nan 0 0\n0 inf 0", "", "")), "NaN or infinity in each of its 2"),
    "NaN in a mesh": (mesh_with_nan, "NaN or infinity"),
    "archive": (archive, "archive"),
    "tar": (tar, "archive"),
    "faces of other corners": (
        lambda p: p.write_text(PLY.format(3, "0 0 0\n1 0 0\n0 1 0", "element face 1\n" + FACES, "3 0 1 7")),
        "missing vertices",
    ),
    "no faces in an STL": (lambda p: p.write_text("solid x\nendsolid x\n"), "without faces|damaged"),
    "no faces": (lambda p: p.write_text("v 0 0 0\nv 1 0 0\n"), "without faces"),
    "flat": (lambda p: p.write_text("v 0 0 0\nv 1 0 0\nv 2 0 0\nf 1 2 3\n"), "without area"),
    "a picture": (lambda p: Image.new("RGB", (8, 8)).save(p, "PNG"), "unknown format"),
    "nothing": (lambda p: p.write_bytes(b""), "is empty"),
    "a folder": (lambda p: p.mkdir(), "cannot be read"),
    "absent": (lambda p: None, "cannot be read"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_bad_file_is_refused_in_words(name: str, tmp_path: Path) -> None:
    make, words = BAD[name]
    make(tmp_path / "bad")
    with pytest.raises(ValueError, match=words) as told:
        read(tmp_path / "bad")
    assert "scene.file" in str(told.value)
    assert len(str(told.value)) < 500


def test_what_a_parser_lets_pass_is_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(*args: Any, **kwargs: Any) -> None:
        raise KeyError("uv")

    monkeypatch.setattr(clouds, "sampled", odd)
    raw = saved(tmp_path / "m.ply", two_boxes(), "ply").read_bytes()
    with pytest.raises(ValueError, match=r"^the boxes is damaged: its parts do not match"):
        clouds.cloud_of(raw, 10, numbers(), "the boxes")


def test_files_that_a_file_refers_to_are_not_read(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED[:3]).save(tmp_path / "secret.png")
    (tmp_path / "m.mtl").write_text("newmtl m\nmap_Kd secret.png\n")
    square = "mtllib m.mtl\nusemtl m\nv 0 0 0\nv 1 0 0\nv 0 1 0\nvt 0 0\nvt 1 0\nvt 0 1\nf 1/1 2/2 3/3\n"
    (tmp_path / "mesh.obj").write_text(square)
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        found = read(tmp_path / "mesh.obj")
    finally:
        os.chdir(here)
    assert isinstance(found, Cloud)
    assert not np.allclose(found.rgbs.mean(0), [1, 0, 0], atol=0.1)


# ---- objects of the toybox


@pytest.mark.slow
@pytest.mark.parametrize("name", list(OBJECTS))
def test_every_object_has_a_surface_within_the_picture(name: str) -> None:
    found = object_points(f"a red {name}", 800, numbers())
    assert found.points.shape == (800, 3)
    assert 0.7 < np.linalg.norm(found.points, axis=1).max() < 1.0
    assert found.rgbs.min() >= 0
    assert found.rgbs.max() <= 1
    red = np.array(COLOURS["red"])
    assert (np.abs(found.rgbs - red).max(1) < 0.4).mean() > 0.05, "its own colour is to be seen"


def test_words_say_colours_and_second_objects() -> None:
    def share(text: str, colour: str) -> float:
        return float(
            (np.abs(object_points(text, 2000, numbers()).rgbs - np.array(COLOURS[colour])).max(1) < 0.05).mean()
        )

    assert share("a scarlet teddy bear", "red") > 0.3
    assert share("a bear wearing a blue hat", "blue") > 0.05
    assert share("a red bear", "blue") == 0
    assert share("a green box under a pink pig", "green") > 0.1
    assert share("a green box under a pink pig", "pink") > 0.2
    assert share("a tree", "green") > 0.2  # as it grows
    with pytest.raises(ValueError, match="names no toybox object; the toybox has bear"):
        object_points("a spoon", 10, numbers())


@pytest.mark.slow
def test_points_lie_on_the_outside_and_are_even() -> None:
    """A mushroom on a box: no points inside, and each part gets points in proportion to its visible area."""
    from sdlab.toybox.objects import table
    from sdlab.toybox.surface import _inside

    at = object_points("a red mushroom on a green box", 3000, numbers()).points.astype(float)
    parts = table("mushroom", 0, "box")
    for k, kind in enumerate(parts.kinds.tolist()):
        local = (at - parts.centres[k]) @ parts.turns[k] / parts.sizes[k]
        assert not _inside(kind, local * 1.02).any()
    nearest = np.sort(np.linalg.norm(at[:, None] - at[None], axis=2), axis=1)[:, 1]
    assert np.quantile(nearest, 0.99) < 4 * np.median(nearest), "no part is thinner strewn than the others"


def test_front_of_an_object_faces_the_front_camera() -> None:
    """A car's lamps are yellow in front and red behind."""
    found = object_points("a blue car", 4000, numbers())
    red = (found.rgbs[:, 0] > 0.7) & (found.rgbs[:, 1:].max(1) < 0.3)
    yellow = (found.rgbs[:, :2].min(1) > 0.7) & (found.rgbs[:, 2] < 0.75)
    assert found.points[yellow, 0].mean() > 0.4 > 0 > found.points[red, 0].mean()


# ---- Shap-E


@pytest.fixture(scope="module")
def shap_e_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tiny model whose meshes are extracted from 32^3 signed distances; 128^3 would take seconds each."""
    from diffusers.pipelines.shap_e.renderer import ShapERenderer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShapERenderer, "decode_to_mesh", partialmethod(ShapERenderer.decode_to_mesh, grid_size=32))
        yield tiny_models.shap_e(tmp_path_factory.mktemp("shap-e"))


def test_shap_e_makes_a_cloud_that_its_seed_determines(shap_e_folder: Path) -> None:
    def scene(seed: int) -> torch.Tensor:
        s = Splats(start="shap-e", shap_e=str(shap_e_folder), shap_e_steps=2, n_init=300)
        return s.build(StepRng(seed, -1), CPU, MixturePrior().load(CPU), "a red bear").params["means"]

    one = scene(0)
    assert one.shape == (300, 3)
    assert float(one.norm(dim=1).max()) == pytest.approx(0.8, rel=1e-4)
    assert torch.equal(one, scene(0))
    assert not torch.equal(one, scene(1))


def test_shap_e_says_how_far_it_is_and_keeps_what_it_has_made(shap_e_folder: Path, monkeypatch: Any) -> None:
    from sdlab.starts import shap_e

    monkeypatch.setattr(shap_e, "_kept", {})
    monkeypatch.setattr(shap_e, "PROGRESS_EVERY", 0.0)
    said: list[str] = []

    def points(prompt: str) -> np.ndarray:
        numbers = np.random.default_rng(0)
        return shap_e_points(prompt, 50, numbers, CPU, str(shap_e_folder), 3, said.append).points

    first = points("a bear")
    assert said[0] == f"loading Shap-E ({shap_e_folder})"
    of_steps = [text.split(",")[0] for text in said[1:-1]]
    assert of_steps == [f"Shap-E: step {i} of 5" for i in range(1, 5)], "Heun's method takes each but the last twice"
    assert all(re.search(r", \d+ s left$", text) for text in said[1:-1])
    assert said.pop() == "Shap-E: extracting the mesh"
    said.clear()
    assert np.array_equal(points("a bear"), first)
    assert not said, "it is there already"
    points("a cat")
    points("a bear")
    points("a dog")
    assert [key[0] for key in shap_e._kept] == ["a bear", "a dog"], "the two that were asked for last"


def test_shap_e_that_cannot_be_had_says_what_to_do(shap_e_folder: Path, tmp_path: Path) -> None:
    import shutil

    pickled = tmp_path / "pickled"
    shutil.copytree(shap_e_folder, pickled)
    weights = next((pickled / "prior").glob("*.safetensors"))
    torch.save({}, weights.with_name("diffusion_pytorch_model.bin"))
    weights.unlink()
    for path in (pickled, tmp_path / "nowhere"):
        config = Splats(start="shap-e", shap_e=str(path), shap_e_steps=2, n_init=10)
        with pytest.raises(RuntimeError, match=r"scene\.shap_e = .*safetensors.*scene\.start"):
            config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "a red bear")


def test_shap_e_or_ball_takes_the_ball_where_there_is_none_and_says_so(shap_e_folder: Path, tmp_path: Path) -> None:
    def scene(start: str, model: str) -> SplatScene:
        s = Splats(start=start, shap_e=model, shap_e_steps=2, n_init=200)
        return s.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "a red bear")

    made = scene("shap-e or ball", str(shap_e_folder))
    assert torch.equal(made.params["means"], scene("shap-e", str(shap_e_folder)).params["means"])
    assert made.note == ""
    for nothing in (str(tmp_path / "nowhere"), ""):
        with pytest.warns(UserWarning, match=r"starting from a ball: scene\.shap_e"):
            instead = scene("shap-e or ball", nothing)
        assert torch.equal(instead.params["means"], scene("ball", "").params["means"])
        assert "scene.shap_e" in instead.note
    with pytest.raises(RuntimeError, match=r"scene\.shap_e is empty.*scene\.start"):
        scene("shap-e", "")


@pytest.mark.parametrize("where", ["from_pretrained", "__call__"])
def test_shap_e_that_does_not_fit_says_what_to_do(shap_e_folder: Path, monkeypatch: Any, where: str) -> None:
    from diffusers import ShapEPipeline

    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ShapEPipeline, where, full)
    config = Splats(start="shap-e", shap_e=str(shap_e_folder), shap_e_steps=3, n_init=10)
    with pytest.raises(RuntimeError, match=r"out of memory: Shap-E.*scene\.start"):
        config.build(StepRng(1, -1), CPU, MixturePrior().load(CPU), f"a bear, {where}")


# ---- the scene


def shown(config: Splats, prompt: str = "") -> np.ndarray:
    """Render from the front over white: [H, W, 3]."""
    scene = config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), prompt)
    cams = look_at(torch.zeros(1), torch.zeros(1), torch.full((1,), 2.95), 40.0, 64, 64)
    return scene.render(cams, torch.ones(1, 3)).rgb[0].permute(1, 2, 0).detach().numpy()


def test_started_object_is_closed_and_has_its_colours() -> None:
    config = Splats(start="object", n_init=3000, radius=0.95, opacity_init=0.9)
    picture = shown(config, "a blue car")
    middle = picture[36:44, 24:40].reshape(-1, 3)
    assert (middle.min(1) < 0.9).all(), "no background shines through"
    assert np.allclose(
        shown(Splats(start="object", n_init=3000, start_text="a blue car")),
        shown(Splats(start="object", n_init=3000), "a blue car"),
    )


def test_turn_shows_another_side() -> None:
    front = shown(Splats(start="object", n_init=2000, opacity_init=0.9), "a blue car")
    side = shown(Splats(start="object", n_init=2000, opacity_init=0.9, turn=90.0), "a blue car")
    width = [(p.min(2) < 0.7).any(0).sum() for p in (front, side)]
    assert width[1] > 1.4 * width[0]


def test_gaussians_of_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    write_ply(tmp_path / "s.ply", ellipsoids())
    config = Splats(start="file", file=str(tmp_path / "s.ply"), radius=0.5)
    scene = config.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")
    assert scene.params["means"].shape == (50, 3)
    assert scene.params["opacity_logits"].detach().numpy() == pytest.approx(ellipsoids().opacity_logits, abs=1e-5)
    few = Splats(start="file", file=str(tmp_path / "s.ply"), max_gaussians=10)
    with pytest.raises(ValueError, match=r"50 Gaussians.*max_gaussians"):
        few.build(StepRng(0, -1), CPU, MixturePrior().load(CPU), "")


def test_start_from_a_file_wants_a_file() -> None:
    with pytest.raises(ValueError, match=r"scene\.start = file.*scene\.file"):
        Splats(start="file")


def mixture(**scene: Any) -> Settings:
    import dataclasses

    base = preset("mixture")
    return dataclasses.replace(base, scene=dataclasses.replace(base.scene, **scene))


def test_run_goes_on_without_the_file_that_it_started_from(tmp_path: Path) -> None:
    file = saved(tmp_path / "m.ply", two_boxes(), "ply")
    first = Session(mixture(start="file", file=str(file), n_init=60))
    first.run(until=2)
    first.save(tmp_path / "run")
    file.unlink()
    again = Session(mixture())
    again.prepare()
    again.restore(tmp_path / "run")
    for name, value in first.state.scene.params.items():
        assert torch.equal(value, again.state.scene.params[name])
    assert again.settings == first.settings


def test_reset_that_fails_leaves_the_run_as_it_began(tmp_path: Path) -> None:
    from sdlab.live.messages import Patch, Rejected, Reset

    file = saved(tmp_path / "m.ply", two_boxes(), "ply")
    session = Session(mixture(n_init=50))
    session.run(until=3)
    file.unlink()
    changes = (("scene.file", str(file)), ("scene.start", "file"), ("seed", 7))
    for number, command in ((3, Patch(changes)), (4, Reset())):
        session.plan(number, command)
    session.run(until=6)
    assert session.state.step == 6
    assert session.effective.seed == 0, "the next reset would have brought it"
    assert any(isinstance(e, Rejected) and "cannot be read" in e.reason for e in session.events.since(0)[0])


def test_bad_start_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    from sdlab.live.messages import Patch, Rejected, Stop

    session = Session(mixture(n_init=50))
    session.prepare()
    for command in (Patch((("scene.file", str(tmp_path / "no")), ("scene.start", "file"))), Stop()):
        session.send(command)
    session.run(start=False)
    told = [e for e in session.events.since(0)[0] if isinstance(e, Rejected)]
    assert any("cannot be read" in e.reason for e in told)
    assert session.settings.scene == mixture(n_init=50).scene
    assert len(session.state.scene.params["means"]) == 50
