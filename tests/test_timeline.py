"""The timeline: which moments are kept, jumps back and forth, the film."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sdlab.live.messages import Goto, Patch, Pause, Rejected, Reset, Went
from sdlab.live.moments import Moment, bytes_of
from sdlab.live.session import Session
from sdlab.live.timeline import FILM_EVERY, MOMENT_EVERY, MOST_ENTRIES, MOST_MOMENTS, MOST_SHOTS, Timeline, bytes_held
from sdlab.settings import Settings, preset

SETTINGS = Settings()
VDM = (("active", "vdm"), ("losses.vdm.warm_up", 3), ("losses.vdm.operator", "linear"))


def moment(step: int, floats: int = 1) -> Moment:
    return Moment(step, SETTINGS, SETTINGS, {"scene": {"means": torch.full((floats,), float(step))}})


def kept(timeline: Timeline) -> int:
    return bytes_of(timeline.at(step) for step in timeline.steps())


def session_of(settings: Settings) -> Session:
    session = Session(settings)
    session.prepare()
    return session


def go(session: Session, step: int, *changes: tuple[str, object]) -> None:
    if changes:
        session.do(Patch(changes))
    session.run(until=step)


def same(a: Session, b: Session) -> bool:
    mine, theirs = a.state.scene.state_dict(), b.state.scene.state_dict()
    moments, others = a.state.optim.state_dict(), b.state.optim.state_dict()
    return all(torch.equal(mine[k], theirs[k]) for k in mine) and all(
        torch.equal(moments[name][k], others[name][k]) for name in moments for k in moments[name]
    )


def events(session: Session, kind: type) -> list:
    return [e for e in session.events.since()[0] if isinstance(e, kind)]


def happened(session: Session) -> list[tuple[int, str, object]]:
    return [(e.step, e.path or e.kind, e.value) for e in session.timeline.entries()]


@pytest.fixture
def long(quick: Settings) -> Settings:
    return quick.patch_all([("steps", 1000), ("scene.densify_every", 20), ("scene.densify_from", 0.0)])


def test_what_histories_take_together_counts_what_they_share_once():
    one = Timeline()
    one.keep(moment(0, 100))
    one.show(0, np.zeros((1, 8, 8, 3), np.uint8))
    assert bytes_held([one]) == 400 + 192
    other = one.branched(moment(50, 10))
    assert bytes_held([other]) == 400 + 192 + 40
    assert bytes_held([one, other]) == 400 + 192 + 40
    assert bytes_held([]) == 0


# ---- what is kept -----------------------------------------------------------------------------------------


def test_moments_stay_spread_over_the_run_and_within_their_number():
    timeline = Timeline()
    for step in range(0, 10_001, 50):
        timeline.keep(moment(step))
        assert len(timeline.steps()) <= MOST_MOMENTS
    steps = timeline.steps()
    assert steps[0] == 0
    assert steps[-1] == 10_000
    assert max(np.diff(steps)) <= 2 * 10_000 / (len(steps) - 1) + 50


def test_moments_of_a_dragged_slider_do_not_displace_the_others():
    timeline = Timeline()
    for step in [*range(0, 1000, 50), *range(1000, 1100)]:
        timeline.keep(moment(step))
    steps = timeline.steps()
    assert max(np.diff(steps)) <= 100
    assert steps[-1] == 1099


def test_moments_stay_within_their_bytes():
    timeline = Timeline(budget=4 * 1000)
    for step in range(0, 3000, 50):
        timeline.keep(moment(step, 50 if step < 500 else 330))
        assert kept(timeline) <= 4000
    first, *middle, last = timeline.steps()
    assert (first, last) == (0, 2950)
    assert 700 < middle[0] < 2200, "spread over the run, though only three fit"


def test_a_moment_larger_than_all_is_not_kept_and_seldom_tried():
    timeline = Timeline(budget=4 * 100)
    timeline.keep(moment(0, 10))
    tried = []
    for step in range(1, 3000):
        if timeline.moment_due(step):
            timeline.keep(moment(step, 1000))
            tried.append(step)
    assert timeline.steps() == (0,)
    assert tried[0] == MOMENT_EVERY
    assert len(tried) < 20


def test_a_shared_tensor_counts_once():
    big = torch.zeros(1000)
    timeline = Timeline(budget=4 * 1100)
    for step in range(0, 500, 50):
        timeline.keep(Moment(step, SETTINGS, SETTINGS, {"aux": {"w": big}, "scene": {"x": torch.zeros(5)}}))
    assert len(timeline.steps()) == 10


def test_the_film_is_thinned_by_halving():
    timeline = Timeline()
    for step in range(2001):
        if timeline.shot_due(step):
            timeline.show(step, np.full((1, 2, 2, 3), step % 256, np.uint8))
        assert len(timeline.film()) <= MOST_SHOTS
    steps = [step for step, _ in timeline.film()]
    assert steps[0] == 0
    assert len(steps) > MOST_SHOTS / 2 - 1
    assert len(set(np.diff(steps))) == 1
    assert np.diff(steps)[0] % FILM_EVERY == 0
    assert all(int(shot[0, 0, 0, 0]) == step % 256 for step, shot in timeline.film())


def test_the_film_stays_within_its_bytes():
    timeline = Timeline(film_budget=1000)
    for step in range(0, 4000, FILM_EVERY):
        if timeline.shot_due(step):
            timeline.show(step, np.zeros((1, 10, 10, 3), np.uint8))
        assert sum(shot.nbytes for _, shot in timeline.film()) <= 1000
    assert len(timeline.film()) >= 2


def test_entries_are_bounded_and_a_dragged_slider_is_one_at_each_step():
    timeline = Timeline()
    for value in range(5):
        timeline.note(3, "change", f"a = {value}", "a", value)
    assert [(e.step, e.value) for e in timeline.entries()] == [(3, 4)]
    for step in range(2 * MOST_ENTRIES):
        timeline.note(step, "change", "b", "b", step)
    assert len(timeline.entries()) == MOST_ENTRIES
    numbers = [e.number for e in timeline.entries()]
    assert numbers == sorted(set(numbers))


# ---- a run's timeline -------------------------------------------------------------------------------------


def test_a_run_keeps_moments_at_intervals_and_before_each_change(long):
    session = session_of(long)
    go(session, 60)
    go(session, 120, ("losses.sds.cfg", 3.0))
    assert session.timeline.steps() == (0, 50, 60, 110)
    assert [session.timeline.at(n).settings.losses["sds"].cfg for n in (60, 110)] == [7.5, 3.0]
    assert happened(session) == [(0, "start", None), (60, "losses.sds.cfg", 3.0)]
    assert [step for step, _ in session.timeline.film()] == list(range(0, 121, FILM_EVERY))


def test_the_film_shows_the_object_as_it_was(long):
    session = session_of(long)
    go(session, 8)
    step, shot = session.timeline.film()[-1]
    now = session.state.scene.snapshot()
    assert step == 8
    assert all(np.array_equal(a, b) for a, b in zip(shot, now, strict=True))
    go(session, 9)
    assert all(np.array_equal(a, b) for a, b in zip(shot, now, strict=True)), "a shot never changes"


def test_flat_scenes_are_filmed_as_they_are_published():
    session = session_of(preset("playground").patch("steps", 100))
    go(session, 10)
    film = session.timeline.film()
    assert film[0][0] == 0
    assert min(np.diff([step for step, _ in film]), default=FILM_EVERY) >= FILM_EVERY
    assert {(shot.dtype, shot.ndim) for _, shot in film} == {(np.dtype(np.uint8), 4)}


@pytest.mark.slow
def test_one_can_jump_back_and_go_on_as_before(long):
    session, whole = session_of(long), session_of(long)
    go(session, 70)
    go(session, 130, *VDM)
    go(whole, 130)
    session.do(Goto(99))
    assert (session.state.step, session.settings.active, session.running) == (70, "sds", False)
    assert session.status.text == "paused at step 70"
    assert events(session, Went) == [Went(70)]
    assert session.latest.get().step == 70
    go(session, 130)
    assert same(session, whole)
    assert session.state.aux == {}


@pytest.mark.slow
def test_a_jump_over_a_change_takes_its_networks_along(long):
    session, whole = session_of(long), session_of(long)
    for run in (session, whole):
        go(run, 20)
        go(run, 120, *VDM)
    fitted = session.state.aux["vdm"].fitted
    session.do(Goto(75))
    assert (session.state.step, session.state.aux["vdm"].fitted) == (70, 3 + 50)
    go(session, 120)
    assert session.state.aux["vdm"].fitted == fitted
    assert same(session, whole)


@pytest.mark.slow
def test_what_came_after_stays_until_the_run_goes_on(long):
    session = session_of(long)
    go(session, 60)
    go(session, 101, ("losses.sds.cfg", 3.0))
    end = session.state.scene.state_dict()
    session.do(Goto(50))
    assert session.timeline.steps() == (0, 50, 60, 101), "the present is kept, to come back to"
    assert len(session.timeline.entries()) == 2
    session.do(Goto(500))
    assert session.state.step == 101
    assert session.settings.losses["sds"].cfg == 3.0
    assert all(torch.equal(v, end[k]) for k, v in session.state.scene.state_dict().items())
    session.do(Goto(50))
    go(session, 51)
    assert session.timeline.steps() == (0, 50)
    assert happened(session) == [(0, "start", None), (50, "jump", None)]
    assert session.timeline.entries()[-1].text == "went back from step 101"
    assert session.timeline.film()[-1][0] <= 51


@pytest.mark.slow
def test_coming_back_to_the_end_cuts_nothing_off(long):
    session = session_of(long)
    go(session, 60)
    go(session, 100, ("losses.sds.cfg", 3.0))
    before = happened(session)
    session.do(Goto(0))
    session.do(Goto(100))
    go(session, 101)
    assert happened(session) == before
    assert session.timeline.steps() == (0, 50, 60, 100)


def test_a_change_after_a_jump_cuts_off_too_and_the_change_jumped_over_is_gone(long):
    session = session_of(long)
    go(session, 60)
    go(session, 80, ("losses.sds.cfg", 3.0))
    session.do(Goto(60))
    assert session.settings.losses["sds"].cfg == 7.5
    session.do(Patch.one("optim.decay", 0.5))
    assert happened(session) == [(0, "start", None), (60, "jump", None), (60, "optim.decay", 0.5)]
    assert session.timeline.steps() == (0, 50, 60)
    session.do(Pause())
    assert session.state.step == 60


def test_a_jump_to_nothing_kept_names_what_is(long, tmp_path):
    session = session_of(long)
    go(session, 60)
    session.save(tmp_path)
    session.restore(tmp_path)
    go(session, 65, ("losses.sds.cfg", 3.0))
    session.do(Goto(30))
    (refused,) = events(session, Rejected)
    assert (refused.path, refused.value) == ("goto", "30")
    assert "kept steps: 60" in refused.reason
    assert session.state.step == 65
    assert happened(session) == [(60, "load", None), (60, "losses.sds.cfg", 3.0)]


def test_a_reset_begins_a_new_timeline(long):
    session = session_of(long)
    go(session, 60, ("losses.sds.cfg", 3.0))
    session.do(Reset())
    assert session.timeline.steps() == (0,)
    assert [step for step, _ in session.timeline.film()] == [0]
    assert happened(session) == [(0, "start", None)]


def test_a_change_that_is_rolled_back_leaves_the_timeline(long, no_room_for_four_views):
    session = session_of(long)
    go(session, 10, ("optim.decay", 0.5))
    no_room_for_four_views()
    go(session, 20, ("camera.views", 4))
    assert len(events(session, Rejected)) == 1
    assert happened(session) == [(0, "start", None), (0, "optim.decay", 0.5)]


def test_a_jump_over_a_change_of_prior_brings_its_prior_back(long):
    session, whole = session_of(long), session_of(long)
    go(session, 20)
    go(session, 30, ("prior.height", 32), ("prior.width", 32))
    assert session.prior.shape[1:] == (32, 32)
    session.do(Goto(20))
    assert session.prior.shape[1:] == (16, 16)
    go(session, 40)
    go(whole, 40)
    assert same(session, whole)


def test_a_branch_has_the_history_of_its_parent_up_to_there(long):
    parent = session_of(long)
    go(parent, 60, ("optim.decay", 0.5))
    go(parent, 80)
    parent.do(Goto(50))
    fork = parent.fork()
    assert [(e.step, e.kind) for e in fork.timeline.entries()] == [
        (0, "start"),
        (0, "change"),
        (50, "jump"),
        (50, "branch"),
    ]
    assert fork.timeline.steps() == (0, 50)
    assert fork.timeline.film()[-1][0] <= 50
    assert parent.timeline.steps() == (0, 50, 80), "the parent's own stays"


def test_the_timeline_of_a_session_that_has_no_state_is_empty(quick):
    timeline = Session(quick).timeline
    assert (timeline.steps(), timeline.entries(), timeline.film()) == ((), (), ())
