"""Scenes in the prior's own space: images, points of the plane, a fitted Gaussian."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdlab.cli import main
from sdlab.live.messages import Patch, Rejected, Stop
from sdlab.live.session import Session
from sdlab.pictures import grid
from sdlab.plane import SIZE, draw_plane, pixels_of, shares
from sdlab.priors.mixture import PLACES, MixturePrior
from sdlab.priors.plane_network import TrainedPlane
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene, require_camera_scene
from sdlab.scenes.illusion import Illusion
from sdlab.scenes.image import Images
from sdlab.scenes.points import Points
from sdlab.settings import Settings, from_toml, losses, preset, scenes, to_toml

CPU = torch.device("cpu")


def pictures(**scene) -> Settings:
    """Return settings for 16 x 16 images under exact scores."""
    base = dataclasses.replace(preset("mixture"), scene=Images(n=2))
    return base.patch_all(
        [("steps", 30), ("prompt.view_dependent", False), *((f"scene.{k}", v) for k, v in scene.items())]
    )


def plane(name: str = "playground", **scene) -> Settings:
    return preset(name).patch_all([("steps", 30), *((f"scene.{k}", v) for k, v in scene.items())])


def ran(s: Settings, until: int | None = None) -> Session:
    session = Session(s)
    session.run(until=until or s.steps)
    return session


@pytest.fixture(scope="module")
def eight():
    return MixturePrior(layout="eight", schedule="linear").load(CPU)


# ---- every flat scene ------------------------------------------------------------------------------------------------

FLAT = {
    "image": pictures(),
    "points": plane(n=12),
    "gaussian": plane("playground-gaussian", n=16),
    "illusion": dataclasses.replace(pictures(), scene=Illusion(n=1)),
}


def test_each_kind_of_scene_is_tried_here_or_elsewhere():
    assert {"splats", "field", *FLAT} == set(scenes())


@pytest.mark.parametrize("kind", FLAT)
@pytest.mark.parametrize("loss", sorted(losses()))
def test_every_loss_moves_it(kind, loss):
    s = FLAT[kind].patch_all([("active", loss), ("steps", 4)])
    warm_up = f"losses.{loss}.warm_up"
    if warm_up in s.knobs():
        s = s.patch(warm_up, 3)
    session = Session(s)
    session.prepare()
    assert isinstance(session.state.scene, FlatScene)
    before = {k: v.clone() for k, v in session.state.scene.state_dict().items() if k in s.scene.parameters}
    session.run(until=4)
    assert session.state.step == 4
    assert session.state.skipped == 0
    after = session.state.scene.state_dict()
    moved = [float((after[name] - before[name]).abs().max()) for name in before]
    if losses()[loss].needs_reference:  # source and target prompt are equal, so there is nothing to edit
        assert max(moved) < 1e-6
    elif loss != "sbp" or kind in ("image", "illusion"):  # on the plane, source and target prompt name the same place
        assert max(moved) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLAT)
def test_a_resumed_run_equals_one_in_one_go(kind, tmp_path):
    whole = ran(FLAT[kind])
    half = ran(FLAT[kind], until=12)
    half.save(tmp_path)
    again = Session(FLAT[kind])
    again.prepare()
    again.restore(tmp_path)
    again.run(until=FLAT[kind].steps)
    expected = whole.state.scene.state_dict()
    for name, tensor in again.state.scene.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("kind", FLAT)
def test_settings_survive_a_file(kind):
    assert from_toml(to_toml(FLAT[kind])) == FLAT[kind]


@pytest.mark.parametrize("kind", FLAT)
def test_frames_hold_pictures_and_no_splats(kind):
    session = ran(FLAT[kind])
    frame = session.latest.get()
    assert frame.scene is None
    assert frame.preview.dtype == np.uint8
    assert len(frame.views) == len(frame.preview) == (2 if kind in ("image", "illusion") else 1)
    assert frame.preview.std() > 1
    assert "n_gaussians" not in frame.stats


@pytest.mark.slow
@pytest.mark.parametrize("kind", FLAT)
def test_it_leaves_its_results(kind, tmp_path, monkeypatch):
    monkeypatch.setattr("sdlab.scenes.illusion.FILM_SIZE", 32)
    file = tmp_path / "settings.toml"
    file.write_text(to_toml(FLAT[kind].patch("steps", 5)), encoding="utf-8")
    assert main(["run", str(file), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    names = {p.name for p in (tmp_path / "run").iterdir() if p.suffix in (".png", ".gif")}
    expected = {
        "image": {"pictures.png", "picture-00.png", "picture-01.png"},
        "points": {"trajectories.png", "beside-sds.png", "control-variate.png"},
        "gaussian": {"samples.png"},
        "illusion": {"pictures.png", "picture-00.png", "picture-01.png", "turn.gif"},
    }
    assert names == expected[kind]
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 5
    assert main(["resume", str(tmp_path / "run"), "--steps", "7", "--device", "cpu"]) == 0
    assert main(["sheet", str(tmp_path / "run"), "--out", str(tmp_path / "sheet.png")]) == 0
    assert Image.open(tmp_path / "sheet.png").height > 20


def test_benches_of_objects_refuse_it():
    scene = ran(FLAT["image"], until=1).state.scene
    with pytest.raises(ValueError, match=r"scene\.kind: this needs a scene seen through cameras.*, not ImageScene"):
        require_camera_scene(scene)


def test_its_state_must_fit():
    scene = ran(FLAT["image"], until=1).state.scene
    with pytest.raises(ValueError, match=r"latents is missing; expected shape \(2, 3, 16, 16\)"):
        scene.load_state_dict({})
    with pytest.raises(ValueError, match=r"latents has shape \(1, 3, 16, 16\)"):
        scene.load_state_dict({"latents": torch.zeros(1, 3, 16, 16)})


# ---- images ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sds_brings_pictures_to_the_mixture():
    s = pictures().patch_all(
        [("steps", 300), ("optim.lr_latents", 0.05), ("losses.sds.cfg", 1.0), ("optim.decay", 0.01)]
    )
    session = ran(s)
    mixture = session.prior.mixture(s.prompt.text)
    latents = session.state.scene.params["latents"].detach().double()
    distance = (latents[:, None] - mixture.means[None]).square().mean((2, 3, 4)).sqrt()
    centre = (latents - mixture.means.mean(0)).square().mean((1, 2, 3)).sqrt()
    assert float(torch.minimum(distance.min(1).values, centre).max()) < 0.3, "at a mode or at the common centre"
    start = s.scene.build(StepRng(0, -1), CPU, session.prior, "").params["latents"]
    assert float(start.std()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("views", [1, 3])
def test_the_number_of_pictures_is_the_batch_whatever_the_cameras(views):
    s = pictures(n=5).patch("camera.views", views)
    session = ran(s, until=2)
    assert session.state.scene.latents(StepRng(0, 0), session.prior).shape == (5, 3, 16, 16)


def test_a_picture_to_start_from(tmp_path):
    wide = np.zeros((30, 60, 3), np.uint8)
    wide[:, 10:50] = (255, 0, 0)
    file = tmp_path / "red.png"
    Image.fromarray(wide).save(file)
    session = Session(pictures(n=1, picture=str(file)).patch("scene.start", "picture"))
    session.prepare()
    shown = session.state.scene.pictures(session.prior, session.bank.prompt(session.effective.prompt))
    assert shown.shape == (1, 16, 16, 3)
    assert tuple(shown[0, 8, 8]) == (255, 0, 0)
    assert tuple(shown[0].reshape(-1, 3).min(0)) == (255, 0, 0), "the central square is all red"


def test_several_from_one_picture_are_not_equal():
    session = Session(pictures(start="grey", n=3))
    session.prepare()
    one, other, _ = session.state.scene.params["latents"].detach()
    assert 0.05 < float((one - other).std()) < 0.3


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "cannot be read"), (b"no picture", "is not an image: use PNG, JPEG or WebP"), (b"", "is not an image")],
)
def test_a_bad_picture_is_named(tmp_path, content, reason):
    file = tmp_path / "x.png"
    if content is not None:
        file.write_bytes(content)
    s = pictures(picture=str(file)).patch("scene.start", "picture")
    with pytest.raises(ValueError, match=rf"scene\.picture = .*x\.png.*{reason}"):
        Session(s).run(until=1)


def test_a_picture_is_asked_for():
    with pytest.raises(ValueError, match=r"scene\.start = picture: scene\.picture must be the path"):
        pictures(start="picture")


def test_a_prior_of_another_shape_is_refused_and_the_run_goes_on():
    session = Session(pictures())
    session.plan(3, Patch((("prior.height", 8), ("prior.width", 8))))
    said = []
    session.listen(lambda e: said.append(e) if isinstance(e, Rejected) else None)
    session.run(until=6)
    assert session.state.step == 6
    assert "looks at (3, 8, 8)" in said[0].reason
    assert session.settings.prior.height == 16


def test_grid_is_nearly_square_and_keeps_every_picture():
    five = np.stack([np.full((4, 6, 3), 40 * k, np.uint8) for k in range(5)])
    sheet = grid(five, gap=1)
    assert sheet.shape == (9, 20, 3)
    assert [int(sheet[r, c, 0]) for r, c in ((0, 0), (0, 7), (0, 14), (5, 0), (5, 7), (5, 14))] == [
        0,
        40,
        80,
        120,
        160,
        255,
    ]


# ---- the plane -------------------------------------------------------------------------------------------------------


def test_the_eight_are_those_of_the_paper(eight):
    everything = eight.mixture("whatever")
    assert torch.allclose(everything.means.flatten(1).norm(dim=1), torch.ones(8, dtype=torch.float64))
    assert everything.stds.tolist() == [0.1] * 8
    angles = sorted(math.degrees(math.atan2(y, x)) % 360 for x, y in everything.means.flatten(1).tolist())
    assert angles == pytest.approx([45.0 * k for k in range(8)])
    alpha, _ = eight.marginal(torch.tensor([0]))
    assert float(alpha) ** 2 == pytest.approx(1 - 1e-4, abs=1e-7), "linear betas from 1e-4"


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("north east", "north east"),
        ("a point in the NORTH-WEST", "north west"),
        ("southeast, please", "south east"),
        ("north", "north"),
        ("all of them", ""),
        ("", ""),
    ],
)
def test_a_text_names_a_place(eight, text, place):
    assert eight.place_in(text) == place
    known = {**PLACES["eight"], "": None}
    assert place in known
    assert len(eight.mixture(text).weights) == (1 if place else 8)
    assert ("this plane knows east, west" in eight.remark(text)) == (not place and text != "")


def test_the_four_have_their_weights():
    four = MixturePrior(layout="four").load(CPU).mixture("")
    assert four.weights.tolist() == [0.4, 0.3, 0.2, 0.1]


def test_points_need_a_plane():
    s = dataclasses.replace(preset("mixture"), scene=Points())
    with pytest.raises(ValueError, match=r"scene\.kind = points needs a prior of points in the plane.*\(3, 16, 16\)"):
        Session(s).run(until=1)


def test_training_needs_a_plane():
    with pytest.raises(ValueError, match=r"prior\.scores = trained: needs a plane"):
        MixturePrior(scores="trained")


def test_the_way_is_kept_and_drawn(eight):
    session = ran(plane(n=7))
    way = session.state.scene.way
    assert way.shape == (31, 7, 2)
    assert np.allclose(way[0], (-1.0, 1.0))
    picture = draw_plane(eight, eight.embed("north west"), way)
    assert picture.shape == (SIZE, SIZE, 3)
    x, y = pixels_of(way[-1])[0].round().astype(int)
    red, green, _ = picture[y, x].astype(int)
    assert red > 180 > green, f"a red dot at {x}, {y}"
    x, y = pixels_of(np.array([-math.sqrt(0.5), math.sqrt(0.5)])).round().astype(int)
    clear = draw_plane(eight, eight.embed("north west"), np.full((1, 1, 2), 1.5))
    assert clear[y, x, 2] > clear[y, x, 0] + 60, "the Gaussian named in the prompt is blue"


def test_shares_count_what_is_near():
    means, stds = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([0.1, 0.1])
    ends = torch.tensor([[0.1, 0.0], [0.9, 0.1], [1.0, 0.0], [0.5, 0.0]])
    assert shares(means, stds, ends) == [0.25, 0.5]


@pytest.mark.slow
def test_a_small_network_learns_the_plane(eight):
    said = []
    learnt = TrainedPlane(eight, said.append, epochs=150)
    one, again = (TrainedPlane(eight, said.append, epochs=5) for _ in range(2))
    assert "0 %" in said[0]
    t = torch.full((400,), 500)
    alpha, sigma = eight.marginal(t)
    g = torch.Generator().manual_seed(1)
    centre = eight.mixture("").means[torch.randint(8, (400,), generator=g)].float()
    z_t = alpha * centre + sigma * torch.randn(400, 2, 1, 1, generator=g)
    for text in ("north east", ""):
        answers = []
        for prior in (eight, learnt, one, again):
            cond = prior.embed(text)
            many = cond._replace(
                hidden=cond.hidden.expand(400, -1, -1), extra={k: v.expand(400) for k, v in cond.extra.items()}
            )
            answers.append(prior.eps(z_t, t, many))
        exact, found, *short = answers
        assert torch.equal(*short), "the same from the same seed"
        assert torch.corrcoef(torch.stack([exact.flatten(), found.flatten()]))[0, 1] > 0.98


@pytest.mark.nightly
def test_the_entropy_gives_a_fit_its_width():
    """Reverse KL with the score of q itself makes q cover the target; with the samples' own scores q shrinks."""
    base = plane("playground-gaussian").patch_all([("steps", 1200), ("scene.n", 96)])
    widths = {}
    for lam in (0.0, 1.0):
        stats = ran(base.patch("losses.esd.lam", lam)).state.scene.stats()
        assert (stats["mean_x"], stats["mean_y"]) == pytest.approx((1.0, 0.0), abs=0.1)
        widths[lam] = 0.5 * (stats["std_x"] + stats["std_y"])
    assert 0.2 < widths[1.0] < 0.4, "the prior's is 0.3"
    assert widths[0.0] < 0.5 * widths[1.0]


def test_a_session_can_be_stopped_while_points_move():
    session = Session(plane(n=5).patch("steps", 100_000))
    session.plan(20, Stop())
    session.run(until=100_000)
    assert 20 <= session.state.step <= 21


# ---- the toy experiment ----------------------------------------------------------------------------------------------


@pytest.mark.nightly
def test_the_toy_experiment(tmp_path, monkeypatch, capsys):
    from sdlab.experiments import playground
    from sdlab.priors import plane_network

    monkeypatch.setattr(plane_network, "EPOCHS", 1)
    monkeypatch.setattr(playground, "STARTS", {"north west": (-1.0, 1.0)})
    monkeypatch.setattr(playground, "LENGTHS", {"paper": 10, "long": 80})
    monkeypatch.setattr(TrainedPlane.__init__, "__defaults__", (20,))
    assert main(["bench", "playground", "--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "playground.json").read_text())
    row = {(r["scores"], r["asked"], r["cfg"], r["loss"], r["length"]): r for r in result["rows"]}
    assert len(row) == 2 * 3 * 2 * 2
    arrives = row["exact", "north west", 7.5, "jsd", "long"]
    leaves = row["exact", "north west", 7.5, "sds", "long"]
    assert arrives["found"] > 0.9
    assert leaves["found"] < 0.1
    assert leaves["moved"] > 1
    free = {loss: row["exact", "all of them", 1.0, loss, "long"] for loss in ("sds", "jsd")}
    assert free["jsd"]["modes"] > free["sds"]["modes"]
    assert {p.name for p in Path(tmp_path).glob("*.png")} == {
        f"{kind}-{name}.png" for kind in ("trajectories", "control-variate") for name in ("cfg-1", "cfg-7.5", "all")
    }
    assert "exact and trained scores" in capsys.readouterr().out
