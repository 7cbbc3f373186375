"""The mesh source of a gallery: which images a prompt stands for, and how they are drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_meshes
import torch
import trimesh

from sdlab.cameras import CameraSettings, degrees_from_front, turntable, view_word
from sdlab.cli import main
from sdlab.meshes import draw
from sdlab.pictures import psnr
from sdlab.priors.gallery import GalleryPrior
from sdlab.priors.sources import mesh as source
from sdlab.priors.sources.mesh import MeshSource
from sdlab.toybox.words import DESCRIPTORS, VIEW_NAMES, VIEW_PHRASES, VIEW_WORDS
from sdlab.types import Cameras

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_meshes.write_robot(tmp_path_factory.mktemp("meshes") / "toy_robot.glb")


@pytest.fixture(scope="module")
def robot(path: Path) -> MeshSource:
    return MeshSource(path, "prior.path")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[Cameras]:
    """The cameras of all images that are drawn."""
    found: list[Cameras] = []
    render = draw.render

    def watched(mesh: Any, cams: Cameras, *args: Any) -> tuple[np.ndarray, np.ndarray]:
        found.append(cams)
        return render(mesh, cams, *args)

    monkeypatch.setattr(draw, "render", watched)
    return found


# ---- reading a text


@pytest.mark.parametrize("view", VIEW_WORDS)
def test_every_wording_of_a_view_has_one_key(robot: MeshSource, view: str) -> None:
    for wording in (view, *VIEW_NAMES[view], *VIEW_PHRASES[view]):
        assert robot.key(f"a shiny dragon, {wording}") == robot.key(f"{wording.upper()} of a dragon") == view


def test_descriptors_make_the_key_in_any_order_and_wording(robot: MeshSource) -> None:
    key = robot.key("a robot, blurry, foggy, front view")
    assert key == robot.key("front view, misty, out of focus") != robot.key("front view")
    assert robot.key("foggy") not in (key, "")
    assert robot.key("") == robot.key("a robot") == robot.key("a detailed photo of a robot, high quality") == ""
    assert robot.key("a robot, bad structure, malformed") == "", "cannot be shown"
    assert robot.key("low quality") == robot.key(", ".join(DESCRIPTORS))
    assert robot.key("low quality, blurry") == robot.key("blurry")
    assert robot.key("back view, front view") == "back view"


def test_remark_names_only_words_without_effect(robot: MeshSource) -> None:
    for text in ("", "a toy robot", "a photo of the robot, seen from behind, blurry", "low quality, detailed"):
        assert robot.remark(text) == "", text
    said = robot.remark("a fluffy dragon, front view, malformed, bad anatomy")
    assert said.startswith("'fluffy', 'dragon' have no effect: this gallery shows toy_robot.glb whatever")
    assert "front view, side view, back view, overhead view" in said
    assert "blurry" in said
    assert "not shown: 'bad structure', 'malformed', because" in said
    assert "\n" not in said
    assert "'side view', because 'front view' is said already" in robot.remark("front view, side view")
    many = robot.remark(" ".join(f"word{i}" for i in range(40)) + " " + "x" * 250)
    assert "and 33 more have no effect" in many
    assert len(many) < 600


# ---- drawing


def test_images_are_a_function_of_seed_key_and_index(robot: MeshSource) -> None:
    for key in ("", "front view", "side view/blurry,noisy"):
        many = robot.draw(key, 70, 16, 3)
        assert many.dtype == torch.uint8
        assert many.shape == (70, 4, 16, 16)
        assert torch.equal(many[:66], robot.draw(key, 66, 16, 3)), "another split into chunks"
        other = robot.draw(key, 66, 16, 4)
        assert (many[:66] != other).flatten(1).any(1).all()
        assert len(many.unique(dim=0)) == 70
    assert robot.available("") is None


def test_premultiplied_colours_fit_their_coverage(robot: MeshSource) -> None:
    images = robot.draw("", 20, 32, 0)
    assert (images[:, :3] <= images[:, 3:]).all()
    assert (images[:, 3] == 0).any()
    assert (images[:, 3] == 255).any()
    assert 0.02 < images[:, 3].float().mean() / 255 < 0.5
    whole = robot.draw("/foggy", 20, 32, 0)
    assert (whole[:, 3] == 255).all(), "a filter covers the whole image"


@pytest.mark.parametrize("view", VIEW_WORDS)
def test_view_word_chooses_the_cameras(robot: MeshSource, seen: list[Cameras], view: str) -> None:
    robot.draw(view, 400, 16, 0)
    azimuth, elevation, distance = (
        torch.cat([getattr(c, name) for c in seen]).numpy() for name in ("azimuth", "elevation", "distance")
    )
    assert len(azimuth) == 400
    if view == "overhead view":
        assert np.ptp(azimuth) > 330
        assert 55 <= elevation.min() < 60
        assert 85 < elevation.max() <= 88
    else:
        assert {view_word(a, 0.0) for a in azimuth.tolist()} == {view}
        assert -20 <= elevation.min() < -10
        assert 40 < elevation.max() <= 50
        centre = {"front view": 0, "side view": 90, "back view": 180}[view]
        off = [abs(degrees_from_front(a) - centre) for a in azimuth.tolist()]
        assert 35 < max(off) <= 40
    assert distance.min() == pytest.approx(2.8, abs=0.02)
    assert distance.max() == pytest.approx(3.1, abs=0.02)


def test_without_a_view_word_all_sides_are_as_frequent(robot: MeshSource, seen: list[Cameras]) -> None:
    robot.draw("", 2000, 16, 0)
    azimuth, elevation = (torch.cat([getattr(c, name) for c in seen]).numpy() for name in ("azimuth", "elevation"))
    quarters = np.histogram(azimuth % 360, 8, (0, 360))[0]
    assert (np.abs(quarters - 250) < 60).all()
    assert elevation.min() < -15
    assert (elevation > 55).mean() == pytest.approx(source.OVERHEAD_SHARE, abs=0.03)
    assert 80 < elevation.max() <= 88


def yellow(robot: MeshSource, key: str) -> np.ndarray:
    """Return how many pixels of each of 60 images show the yellow of the chest, which only the front has."""
    images = robot.draw(key, 60, 32, 0)[:, :3].numpy().astype(int)
    return ((images[:, 0] > 130) & (images[:, 1] > 100) & (images[:, 2] < 70)).sum((1, 2))


def test_front_shows_the_chest_and_back_does_not(robot: MeshSource) -> None:
    front = yellow(robot, "front view")
    assert front.min() >= 1
    assert front.mean() > 5
    assert yellow(robot, "back view").max() == 0


def test_turn_and_up_show_another_side(path: Path) -> None:
    turned = MeshSource(path, "prior.path", turn=180.0)
    assert yellow(turned, "front view").max() == 0
    assert yellow(turned, "back view").mean() > 5
    lying = MeshSource(path, "prior.path", up="z").mesh.vertices
    assert np.ptp(lying, axis=0).argmax() != 2


def test_descriptors_spoil_the_images(robot: MeshSource) -> None:
    def contrast(key: str) -> float:
        images = robot.draw(key, 60, 32, 0).float() / 255
        rgb = images[:, :3] + 1 - images[:, 3:]
        return float((rgb[..., 1:] - rgb[..., :-1]).abs().mean())

    plain = contrast("front view")
    assert contrast("front view/blurry") < 0.5 * plain
    assert contrast("front view/noisy") > 2 * plain
    foggy = robot.draw("/foggy", 60, 32, 0)[:, :3].float()
    assert foggy.flatten(1).min(1).values.mean() > robot.draw("/oversaturated", 60, 32, 0)[:, :3].float().min()
    both = robot.draw("/blurry,noisy", 60, 16, 0).float()
    rough = (both[..., 1:] - both[..., :-1]).abs().mean((1, 2, 3))
    assert rough.min() < 5 < 15 < rough.max(), "some are blurry only, some noisy"


def test_drawing_tells_how_far_it_is(robot: MeshSource) -> None:
    told: list[tuple[int, int]] = []
    robot.draw("", 150, 16, 0, lambda done, total: told.append((done, total)))
    assert told == [(64, 150), (128, 150), (150, 150)]
    assert robot.draw("", 0, 16, 0).shape == (0, 4, 16, 16)


def test_identity_names_content_and_pose(path: Path, tmp_path: Path, robot: MeshSource) -> None:
    copy = tmp_path / "copy.glb"
    copy.write_bytes(path.read_bytes())
    assert MeshSource(str(copy), "prior.path").identity == robot.identity
    others = [
        MeshSource(path, "prior.path", **kwargs).identity for kwargs in ({"up": "z"}, {"turn": 90.0}, {"radius": 0.5})
    ]
    copy.write_bytes(path.read_bytes() + bytes(4))
    assert len({robot.identity, *others, MeshSource(copy, "prior.path").identity}) == 5
    assert robot.name == "mesh toy_robot.glb"


def test_bad_file_names_the_knob(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prior\.path = '.*nowhere\.glb' cannot be read: No such file"):
        MeshSource(tmp_path / "nowhere.glb", "prior.path")
    for impossible in ("a\0b", "~nobody by this name/x.glb"):
        with pytest.raises(ValueError, match=r"prior\.path = .* is no path: "):
            MeshSource(impossible, "prior.path")
    (tmp_path / "empty.glb").touch()
    with pytest.raises(ValueError, match=r"prior\.path = '.*empty\.glb' is empty: a mesh as GLB, OBJ"):
        MeshSource(str(tmp_path / "empty.glb"), "prior.path")


# ---- as a prior


def test_what_was_not_read_of_a_mesh_is_said(tmp_path: Path, path: Path) -> None:
    (tmp_path / "box.stl").write_bytes(trimesh.creation.box().export(file_type="stl") + b"\r\n")
    said = MeshSource(tmp_path / "box.stl", "prior.path").note
    assert said.endswith("box.stl': 2 bytes after its triangles are ignored")
    assert said.startswith("prior.path = ")
    assert MeshSource(path, "prior.path").note == ""


def test_exact_score_near_an_image_leads_to_it(path: Path, robot: MeshSource) -> None:
    prior = GalleryPrior(source="mesh", path=str(path), size=32, images=64, null_images=64).load(CPU)
    images = robot.draw("front view", 64, 32, 0)[5].float() / 255
    z0 = (2 * (images[:3] + 0.5 * (1 - images[3])) - 1)[None]  # in front of grey
    t = torch.tensor([100])
    alpha, sigma = prior.marginal(t)
    noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(0))
    z_t = alpha * z0 + sigma * noise
    eps = prior.eps(z_t, t, prior.embed("a toy robot, front view"))
    found = (z_t - sigma * eps) / alpha
    assert (found - z0).abs().mean() < 0.02
    other = (z_t - sigma * prior.eps(z_t, t, prior.embed("a toy robot, back view"))) / alpha
    assert (other - z0).abs().mean() > 0.05


def test_a_run_says_how_close_it_came_to_the_mesh(tmp_path, capsys):
    tiny_meshes.write_robot(tmp_path / "robot.glb")
    small = ["prior.size=16", "prior.images=40", "prior.null_images=40", "scene.n_init=80", "losses.sds.cfg=1"]
    assignments = [f"prior.path={tmp_path / 'robot.glb'}", "prior.source=mesh", "prompt.text=a robot", *small]
    found = []
    for steps in (1, 60):
        out = tmp_path / f"out {steps}"
        sets = [part for text in assignments for part in ("--set", text)]
        assert main(["run", "gallery", *sets, "--steps", str(steps), "--out", str(out)]) == 0
        found.append(json.loads((out / "result.json").read_text())["psnr_to_truth"])
        assert f"{found[-1]} dB PSNR to the mesh's own renders" in capsys.readouterr().out
    assert found[1] > found[0] + 2


def test_a_turned_mesh_shows_another_side(tmp_path):
    tiny_meshes.write_robot(tmp_path / "robot.glb")
    front, back = (
        MeshSource(tmp_path / "robot.glb", "prior.path", turn=turn).truth(turntable(2, CameraSettings(), 32))
        for turn in (0.0, 180.0)
    )
    assert psnr(front, back.flip(0)).min() > 25
    assert psnr(front, back).max() < 25
