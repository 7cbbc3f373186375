"""One picture, several views, each with a prompt of its own."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from sdlab.cameras import look_at
from sdlab.lens import comparison_steps, views_of_step
from sdlab.live import critic
from sdlab.live.messages import Patch, Rejected
from sdlab.live.session import Session
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import PromptBank, PromptSettings, texts_of
from sdlab.rng import StepRng
from sdlab.scenes import illusion as illusions
from sdlab.scenes.illusion import Illusion, seen_as, turns_of
from sdlab.settings import preset
from sdlab.step import step
from sdlab.ui.form import form_html

PROMPTS = ("a red bear", "a blue teapot", "a green tree", "a yellow duck")


def illusion(**scene):
    """Return the settings of illusions of 16 x 16 pixels under exact scores."""
    s = dataclasses.replace(preset("mixture"), scene=Illusion(**{"n": 1, **scene}))
    prompts = zip(("text", "second", "third", "fourth"), PROMPTS, strict=True)
    return s.patch_all([("steps", 20), ("prompt.view_dependent", False), *((f"prompt.{k}", v) for k, v in prompts)])


def started(s):
    session = Session(s)
    session.prepare()
    return session


@pytest.fixture(scope="module")
def prior():
    return MixturePrior().load(torch.device("cpu"))


# ---- what a view shows -----------------------------------------------------------------------------------------------


def test_views_of_a_picture_are_its_turns():
    corner = torch.zeros(1, 1, 3, 4, 4)
    corner[..., 0, 0] = 1.0  # top left
    lit = [tuple(np.argwhere(seen_as("turn", corner, turn, 1.0)[0, 0].numpy())[0]) for turn in range(4)]
    assert lit == [(0, 0), (3, 0), (3, 3), (0, 3)], "counter-clockwise"
    assert tuple(np.argwhere(seen_as("flip", corner, 1, 1.0)[0, 0].numpy())[0]) == (3, 0)
    assert turns_of(Illusion()) == (0, 2)
    assert turns_of(Illusion(views=3)) == (0, 1, 2)


def test_an_overlay_is_the_light_that_both_sheets_let_through():
    sheets = torch.rand(2, 2, 3, 6, 6)
    seen = seen_as("overlay", sheets, 1, 1.5)
    assert torch.equal(seen, (1.5 * sheets[:, 0] * torch.rot90(sheets[:, 1], 1, (2, 3))).clamp(max=1))
    assert float(seen.max()) <= 1.0


def test_flipping_has_two_views():
    with pytest.raises(ValueError, match=r"scene\.views = 3: scene\.transform = flip has 2 views"):
        Illusion(transform="flip", views=3)


def test_pixels_stay_printable():
    session = started(illusion(noise=1.0).patch("optim.lr_pixels", 0.5))
    session.run(until=5)
    pixels = session.state.scene.params["pixels"]
    assert float(pixels.min()) == 0.0
    assert float(pixels.max()) == 1.0


# ---- each view has its own prompt ------------------------------------------------------------------------------------


def test_every_role_has_the_prompt_of_its_view(prior):
    s = illusion(views=4).prompt
    front = torch.zeros(5)
    cams = dataclasses.replace(look_at(front, front, front + 3, 40.0, 1, 1), prompts=(0, 1, 2, 3, 0))
    bound = PromptBank(prior).bind(
        s, ("pos", "plain", "uncond", "source", "ref"), cams, PromptSettings("a car", view_dependent=False)
    )
    for row, number in enumerate(cams.prompts):
        assert torch.equal(bound["pos"].hidden[row], prior.embed(PROMPTS[number]).hidden[0])
        assert torch.equal(bound["plain"].hidden[row], prior.embed(PROMPTS[number]).hidden[0])
        source = s.source.replace("{prompt}", PROMPTS[number])
        assert torch.equal(bound["source"].hidden[row], prior.embed(source).hidden[0])
        assert torch.equal(bound["uncond"].hidden[row], prior.embed("").hidden[0])
    assert torch.equal(bound["ref"].hidden[0], prior.embed("a car").hidden[0])
    assert torch.equal(bound["ref"].hidden[1], prior.embed(PromptSettings().second).hidden[0])
    assert cams[1:3].prompts == (1, 2)


def test_perp_neg_has_them_too(prior):
    s = dataclasses.replace(illusion().prompt, view_dependent=True)
    front = torch.zeros(2)
    cams = dataclasses.replace(look_at(front, front, front + 3, 40.0, 1, 1), prompts=(0, 1))
    bound, _ = PromptBank(prior).perp_neg(s, cams)
    one, other = (prior.embed(f"{text}, front view").hidden[0] for text in PROMPTS[:2])
    assert torch.equal(bound["perp pos"].hidden[0], one)
    assert torch.equal(bound["perp pos"].hidden[1], other)


def test_texts_are_those_of_as_many_prompts_as_the_scene_has():
    s = illusion(views=3)
    assert s.prompts == PROMPTS[:3]
    assert texts_of(s.prompt, ("plain",), False, s.scene.prompts) == list(PROMPTS[:3])
    assert texts_of(s.prompt, ("plain",), False) == [PROMPTS[0]]
    assert preset("mixture").prompts == (preset("mixture").prompt.text,)


def test_each_prompt_pulls_at_its_view():
    session = started(illusion())
    report = step(session.state, session.effective, session.prior, session.bank)
    other = started(illusion().patch("prompt.second", "a white house"))
    changed = step(other.state, other.effective, other.prior, other.bank)
    first, second = (changed.guidance.residual - report.guidance.residual).abs().amax((1, 2, 3)).tolist()
    assert first == 0.0
    assert second > 1e-3


def test_a_prompt_changes_during_the_run_and_the_run_replays(tmp_path):
    def ran(until):
        session = Session(illusion())
        session.plan(5, Patch((("prompt.second", "a white house"),)))
        session.run(until=until)
        return session

    whole, half, plain = ran(12), ran(8), started(illusion())
    plain.run(until=12)
    half.save(tmp_path)
    again = started(illusion())
    again.restore(tmp_path)
    assert again.settings.prompts == ("a red bear", "a white house")
    again.run(until=12)
    pixels = whole.state.scene.params["pixels"]
    assert torch.equal(again.state.scene.params["pixels"], pixels)
    assert not torch.equal(plain.state.scene.params["pixels"], pixels)


def test_an_edit_keeps_what_each_view_was(tmp_path):
    """DDS's reference has both prompts, in a checkpoint as well."""
    session = Session(illusion().patch("active", "dds"))
    session.plan(3, Patch((("prompt.second", "a white house"),)))
    session.run(until=6)
    session.save(tmp_path)
    again = started(illusion())
    again.restore(tmp_path)
    assert again.state.reference.prompt.texts[:2] == PROMPTS[:2]
    session.run(until=9)
    again.run(until=9)
    assert torch.equal(session.state.scene.params["pixels"], again.state.scene.params["pixels"])


# ---- a live run ------------------------------------------------------------------------------------------------------


def test_knobs_of_the_start_wait_for_a_reset_and_the_light_does_not():
    session = Session(illusion(transform="overlay"))
    changes = (("scene.views", 4), ("scene.n", 3), ("scene.light", 1.0))
    session.plan(2, Patch(changes))
    session.run(until=4)
    assert session.effective.scene.views == 2
    assert session.settings.scene.views == 4
    scene = session.state.scene
    assert scene.latents(StepRng(0, 0), session.prior).shape[0] == 2
    assert scene.config.light == 1.0


def test_a_prior_of_another_size_is_refused():
    session = Session(illusion())
    session.plan(2, Patch((("prior.height", 8), ("prior.width", 8))))
    said = []
    session.listen(lambda e: said.append(e) if isinstance(e, Rejected) else None)
    session.run(until=4)
    assert "illusions have 16 x 16 pixels" in said[0].reason


def test_a_prior_of_points_is_refused():
    s = dataclasses.replace(preset("playground"), scene=Illusion())
    with pytest.raises(ValueError, match=r"scene\.kind = illusion needs a prior of pictures"):
        Session(s).run(until=1)


def test_lens_and_comparison_name_the_views():
    session = started(illusion())
    s = session.effective
    report = step(session.state, s, session.prior, session.bank)
    assert len(views_of_step(report, s, session.prior, 1).pictures) > 3
    *_, last = comparison_steps(session.state, s, session.prior, session.bank, ["sds", "sbp"])
    assert last.views == PROMPTS[:2]
    assert np.isfinite(last.rms).all()


def test_frames_name_the_views():
    session = started(illusion(n=2, transform="overlay", views=3))
    session.run(until=1)
    frame = session.latest.get()
    names = ("as it is", "upper sheet turned by 90\N{DEGREE SIGN}", "upper sheet turned by 180\N{DEGREE SIGN}")
    assert frame.views == names * 2


# ---- files and page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transform", ["turn", "flip", "overlay"])
def test_the_animation_rests_at_every_view(transform, tmp_path, monkeypatch):
    monkeypatch.setattr(illusions, "FILM_SIZE", 32)
    session = started(illusion(transform=transform))
    files = session.export(tmp_path)
    assert (tmp_path / "turn.gif") in files
    assert {"sheet-00.png", "sheet-01.png"} <= {f.name for f in files} or transform != "overlay"
    with Image.open(tmp_path / "turn.gif") as film:
        times = [_time_of(film, i) for i in range(film.n_frames)]
    assert times[0] > 500
    assert sum(time > 500 for time in times) == 2
    table = np.asarray(Image.open(tmp_path / "pictures.png"))
    views = [np.asarray(Image.open(tmp_path / f"picture-0{i}.png")) for i in range(2)]
    assert np.array_equal(table[:16, :16], views[0])
    assert np.array_equal(table[:16, 18:34], views[1])


def _time_of(film, frame):
    film.seek(frame)
    return film.info["duration"]


def test_the_page_shows_further_prompts_only_with_an_illusion():
    html = form_html(preset("mixture"), ["mixture"])
    for name in ("second", "third", "fourth"):
        assert html.count(f'data-path="prompt.{name}"') == 1
        section = html.partition(f'<section data-owner="illusion/prompt.{name}">')[2].partition("</section>")[0]
        assert f'data-path="prompt.{name}"' in section


def test_the_judge_reads_each_view_for_its_own_prompt():
    from sdlab.toybox import figures, judge

    facts = [figures.plain_facts("bear", "red"), figures.plain_facts("teapot", "blue")]
    shown = judge.render([judge.shot_of(judge.HELD_OUT + i, f) for i, f in enumerate(facts)])
    shown = shown.permute(0, 2, 3, 1).numpy()
    right, swapped = critic.chance(shown, *PROMPTS[:2]), critic.chance(shown, *PROMPTS[1::-1])
    assert right > 0.5 > swapped
