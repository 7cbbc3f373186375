"""The form generator, what a lane remembers, and the pieces of the page, without a browser."""

import dataclasses
import html
import math
import re
import threading
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import ClassVar

import numpy as np
import pytest

from sdlab.knobs import knob, knobs_of
from sdlab.live import critic
from sdlab.live.manager import Seat
from sdlab.live.messages import (
    Advance,
    Applied,
    Event,
    Failed,
    Noted,
    Patch,
    Rejected,
    Resume,
    Skipped,
    Status,
    Stepped,
    Went,
)
from sdlab.live.session import Session
from sdlab.live.watching import Around
from sdlab.losses import Distillation
from sdlab.settings import FrozenDict, Settings, default_settings, preset, priors, scenes
from sdlab.toybox import judge
from sdlab.types import Aux, BoundPrior, Frame, Guidance, Noised
from sdlab.ui.charts import Curve, Line, Mark, chart
from sdlab.ui.desk import Desk
from sdlab.ui.form import control, form_html, form_state, symbol_of
from sdlab.ui.formulas import formula, prose, symbols_of
from sdlab.ui.lane import REFUSED_FOR, WAITS_FOR_READY, Lane
from sdlab.ui.panels import Message, preview, status
from sdlab.ui.results import Shelf
from sdlab.ui.visitors import MAX_LANES
from sdlab.ui.wording import LABELS, duration, label_of, number, sentence, short, size
from sdlab.viewport.splat_view import SplatView

# ---- form ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Odd(Distillation):
    """A loss with one knob of every sort, which no file of the project knows."""

    kind: ClassVar[str] = "odd"
    title: ClassVar[str] = "Odd <loss>"
    paper: ClassVar[str] = "Nobody, 2026"
    formula: ClassVar[str] = "eps_phi - eps_u"
    look_for: ClassVar[str] = "oddities"

    lam: float = knob(0.5, 0.0, 1.0, "a share")
    rate: float = knob(1e-4, 0.0, 1.0, "a rate", log=True)
    rank: int = knob(4, 1, 64, "a rank", apply="rebuild")
    many: int = knob(100, 0, 1_000_000, "a great number")
    open_end: float = knob(1.0, 0.0, None, "has no upper end")
    seed: int = knob(0, 0, 2**31 - 1, "a seed", apply="restart")
    on: bool = knob(True, help="a switch")
    mode: str = knob("a<b", help="a choice", choices=("a<b", "c"))
    note: str = knob("", hi=20, help='a text with "quotes" & <tags>')

    def gradient(self, x: Noised, model: BoundPrior, aux: Aux | None) -> Guidance:
        return Guidance(x.noise)


class Parsed(HTMLParser):
    """Tags with their attributes, and proof that every tag is closed."""

    VOID = ("input", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, attribute: str) -> list[str]:
        return [a[attribute] or "" for _, a in self.tags if attribute in a]


def at_desk(lane: Lane) -> Desk:
    """A desk with its shelf, which the page gives it."""
    desk = Desk(lane)
    desk.shelf = Shelf()
    return desk


def settings() -> Settings:
    base = default_settings("mixture")
    return Settings(prior=base.prior, scene=base.scene, losses=FrozenDict({**base.losses, "odd": Odd()}))


def controls(loss: Odd) -> dict[str, Parsed]:
    return {k.path: Parsed(control(k, "losses.odd")) for k in knobs_of(loss, "losses.odd")}


def test_every_knob_of_every_member_gets_a_control():
    form = Parsed(form_html(settings(), ["mixture"]))
    wanted = {p for p in settings().knobs() if p != "prompt.text"}
    for group, members in (("prior", priors()), ("scene", scenes())):
        wanted |= {k.path for cls in members.values() for k in knobs_of(cls(), group)}
    assert set(form.all("data-path")) == wanted
    ids = form.all("id")
    assert len(ids) == len(set(ids)), "two priors may share the name of a knob"
    assert set(form.all("aria-describedby")) <= set(ids)
    assert set(form.all("for")) <= set(ids)


def test_a_file_is_uploaded_for_the_gallery_and_not_for_a_model():
    sections = form_html(settings(), ["mixture"]).split('<section data-owner="')
    with_upload = {text.partition('"')[0] for text in sections if 'class="upload"' in text}
    assert with_upload == {"prior/gallery", "scene/image", "scene/splats"}
    locked = {k.path: control(k, "prior/gallery", True) for k in knobs_of(priors()["gallery"](), "prior")}
    assert "Fixed on this server; you can upload a file." in locked["prior.path"]
    assert "you can upload" not in control(knobs_of(priors()["diffusers"](), "prior")[0], "prior/diffusers", True)


def test_a_control_fits_its_knob():
    c = controls(Odd())
    tags = {path: {t for t, _ in p.tags} for path, p in c.items()}
    kinds = {path.removeprefix("losses.odd."): p.all("data-kind")[0] for path, p in c.items()}
    assert kinds == {
        "lam": "float",
        "rate": "float",
        "rank": "int",
        "many": "int",
        "open_end": "float",
        "seed": "int",
        "on": "bool",
        "mode": "choice",
        "note": "text",
    }
    with_slider = {n for n in kinds if "range" in c[f"losses.odd.{n}"].all("type")}
    assert with_slider == {"lam", "rate", "rank", "many"}, "an open or a huge range is typed"
    assert {n for n in kinds if c[f"losses.odd.{n}"].all("data-log")} == {"rate", "many"}
    assert "select" in tags["losses.odd.mode"]
    assert c["losses.odd.mode"].all("value") == ["a<b", "c"]


def test_help_and_moment_are_said():
    texts = {k.path: control(k, "losses.odd") for k in knobs_of(Odd(), "losses.odd")}
    assert "at the next reset" in texts["losses.odd.seed"]
    assert "at the next reset" not in texts["losses.odd.lam"]
    assert "A text with &quot;quotes&quot; &amp; &lt;tags&gt;" in texts["losses.odd.note"]
    assert "disabled" in control(knobs_of(Odd(), "losses.odd")[0], "losses.odd", locked=True)


@pytest.mark.parametrize(("lo", "hi"), [(0.0, 1.0), (0.02, 0.98), (0.0, 200.0), (-80.0, 89.0), (0.5, 20.0)])
def test_a_linear_slider_has_round_steps_and_enough_of_them(lo: float, hi: float):
    @dataclass(frozen=True)
    class Group:
        x: float = knob(lo, lo, hi, "x")

    step = float(Parsed(control(knobs_of(Group(), "g")[0], "g")).all("data-step")[0])
    assert 400 <= (hi - lo) / step <= 1000
    assert f"{step:e}"[0] in "125"


def test_the_form_shows_what_is_in_force():
    s = settings()
    state = form_state(s)
    assert state["values"] == {path: k.value for path, k in s.knobs().items()}
    assert state["owners"] == ["prior/mixture", "scene/splats", "losses.sds"]
    assert form_state(s.patch("active", "odd"))["owners"][-1] == "losses.odd"
    assert form_state(s, {"camera.views"})["values"] == {"camera.views": s.camera.views}
    assert "losses.odd" in Parsed(form_html(s, [])).all("data-owner")
    assert "Odd &lt;loss&gt;" in form_html(s, [])


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("losses.sds.cfg", "CFG"),
        ("losses.esd.lam", "Lambda"),
        ("optim.lr_means", "Means"),
        ("schedule.t_min", "t min"),
        ("steps", "Steps"),
        ("prompt.source", "Source prompt"),
        ("prior.source", "Images from"),
        ("schedule.start", "Schedules start at step"),
        ("scene.start", "Start"),
    ],
)
def test_labels(path: str, label: str):
    assert label_of(path) == label


def test_a_label_given_to_a_name_fits_all_knobs_of_that_name():
    every = {path for p in priors() for s in scenes() for path in default_settings(p, s).knobs()}
    for name in LABELS:
        groups = {path.rpartition(".")[0] for path in every if path.rpartition(".")[2].removeprefix("lr_") == name}
        assert groups, f"no knob is called {name}"
        kinds = {"losses" if group.startswith("losses.") else group for group in groups}
        assert len(kinds) == 1, f"{name} means different things in {sorted(kinds)}: label their paths"


# ---- a lane ---------------------------------------------------------------------------------------------


class Silent(SplatView):
    """A view without a server."""

    def __init__(self) -> None:
        self._film_at = None
        self._peers = ()
        self._rendered = None


class Still(Session):
    """A session that does not run; its settings are set by hand."""

    settings = default_settings("mixture")
    notes = ()


class Driven:
    """A lane to a session that does not run; what it answers is put in by hand."""

    def __init__(self) -> None:
        self.session = Still(default_settings("mixture"))
        self._sent: list = []
        self.session.send = lambda command: self._sent.append(command)
        self.lane = Lane(Seat("seat", self.session, threading.Thread()), Silent(), "mixture")

    def say(self, *events: Event) -> None:
        for event in events:
            self.session.events.append(event)

    def sent(self) -> list:
        sent, self._sent = self._sent, []
        return sent

    def frame(self, step: int) -> None:
        picture = np.zeros((1, 4, 4, 3), np.uint8)
        self.session.latest.set(Frame(step, 0.0, None, picture, ("front view",), {"n_gaussians": 1234.0}))


@pytest.fixture
def driven() -> Driven:
    return Driven()


def test_a_late_poll_of_a_closed_page_is_no_sign_of_life(driven: Driven):
    desk = at_desk(driven.lane)
    assert desk.is_there(polling=True)
    desk.leave()
    assert not desk.is_there(polling=False)
    assert not desk.is_there(polling=True)  # it was under way
    assert not desk.is_there(polling=False)
    assert desk.is_there(polling=True)  # nobody sends a second one but a page that lives
    assert desk.is_there(polling=False)
    desk.leave()
    desk.come_back()
    assert desk.is_there(polling=False), "the page was loaded anew"


def stepped(step: int, rms: float = 0.1) -> Stepped:
    stats = {"grad_rms": rms, "steps_per_s": 5.0, "prior_share": 0.8, "t": 500.0, "seconds": 3.0, "skipped": 0.0}
    return Stepped.of(step, **stats)


def test_each_change_is_sent_once(driven: Driven):
    driven.lane.change("camera.views", 3)
    driven.lane.change("camera.fovy", 50.0)
    assert driven.sent() == [Patch.one("camera.views", 3), Patch.one("camera.fovy", 50.0)]


def test_the_prompt_goes_before_the_command_and_only_if_it_is_new(driven: Driven):
    driven.lane.send(Advance(1), prompt="a blue car")
    driven.lane.send(Advance(1), prompt="a red bear")
    driven.lane.send(prompt="a red bear")
    assert driven.sent() == [Patch.one("prompt.text", "a blue car"), Advance(1), Advance(1)]


def test_a_refused_value_is_put_right_but_not_while_newer_ones_are_under_way(driven: Driven):
    v = driven.lane
    v.change("camera.views", 99)
    driven.say(Rejected(0, "camera.views", 99, "too many"))
    look = v.read()
    assert look.stale == {"camera.views"}
    assert look.status is not None
    assert "Too many" in look.status

    v.change("camera.views", 98)
    v.change("camera.views", 3)
    driven.say(Rejected(0, "camera.views", 98, "too many"))
    assert not v.read().stale
    driven.session.settings = driven.session.settings.patch("camera.views", 3)
    driven.say(Applied(0, "camera.views", 3))
    look = v.read()
    assert not look.stale
    assert "Too many" not in (look.status or ""), "the next change ends the message"


def test_a_change_that_was_rolled_back_is_put_right(driven: Driven):
    before = driven.session.settings
    driven.lane.change("camera.views", 3)
    driven.session.settings = before.patch("camera.views", 3)
    driven.say(Applied(0, "camera.views", 3))
    assert not driven.lane.read().stale
    driven.session.settings = before
    driven.say(Rejected(1, "camera.views", 3, "rolled back"))
    assert driven.lane.read().stale == {"camera.views"}


def test_a_refused_preset_is_not_the_one_shown(driven: Driven):
    wanted = driven.session.settings.patch_all([("camera.views", 4), ("optim.lr_means", 0.1)])
    driven.lane.pick("other", wanted)
    assert driven.lane.preset == "other"
    (patch,) = driven.sent()
    assert dict(patch.changes) == {"camera.views": 4, "optim.lr_means": 0.1}
    driven.say(*(Rejected(0, path, value, "no") for path, value in patch.changes))
    assert driven.lane.read().stale == {"camera.views", "optim.lr_means"}
    assert driven.lane.preset == "mixture"


def test_a_value_refused_later_has_nothing_to_do_with_the_preset(driven: Driven):
    v = driven.lane
    v.pick("other", driven.session.settings.patch("camera.views", 4))
    driven.session.settings = driven.session.settings.patch("camera.views", 4)
    driven.say(Applied(0, "camera.views", 4))
    v.change("camera.views", 99)
    driven.say(Rejected(0, "camera.views", 99, "too many"))
    assert v.read().stale == {"camera.views"}
    assert v.preset == "other"


def test_a_control_follows_what_is_changed_elsewhere(driven: Driven):
    v = driven.lane
    v.change("camera.views", 3)
    for views, stale in ((3, set()), (4, {"camera.views"}), (5, {"camera.views"})):
        driven.session.settings = driven.session.settings.patch("camera.views", views)
        driven.say(Applied(0, "camera.views", views))
        assert v.read().stale == stale


def test_messages_name_what_waits_and_what_went_wrong(driven: Driven):
    v = driven.lane
    driven.say(Applied(3, "scene.n_init", 5, "later"), Applied(3, "camera.views", 3), Applied(3, "seed", 1, "later"))
    assert "N init, Seed: applied at the next reset" in (v.read().status or "")
    driven.say(Applied(3, "prompt.text", "a zorb", "the model does not know: zorb"))
    assert "The model does not know: zorb" in (v.read().status or "")
    driven.say(Skipped(4, "gradient of means"))
    assert "The update of step 4 was skipped: not finite, gradient of means" in (v.read().status or "")
    driven.say(Failed(4, "out of memory"))
    assert 'class="say error"' in (v.read().status or "")


def charts_of(desk: Desk) -> str:
    return desk.news().get("charts", "")


ALWAYS = {
    "status",
    "controls",
    "stage",
    "timeline",
    "live",
    "preset",
    "form",
    "prompt",
    "offer",
    "lesson",
    "walk",
    "handin",
}  # whatever the tab
BELOW = {"preview", "lens", "charts", "versus"}


def test_only_news_is_sent(driven: Driven):
    desk = at_desk(driven.lane)
    driven.frame(0)
    news = desk.news()
    assert set(news) == ALWAYS | BELOW
    assert "no steps yet" in news["charts"]
    assert desk.news() == {}
    desk.turn_to("charts")
    assert "1 234" in charts_of(desk)
    assert not charts_of(desk)
    driven.say(stepped(1), stepped(2))
    driven.frame(2)
    later = desk.news()
    assert set(later) == {"status", "stage", "timeline", "charts"}
    assert "polyline" in later["charts"]
    assert "80 %" in later["charts"]
    desk.forget()
    again = desk.news()
    assert set(again) == ALWAYS | BELOW
    assert "polyline" in again["charts"]


def test_a_control_that_shows_something_else_is_told(driven: Driven):
    desk = at_desk(driven.lane)
    desk.news()
    driven.session.settings = driven.session.settings.patch_all([("camera.views", 3), ("prompt.text", "a blue car")])
    driven.say(Applied(0, "camera.views", 3), Applied(0, "prompt.text", "a blue car"))
    news = desk.news()
    assert news["form"]["values"] == {"camera.views": 3, "prompt.text": "a blue car"}
    assert news["prompt"] == "a blue car"
    assert desk.news() == {}


def test_what_a_session_notes_is_shown_on_the_status_line(driven: Driven):
    desk = at_desk(driven.lane)
    desk.news()
    driven.say(Noted(0, "the run starts as a ball: Shap-E is not installed"))
    assert "The run starts as a ball: Shap-E is not installed" in desk.news()["status"]
    assert 'class="say warning"' in driven.lane.read().status


def test_notes_of_a_run_stay_below_whatever_else_is_said(driven: Driven):
    driven.session.notes = ("starting from a ball: <no> file", "3 files were skipped.")
    driven.say(Noted(0, driven.session.notes[0]))
    below = "Starting from a ball: &lt;no&gt; file. 3 files were skipped.</p></div>"
    assert driven.lane.read().status.endswith(below)
    driven.lane.send(Resume())
    driven.say(Applied(0, "camera.views", 3), Rejected(0, "steps", 0, "steps = 0: must be more"))
    said = driven.lane.read().status
    assert said.endswith(below)
    assert "Steps = 0" in said or "steps = 0" in said
    driven.session.notes = ()
    assert "notes" not in driven.lane.read().status


def test_a_reset_empties_the_charts(driven: Driven):
    desk = at_desk(driven.lane)
    desk.turn_to("charts")
    driven.say(*(stepped(n) for n in range(1, 10)), Applied(4, "camera.views", 3))
    driven.frame(9)
    assert "camera.views = 3" in charts_of(desk)
    driven.frame(0)
    charts = charts_of(desk)
    assert "no steps yet" in charts
    assert "camera.views" not in charts


def test_a_jump_back_cuts_the_charts(driven: Driven):
    driven.say(*(stepped(n) for n in range(1, 10)), Applied(4, "camera.views", 3), Applied(8, "camera.views", 2))
    driven.lane.read()
    driven.say(Went(5))
    assert driven.lane.read().stale == set(driven.lane.settings.knobs()), "the settings are those of then"
    assert driven.lane.curves["gradient"].points()[-1][0] == 5
    assert [mark.step for mark in driven.lane.marks] == [4]
    driven.say(stepped(6))
    driven.lane.read()
    assert [step for step, _ in driven.lane.curves["gradient"].points()] == [1, 2, 3, 4, 5, 6]


# ---- several lanes ---------------------------------------------------------------------------------------


def test_what_is_pressed_goes_to_all_lanes_and_what_is_typed_to_the_one_in_focus():
    first, second = Driven(), Driven()
    desk = at_desk(first.lane)
    desk.add(second.lane)
    assert desk.focus is second.lane
    for lane in (first, second):
        lane.sent()  # whether the lens looks
    desk.send(Resume(), prompt="a blue car")
    assert first.sent() == [Resume()]
    assert second.sent() == [Patch.one("prompt.text", "a blue car"), Resume()]


def test_buttons_follow_all_lanes():
    first, second = Driven(), Driven()
    desk = at_desk(first.lane)
    desk.add(second.lane)
    first.session.status = Status(3, "running", "running")
    second.session.status = Status(9, "paused", "paused")
    assert desk.news()["controls"]["can"] == {"start": True, "pause": True, "step": True, "reset": True}
    second.session.status = Status(9, "running", "running")
    assert desk.news()["controls"]["can"] == {"start": False, "pause": True, "step": False, "reset": True}
    assert "controls" not in desk.news()


def test_lanes_keep_their_letters_and_the_last_one_ends_the_desk():
    driven = [Driven() for _ in range(MAX_LANES + 1)]
    desk = at_desk(driven[0].lane)
    for lane in driven[1:MAX_LANES]:
        desk.add(lane.lane)
    with pytest.raises(ValueError, match="there are 4 lanes already"):
        desk.add(driven[-1].lane)

    def letters() -> str:
        desk.forget()
        return "".join(lane["letter"] for lane in desk.news()["stage"])

    assert letters() == "ABCD"
    desk.look_at(driven[1].lane)
    assert desk.remove(driven[1].lane)
    assert desk.focus is driven[0].lane
    assert letters() == "ACD"
    desk.add(driven[-1].lane)
    assert letters() == "ACDB"
    assert [lane for lane in desk.lanes if desk.remove(lane)] == desk.lanes[:0] or not desk.lanes


def test_charts_lay_the_lanes_over_each_other_and_a_table_holds_their_figures():
    first, second = Driven(), Driven()
    desk = at_desk(first.lane)
    desk.add(second.lane)
    desk.turn_to("charts")
    for lane, rms in ((first, 0.1), (second, 0.7)):
        lane.say(stepped(1, rms), stepped(2, rms))
        lane.frame(2)
    text = charts_of(desk)
    assert text.index("line tone-1") < text.index("line tone-0"), "the one in focus comes first"
    table = text.partition("</table>")[0]
    assert "0.7" in table
    assert "0.1" in table
    Parsed(text)


def test_the_judge_speaks_of_the_toybox_only(driven: Driven, monkeypatch: pytest.MonkeyPatch):
    driven.frame(3)
    driven.lane.ask_the_judge()
    assert driven.lane.judged is None, "another prior, or none yet"
    monkeypatch.setattr("sdlab.live.critic.knows", lambda prior: True)
    driven.lane.ask_the_judge()
    assert 0 <= driven.lane.judged <= 1
    assert [step for step, _ in driven.lane.curves["judge"].points()] == [3]
    driven.lane.ask_the_judge()
    driven.frame(4)
    driven.lane.ask_the_judge()
    assert len(driven.lane.curves["judge"].points()) == 1, "not so soon"
    driven.session.settings = driven.session.settings.patch("prompt.text", "a zorb")
    driven.lane._judged_at -= 10.0
    driven.lane.ask_the_judge()
    assert driven.lane.judged is None, "what it said was of another prompt"


def test_views_around_the_object_are_measured_once_a_step(driven: Driven, monkeypatch: pytest.MonkeyPatch):
    driven.lane.measure()
    assert driven.lane.measured == {}, "nothing was rendered yet"
    red = np.zeros((12, 16, 16, 3), np.uint8)
    red[..., 0] = 51
    driven.session.around.set(Around(3, red))
    for _ in range(2):
        driven.lane.measure()
    assert driven.lane.measured == pytest.approx({"saturation": 0.2, "sharpness": 0}, abs=1e-6)
    assert driven.lane.curves["saturation"].points() == [(3, pytest.approx(0.2))]
    assert driven.lane.curves["fronts"].last() is None, "the judge does not know this prior"
    monkeypatch.setattr("sdlab.live.critic.knows", lambda prior: True)
    driven.session.around.set(Around(4, red))
    driven.lane.measure()
    assert driven.lane.curves["fronts"].last() in range(13)
    assert 0 <= driven.lane.curves["variety"].last() <= np.log(4)
    desk = at_desk(driven.lane)
    desk.turn_to("charts")
    text = charts_of(desk)
    assert "Fronts of 12" in text
    assert "View variety, IV" in text
    driven.say(stepped(5), stepped(1))
    driven.lane.read()
    assert driven.lane.measured == {}, "a reset forgets them"


def test_the_judge_knows_the_toybox_as_a_network_and_as_a_gallery():
    for kind, changes, known in (
        ("diffusers", {}, True),
        ("diffusers", {"path": "/models/toybox-of-mine"}, False),
        ("gallery", {}, True),
        ("gallery", {"source": "folder", "path": "toybox"}, False),
        ("mixture", {}, False),
    ):
        prior = dataclasses.replace(default_settings(kind).prior, **changes)
        assert critic.knows(prior) is known, prior


def test_the_judge_reads_true_pictures_and_finds_nothing_else_in_them():
    rgb, truths = judge.true_pictures(judge.HELD_OUT, 6)
    for picture, truth in zip(rgb.permute(0, 2, 3, 1).numpy(), truths, strict=True):
        other = "bear" if truth.object != "bear" else "car"
        right, wrong = (critic.chance(picture[None], f"a {truth.colour} {name}") for name in (truth.object, other))
        assert right is not None
        assert wrong is not None
        assert right > wrong
    assert critic.chance(rgb[:2].permute(0, 2, 3, 1).numpy(), "a zorb") is None


# ---- pieces ----------------------------------------------------------------------------------------------


def test_a_curve_stays_small_and_true():
    curve = Curve()
    for step in range(100_000):
        curve.add(step, float(step))
    points = curve.points()
    assert 100 <= len(points) <= 200
    assert all(v == pytest.approx(s) for s, v in points)
    assert points[-1][0] > 99_000
    assert len(curve._packed) <= 2 * 2000
    curve.add(100_000, math.nan)
    assert curve.last() == pytest.approx(99_999, abs=200)


def test_a_chart_is_drawn_inside_its_box_with_marks():
    curve = Curve()
    for step in range(1, 50):
        curve.add(step, 10.0 ** (step % 5 - 3))
    marks = [Mark(10, "a <b>"), Mark(400, "outside")]
    text = chart("Gradient", [Line(curve)], marks, log=True)
    line = re.search(r'points="([^"]+)"', text)
    assert line is not None
    points = np.array([[float(v) for v in p.split(",")] for p in line[1].split()])
    assert (points >= 0).all()
    assert points[:, 0].max() == 200
    assert points[:, 1].max() <= 60
    assert "a &lt;b&gt;" in text
    assert "outside" not in text
    assert "no steps yet" in chart("Empty", [Line(Curve())], [])
    one = Curve()
    one.add(0, 0.25)
    text = chart("Judge", [Line(one)], [])
    assert "one value so far" in text
    assert "no steps yet" not in text
    assert ">0.25<" in text
    Parsed(chart("Flat", [Line(_flat())], []))
    nothing = Curve()
    for step in (1, 9):
        nothing.add(step, 0.0)
    assert "-0.5" not in chart("Fronts", [Line(nothing)], []), "a count is not negative"
    there_and_back = Curve()
    for _ in range(2):
        there_and_back.add(50, 0.7)
    Parsed(chart("Judge", [Line(there_and_back)], []))


def _flat() -> Curve:
    curve = Curve()
    curve.add(1, 0.0)
    curve.add(2, 0.0)
    return curve


def test_the_status_line():
    text = status("running", "running", 100, 400, 4.0, None)
    assert "step <b>100</b> of 400" in text
    assert "1 min 15 s left" in text
    assert 'data-step="100"' in text
    waits = status("running", "VSD: its own network warms up, 3 of 100 steps", 100, 400, 4.0, None)
    assert "<strong>Warming up</strong>" in waits
    assert "VSD: its own network warms up, 3 of 100 steps; the scene waits" in waits
    assert "left" not in waits, "no steps are taken meanwhile"
    assert "steps/s" not in waits
    drawing = "drawing 8 images of 'a cat': 40 %, 3 s left"
    assert f"{drawing[1:]}; starts soon" in html.unescape(
        status("loading", drawing, 0, 9, 0.0, Message("info", "starts soon"))
    )
    assert drawing not in html.unescape(status("loading", drawing, 0, 9, 0.0, Message("error", "no")))
    refused = status("paused", "paused at step 3", 3, 400, 0.0, Message("error", 'camera.views = "<b>"'))
    assert "camera.views = &quot;&lt;b&gt;&quot;" in refused
    assert "left" not in refused
    Parsed(text + refused)


def test_the_preview_holds_its_pictures():
    text = preview(np.full((2, 8, 8, 3), 200, np.uint8), ["front view", "<i>"], 3)
    assert text.count("data:image/png;base64,") == 2
    assert "data:image/jpeg;base64," in preview(np.zeros((1, 256, 256, 3), np.uint8), ["front view"], 3)
    assert "&lt;i&gt;" in text


@pytest.mark.parametrize(
    ("plain", "shown"),
    [
        ("eps_u + s (eps_c - eps_u)", "<i>&epsilon;</i><sub>u</sub></span></span> <span>+ <span"),
        ("a (b - c) - lam d", '</span> <span>&minus; <span class="symbol" data-symbol="lam"><i>&lambda;</i>'),
        ("lam ],  b of the other, d", " of the other,</span> <span><span"),
        ("eps_phi", "<i>&epsilon;</i><sub>&phi;</sub>"),
        ("w(t) noise", 'data-symbol="w(t)"><i>w</i>(<span class="symbol" data-symbol="t"><i>t</i></span>)</span>'),
        ("eps_psi(camera)", 'data-symbol="eps_psi(camera)"><i>&epsilon;</i><sub>&psi;</sub>(camera)</span>'),
        ("a < b", "&lt;"),
        ("|| M(eps_c) - noise ||^2", "||²</span>"),
    ],
)
def test_formulas(plain: str, shown: str):
    assert shown in formula(plain)


def test_every_loss_says_where_its_knobs_and_predictions_stand_in_its_formula():
    s = default_settings("mixture")
    named = {name: {symbol_of(k, loss) for k in knobs_of(loss, "")} - {""} for name, loss in s.losses.items()}
    assert named["sds"] == {"s"}
    assert named["esd"] == {"s", "lam"}
    assert {"c_c", "c_n", "c_u", "c_noise"} <= named["csd"]
    assert {"w", "s"} <= named["sbp"]
    assert named["jsd"] == {"k"}
    for loss in s.losses.values():
        for text in loss.formulas:
            symbols = symbols_of(text)
            assert {term.written for term in loss.terms} & set(symbols), text
            assert set(symbols) <= set(re.findall(r'data-symbol="([^"]+)"', formula(text)))


@pytest.mark.parametrize(
    ("loss", "changes", "progress", "words"),
    [
        ("sbp", {}, 0.1, "w(t) w [ eps(target prompt) - eps(source prompt) ]"),
        ("sbp", {"stage": "two-stage", "switch": 0.3}, 0.2, "w(t) [ eps_u + s (eps_c - eps_u) - noise ]"),
        ("sbp", {"stage": "two-stage", "form": "full"}, 0.9, "each along its flow"),
        ("sbp", {"form": "restoring"}, 0.1, "w(t) [ eps(source prompt) + w ("),
        ("sbp", {"form": "restoring", "stage": "sds"}, 1.5, "w(t) [ eps_u + s"),
        ("jsd", {}, 0.1, "alpha/sigma [ eps(inverted) - eps(minority) ]"),
        ("jsd", {"form": "code"}, 0.1, "sigma/alpha [ (1 + k)"),
        ("sds", {}, 2.0, "w(t) [ eps_u + s (eps_c - eps_u) - noise ]"),
    ],
)
def test_the_formula_is_that_of_the_form_and_stage_in_force(loss: str, changes: dict, progress: float, words: str):
    one = dataclasses.replace(default_settings("mixture").losses[loss], **changes)
    found = one.formula_at(progress)
    assert words in found
    assert found in (one.formula, *one.other_formulas)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (0.123, ".12"), (0.9965, "1.0"), (9.96, "10"), (276.4, "276"), (math.nan, "\N{EN DASH}")],
)
def test_short_numbers(value: float, shown: str):
    assert short(value) == shown


def test_sizes():
    assert [size(n) for n in (10, 640_000, 1_240_000)] == ["1 kB", "640 kB", "1.2 MB"]


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0"), (0.00012, "1.2e-4"), (0.1234, "0.123"), (12.34, "12.3"), (1234.0, "1234")]
)
def test_numbers(value: float, shown: str):
    assert number(value) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(4.4, "4 s"), (75.0, "1 min 15 s"), (7800.0, "2 h 10 min")])
def test_durations(seconds: float, shown: str):
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("how psi is made, by <lora>", "How <i>&psi;</i> is made, by &lt;lora&gt;"),
        ("tells it from eps_c; see psi_error", "Tells it from <i>&epsilon;</i><sub>c</sub>; see psi_error"),
        ("beta and <b>", "Beta and &lt;b&gt;"),
    ],
)
def test_prose_about_a_formula(text: str, shown: str):
    assert prose(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"), [("a text", "A text"), ("s, the scale", "s, the scale"), ("w(t): x", "w(t): x"), ("", "")]
)
def test_sentences(text: str, shown: str):
    assert sentence(text) == shown


@pytest.mark.parametrize("views", [2, 3, 4])
def test_an_illusion_shows_the_prompts_that_its_views_have(views: int, driven: Driven):
    s = preset("illusion").patch("scene.views", views)
    used = ["prompt.second", "prompt.third", "prompt.fourth"][: views - 1]
    assert form_state(s)["owners"][2:-1] == [f"illusion/{path}" for path in used]
    sections = Parsed(form_html(s, [])).all("data-owner")
    assert [name for name in sections if name.startswith("illusion/")] == [
        f"illusion/prompt.{number}" for number in ("second", "third", "fourth")
    ]
    driven.session.settings = s
    driven.say(Applied(0, "scene.views", views))
    assert set(used) <= set(driven.lane.read().stale), "their controls have not been shown yet"


def test_a_refused_loss_is_called_as_on_the_page(driven: Driven):
    driven.say(Rejected(0, "active", "esd", "active = 'esd': it is locked by the link that opened this page"))
    assert "Loss = &#x27;esd&#x27;" in driven.lane.read().status


def test_a_loss_holds_the_texts_that_it_alone_asks_for():
    s = default_settings("mixture")
    form = form_html(s, [])
    assert form.count('data-path="prompt.source"') == form.count('data-path="prompt.target"') == 1
    sections = {text.partition('"')[0]: text for text in form.split('<section data-owner="')[1:]}
    assert 'data-path="prompt.source"' in sections["losses.sbp"]
    assert "<textarea" in sections["losses.sbp"]
    assert "retrains" in sections["losses.vsd"]
    assert "retrains" not in sections["losses.sds"]
    assert ">LoRA</option>" in sections["losses.esd"]


def test_another_loss_brings_its_own_knobs_into_the_form(driven: Driven):
    driven.lane.change("active", "sds")
    driven.say(Applied(0, "active", "sds"))
    assert driven.lane.read().stale == {"active", "losses.sds.cfg"}
    driven.session.settings = driven.session.settings.patch("active", "sbp")
    driven.say(Applied(0, "active", "sbp"))
    assert {"active", "losses.sbp.w", "prompt.source", "prompt.target"} <= driven.lane.read().stale
    driven.session.settings = driven.session.settings.patch("active", "sds")
    driven.say(Rejected(1, "active", "sbp", "rolled back"))
    assert driven.lane.read().stale == {"active", "losses.sds.cfg"}


def test_the_note_that_a_start_waits_goes_when_it_runs(driven: Driven):
    driven.lane.send(Resume(), note=WAITS_FOR_READY)
    driven.session.status = Status(0, "compiling", "compiling")
    assert "as soon as everything is ready" in (driven.lane.read().status or "")
    driven.session.status = Status(0, "running", "running")
    assert "as soon as everything is ready" not in (driven.lane.read().status or "")


def test_a_refusal_names_the_knob_as_the_page_does_and_is_not_said_for_ever(driven: Driven, monkeypatch):
    reason = "camera.views = 99: must be a number from 1 to 16 (not camera.viewpoints)"
    driven.say(Rejected(0, "camera.views", 99, reason))
    said = "Views = 99: must be a number from 1 to 16 (not camera.viewpoints)"
    assert said in (driven.lane.read().status or "")
    assert said in (driven.lane.read().status or ""), "it was just said"
    later = time.monotonic() + REFUSED_FOR
    monkeypatch.setattr(time, "monotonic", lambda: later)
    assert said not in (driven.lane.read().status or said)
    driven.say(Failed(0, "out of memory"))
    monkeypatch.setattr(time, "monotonic", lambda: later + 10 * REFUSED_FOR)
    assert "out of memory" in (driven.lane.read().status or "").lower(), "that has to be dealt with"


def test_a_change_while_the_run_waits_says_how_to_see_it(driven: Driven):
    driven.session.status = Status(4, "paused", "finished the planned 4 steps; press Start to continue")
    driven.say(Applied(4, "camera.views", 3))
    assert "Changed; press Start" in (driven.lane.read().status or "")
    driven.session.status = Status(4, "running", "running")
    assert "press Start" not in (driven.lane.read().status or "press Start")
    driven.say(Applied(5, "camera.views", 4))
    assert "press Start" not in (driven.lane.read().status or "")
    driven.session.status = Status(0, "ready", "ready: press Start")
    driven.say(Applied(0, "camera.views", 3))
    assert "Changed" not in (driven.lane.read().status or "Changed")


def test_another_prompt_in_the_middle_says_that_the_object_stays(driven: Driven):
    driven.session.status = Status(9, "running", "running")
    driven.session.settings = driven.session.settings.patch("prompt.text", "a bear")
    driven.say(Applied(9, "prompt.text", "a bear"))
    assert "Reset starts over" in (driven.lane.read().status or "")
    driven.session.status = Status(0, "running", "running")
    driven.say(Applied(0, "prompt.text", "a cat"))
    assert "Reset starts over" not in (driven.lane.read().status or "Reset starts over")


@pytest.mark.parametrize(
    ("step", "said"), [(5, "<b>5</b> of 9"), (9, "<b>9</b> of 9"), (12, "<b>12</b> (9 were planned)")]
)
def test_how_far_it_is(step: int, said: str):
    assert said in status("paused", "paused", step, 9, 1.0, None)


def test_an_empty_prompt_is_noticed(driven: Driven):
    driven.session.settings = driven.session.settings.patch("prompt.text", " ")
    driven.say(Applied(0, "prompt.text", " "))
    assert "the prior has nothing to aim for" in (driven.lane.read().status or "")
    driven.session.settings = driven.session.settings.patch("prompt.text", "a bear")
    driven.say(Applied(0, "prompt.text", "a bear"))
    assert "nothing to aim for" not in (driven.lane.read().status or "")


def test_a_replay_is_named(driven: Driven):
    driven.lane.view._film_at = 40
    assert "Replaying the run: step 40" in (driven.lane.read().status or "")
    driven.lane.view._film_at = None
    assert "Replaying" not in (driven.lane.read().status or "")
