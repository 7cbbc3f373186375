"""`python -m sdlab metrics` on runs whose answer is known by construction."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tiny_clouds
import tiny_meshes
import tiny_models
import torch
from scipy.spatial import cKDTree

from sdlab.cli import main
from sdlab.experiments import measure
from sdlab.experiments.references import prior_images
from sdlab.experiments.run_folders import Made, load
from sdlab.live import checkpoint
from sdlab.metrics import networks, t3bench
from sdlab.metrics.distances import fid
from sdlab.settings import preset
from sdlab.toybox import judge
from sdlab.toybox.surface import object_points

SMALL = ("prior.images=8", "prior.null_images=8", "prior.candidates=0")  # all in float64, without compiling
COUNT = 4000  # Gaussians of an object
CPU = torch.device("cpu")


def run(name: str, out: Path, *assignments: str, seed: int = 0) -> Path:
    """Take one step, and return the folder."""
    sets = [part for text in assignments for part in ("--set", text)]
    arguments = ["run", name, *sets, "--steps", "1", "--seed", str(seed), "--out", str(out), "--size", "16"]
    assert main(arguments) == 0
    return out


def loaded(folder: Path) -> Made:
    return load(folder, CPU, lambda config: config.load(CPU))


def lit(at: np.ndarray, rgbs: np.ndarray) -> np.ndarray:
    """Return the colours of surface points under a light from above: the judge knows no unlit objects."""
    tree = cKDTree(at)
    near = at[tree.query(at, 24)[1]]
    normals = np.linalg.svd(near - near.mean(1, keepdims=True), full_matrices=False)[2][:, 2]
    outwards = at - at[tree.query(at, 400)[1]].mean(1)
    up = normals[:, 2] * np.sign((normals * outwards).sum(1))
    return rgbs * (0.575 + 0.425 * np.clip(0.8 * up + 0.6 * np.sqrt(1 - up**2), 0, 1))[:, None]


def janus(at: np.ndarray, rgbs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points around the front three times, a third of a turn apart, and nothing else."""
    front = np.abs(np.degrees(np.arctan2(at[:, 1], at[:, 0]))) < 60
    parts = []
    for degrees in (0, 120, 240):
        c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        parts.append(at[front] @ np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]]))
    return np.concatenate(parts), np.tile(rgbs[front], (3, 1))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A robot with one front and one with three, as folders of runs that have hardly left their start."""
    base = tmp_path_factory.mktemp("runs")
    at, rgbs = object_points("a red robot", COUNT, np.random.default_rng(0))
    cloud = at, lit(at, rgbs)
    found = {}
    for name, (points, colours) in {"one": cloud, "three": janus(*cloud)}.items():
        file = base / f"{name}.ply"
        columns = {**tiny_clouds.positions(points), **tiny_clouds.colours(colours, "u1", top=255)}
        file.write_bytes(tiny_clouds.ply(columns))
        start = ("scene.start=file", f"scene.file={file}", f"scene.n_init={COUNT}", f"scene.max_gaussians={COUNT}")
        looks = ("scene.opacity_init=0.95", "scene.radius=0.95", "prompt.text=a red robot")
        found[name] = run("gallery", base / name, *start, *looks, *SMALL)
    return found


def measured(*arguments: object, capsys: pytest.CaptureFixture, folder: Path) -> tuple[dict, str, str]:
    """Return the JSON, stdout and stderr of the command."""
    capsys.readouterr()
    assert main(["metrics", *map(str, arguments), "--json", str(folder / "metrics.json")]) == 0
    out, err = capsys.readouterr()
    return json.loads((folder / "metrics.json").read_text()), out, err


def test_an_object_with_one_front_and_one_with_three(made, tmp_path, capsys):
    found, out, err = measured(made["one"], made["three"], "--references", 24, capsys=capsys, folder=tmp_path)
    one, three = found["runs"]
    assert (one["fronts"], one["faces"]) == (3, 1), "3 of 12 views lie within 45 degrees of the front"
    assert (three["fronts"], three["faces"]) == (9, 3)
    assert one["object"] > 0.9
    assert one["colour"] == three["colour"] == 1
    assert one["iv_view"] == pytest.approx(1.04, abs=0.1), "three fronts, three backs and six sides"
    assert one["iv_view"] > three["iv_view"]
    assert one["iq_view"] < one["iv_view"]
    assert one["fid"] > 0
    assert found["groups"] == []
    head, *lines = [line for line in out.splitlines() if line.strip()]
    assert "fronts/12" in head
    assert "T3" not in head, "only what was measured"
    assert str(made["three"]) in lines[1]
    assert re.search(r"264/264 \[\d\d:\d\d<\d\d:\d\d", err), "24 references for both, and the time left"


def test_one_view_in_twelve_is_enough_to_count(made):
    run = loaded(made["one"])
    few = measure.Measurer(measure.Tools(), measure.Wanted(12, 0)).measure(run).row
    many = measure.Measurer(measure.Tools(), measure.Wanted(36, 0)).measure(run).row
    assert (few["fronts"], few["faces"]) == (many["fronts"], many["faces"])
    assert "fid" not in few, "no references"


def test_t3bench_prefers_the_object_that_was_asked_for(made, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(t3bench, "FIELDS_OF_VIEW", (45.0,))
    found, _, _ = measured(made["one"], "--t3bench", "--views", 12, "--references", 0, capsys=capsys, folder=tmp_path)
    (robot,) = found["runs"]
    assert robot["quality_lite"] > 70
    assert robot["alignment_lite"] == 5
    run = loaded(made["one"])
    other = run._replace(settings=run.settings.patch("prompt.text", "a blue car"))
    asked = measure.Measurer(measure.Tools(), measure.Wanted(12, 0, t3bench=True)).measure(other).row
    assert asked["quality_lite"] < 10
    assert asked["alignment_lite"] == 1
    assert (asked["object"], asked["colour"]) == (0, 0)


def test_other_networks_rate_and_describe_in_place_of_the_judge(made, monkeypatch):
    monkeypatch.setattr(t3bench, "FIELDS_OF_VIEW", (45.0,))

    class Rates:
        def score(self, prompt, image):
            assert (prompt, image.size) == ("a red robot", (64, 64))
            return 0.5

    class Describes:
        shown = 0

        def __call__(self, images, return_tensors):
            self.shown += 1
            return {}

        def generate(self, max_new_tokens):
            return [0]

        def batch_decode(self, tokens, skip_special_tokens):
            return ["a red thing"]

    describes = Describes()
    reward, captioner = networks.Reward(Rates()), networks.Captioner(describes, describes)
    tools = dataclasses.replace(measure.Tools(), reward=reward, captioner=captioner)
    row = measure.Measurer(tools, measure.Wanted(12, 0, t3bench=True)).measure(loaded(made["one"])).row
    assert row["quality"] == pytest.approx(60)
    assert row["alignment"] == pytest.approx(3), "one of two words"
    assert describes.shown == 12
    assert "quality_lite" not in row


def test_clip_tells_the_prompt_from_others(made, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("a blue car\n\na green cat\n")
    arguments = ("--clip", tiny_models.clip(tmp_path / "clip"), "--prompts", tmp_path / "prompts.txt")
    found, out, _ = measured(made["one"], *arguments, "--views", 12, "--references", 0, capsys=capsys, folder=tmp_path)
    (row,) = found["runs"]
    assert -1 <= row["clip"] <= 1
    assert 0 <= row["r_precision"] <= 1
    assert 0 <= row["iq_clip"] <= row["iv_clip"] + 1e-6
    assert "R-prec %" in out


# ---- seeds -----------------------------------------------------------------------------------------------------------


def test_seeds_form_a_group_and_copies_of_a_run_are_no_seeds(tmp_path, capsys):
    file = tmp_path / "flat.toml"
    file.write_text(
        '[prior]\nkind = "gallery"\nsize = 32\n[scene]\nkind = "image"\nn = 3\n[prompt]\ntext = "a red robot"\n'
    )
    seeds = [run(str(file), tmp_path / str(seed), *SMALL, seed=seed) for seed in (0, 1)]
    again = run(str(file), tmp_path / "again", *SMALL)
    found, out, _ = measured(seeds[0], again, seeds[1], "--references", 8, capsys=capsys, folder=tmp_path)
    (group,) = found["groups"]
    assert group["seeds"] == [0, 1]
    assert group["diversity"] > 0
    assert group["diversity_pixels"] > 0.05
    assert group["saturation"] == pytest.approx(np.mean([row["saturation"] for row in found["runs"][1:]]))
    assert all("fronts" not in row and row["diversity_pixels"] > 0 for row in found["runs"]), "images have no sides"
    assert "mean of 2 seeds" in out
    assert [row["seed"] for row in found["runs"]] == [0, 0, 1]
    assert not measured(seeds[0], again, "--references", 0, capsys=capsys, folder=tmp_path)[0]["groups"]


def test_the_priors_images_have_no_distance_to_themselves(made):
    run = loaded(made["one"])
    own = prior_images(run.prior, "a red robot", 40)
    assert own.shape == (40, 3, 64, 64)
    features = judge.features(judge.load(), own)
    assert fid(features, features) == pytest.approx(0, abs=1e-6)
    shown = judge.read(judge.load(), own)
    assert sum(truth.object == "robot" and truth.colour == "red" for truth in shown) >= 38


# ---- what is not measured --------------------------------------------------------------------------------------------


def test_folders_that_are_no_runs_are_named_and_the_others_measured(made, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    folders = [tmp_path / "empty", tmp_path / "none", made["one"]]
    assert main(["metrics", *map(str, folders), "--views", "12", "--references", "0"]) == 2
    out, err = capsys.readouterr()
    said = [line for line in err.splitlines() if line.startswith("sdlab: ")]
    assert len(said) == 2
    assert "empty is not the folder of a run" in said[0]
    assert "none: there is no such folder" in said[1]
    assert len(out.splitlines()) == 2


def test_a_run_in_the_plane_has_no_images(tmp_path, capsys):
    plane = run("playground", tmp_path / "plane")
    capsys.readouterr()
    assert main(["metrics", str(plane)]) == 2
    out, err = capsys.readouterr()
    assert "is a run of points in the plane: it has no images to measure" in err
    assert out == ""


def test_an_illusion_has_more_than_one_prompt(made, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "settings_of", lambda saved: preset("illusion"))
    assert main(["metrics", str(made["one"])]) == 2
    assert "is a run of an illusion, whose views have prompts of their own" in capsys.readouterr().err


def test_without_a_judge_only_what_is_known_is_printed(tmp_path, capsys):
    blob = run("mixture", tmp_path / "blob", "scene.n_init=40", "scene.max_gaussians=60")
    found, out, _ = measured(blob, "--views", 12, "--t3bench", capsys=capsys, folder=tmp_path)
    (row,) = found["runs"]
    assert row.keys() == {"run", "prompt", "loss", "seed", "steps", "saturation", "sharpness"}
    assert out.splitlines()[0].split() == ["run", "saturat.", "sharpn."]


def test_a_run_whose_prior_is_gone_is_measured_without(tmp_path):
    def gone(config):
        raise OSError("gone")

    blob = load(run("mixture", tmp_path / "blob", "scene.n_init=40", "scene.max_gaussians=60"), CPU, gone)
    assert blob.prior is None
    assert "measured without its prior, which cannot be loaded: gone" in blob.note
    assert measure.Measurer(measure.Tools(), measure.Wanted(12)).measure(blob).shown.shape == (12, 3, 64, 64)


def test_a_mesh_that_the_prior_knows_gives_psnr(tmp_path, capsys):
    tiny_meshes.write_robot(tmp_path / "robot.glb")
    mesh = (f"prior.path={tmp_path / 'robot.glb'}", "prior.source=mesh", "prior.size=16", "scene.n_init=80")
    made = run("gallery", tmp_path / "run", *mesh, *SMALL, "prompt.text=a robot")
    found, _, _ = measured(made, "--views", 12, "--references", 0, capsys=capsys, folder=tmp_path)
    (row,) = found["runs"]
    assert row["psnr"] == json.loads((made / "result.json").read_text())["psnr_to_truth"]
    assert "object" not in row, "the judge does not know a mesh"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "RUN: give at least one folder"),
        (["x", "--reward", "y"], "--reward has an effect only with --t3bench"),
        (["x", "--prompts", "y"], "--prompts has an effect only with --clip"),
        (["x", "--clip", "/no/where"], "--clip /no/where: there is no such file or folder"),
        (["x", "--t3bench", "--captioner", "/no/where"], "no config.json is in it"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(arguments, said, capsys):
    assert main(["metrics", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.strip().splitlines()) == 1


def test_views_are_a_multiple_of_twelve(capsys):
    with pytest.raises(SystemExit):
        main(["metrics", "x", "--views", "100"])
    assert "'100' is not a multiple of 12" in capsys.readouterr().err


def test_features_tell_damage_and_objects_apart(tmp_path, capsys):
    assert main(["bench", "features", "--quick", "--out", str(tmp_path / "features.json")]) == 0
    rows = json.loads((tmp_path / "features.json").read_text())["rows"]
    by = {(row["object"], row["against"]): row["fid"] for row in rows}
    for name in ("bear", "car", "teapot"):
        other = min(value for (own, against), value in by.items() if own == name and against.startswith("a "))
        assert by[name, "as they are"] < by[name, "blurred, 5 pixels"] < other
        assert by[name, "as they are"] < by[name, "noised, 0.15"] < other
    assert "KID x1000" in capsys.readouterr().out


def test_lists_of_prompts_are_printed(capsys):
    assert main(["metrics", "--list", "multiple"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 100
