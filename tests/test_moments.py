"""Branches: a run that continues from the exact state of another, in another session."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

import pytest
import torch

from sdlab.live.messages import Advance, Applied, Branched, Failed, Patch, Rejected, Reset, Resume, Stop
from sdlab.live.moments import bytes_of, held
from sdlab.live.session import Fork, Session
from sdlab.settings import Settings, preset

ASSETS = Path(__file__).parents[1] / "assets" / "toybox"
needs_toybox = pytest.mark.skipif(not (ASSETS / "unet/config.json").exists(), reason="the toybox's weights are missing")
SHORT = [
    ("steps", 200),
    ("scene.densify_every", 10),
    ("scene.densify_from", 0.0),
    ("losses.vsd.network", "copy"),
    ("losses.vsd.warm_up", 4),
    ("losses.vdm.warm_up", 4),
    ("camera.views", 1),
]


def ran(settings: Settings, steps: int, *changes: tuple[str, object], **more: object) -> Session:
    """Return a session after `steps` steps, with `changes` made five steps before."""
    session = Session(settings, **more)
    session.run(until=steps - 5)
    if changes:
        session.do(Patch(changes))
    session.run(until=steps)
    return session


def child_of(parent: Session, *commands: object, **more: object) -> Session:
    origin: Future[Fork] = Future()
    origin.set_result(parent.fork())
    child = Session(parent.settings, origin=origin, **more)
    for command in commands:
        child.send(command)
    return child


def leaves(node: object, path: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {path: node}
    return {p: leaf for key, value in node.items() for p, leaf in leaves(value, f"{path}/{key}").items()}


TIMES = ("/session/seconds", "/session/prior_seconds")


def assert_same(a: Session, b: Session) -> None:
    """Compare everything that the next step depends on."""
    mine, theirs = leaves(a.moment().parts), leaves(b.moment().parts)
    assert mine.keys() == theirs.keys()
    differ = [
        path
        for path, value in mine.items()
        if path not in TIMES
        and not (torch.equal(value, theirs[path]) if isinstance(value, torch.Tensor) else value == theirs[path])
    ]
    assert differ == []
    assert (a.state.step, a.settings, a.effective) == (b.state.step, b.settings, b.effective)


def events(session: Session, kind: type) -> list:
    return [e for e in session.events.since()[0] if isinstance(e, kind)]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["sds", "vsd", "vdm", "dds"])
def test_a_branch_left_unchanged_equals_its_parent_bit_for_bit(quick, loss):
    """After fifty more steps, with density control and auxiliary networks."""
    parent = ran(quick.patch_all([*SHORT, ("active", loss)]), 30, ("optim.lr_means", 0.004))
    parts = parent.moment().parts
    assert set(parts["aux"]) == {"vsd": {"score"}, "vdm": {"vdm"}}.get(loss, set())
    assert bool(parts["reference"]) == (loss == "dds")
    child = child_of(parent)
    child.run(until=80)
    parent.run(until=80)
    counts = {step: len(shot.means) for step, shot in parent.timeline.film()}
    assert counts[80] > counts[28], "density control is to happen in between"
    assert_same(parent, child)
    child.run(until=81)
    assert not torch.equal(parent.state.scene.params["means"], child.state.scene.params["means"])


@pytest.mark.slow
@needs_toybox
@pytest.mark.nightly
def test_a_branch_on_the_embedded_prior_equals_its_parent(tmp_path):
    settings = preset("toybox").patch_all([*SHORT, ("scene.n_init", 300), ("steps", 100)])
    parent = ran(settings, 10, ("active", "vsd"))
    child = child_of(parent, load=lambda *_: parent.prior)
    parent.run(until=30)
    child.run(until=30)
    assert child.state.aux["score"].fitted > parent.settings.losses["vsd"].warm_up
    assert_same(parent, child)


def test_a_branch_taken_while_a_network_warms_up(quick):
    parent = Session(quick.patch_all([*SHORT, ("active", "vdm")]))
    parent.prepare()
    parent.running = True
    for _ in range(2):
        parent.advance()
    child = child_of(parent)
    child.run(until=10)
    parent.run(until=10)
    assert child.state.aux["vdm"].fitted == 4 + 10
    assert_same(parent, child)


def test_a_branch_keeps_what_waits_for_a_reset(quick):
    parent = ran(quick.patch_all(SHORT), 10, ("seed", 7), ("scene.n_init", 33))
    child = child_of(parent)
    parent.run(until=30)
    child.run(until=30)
    assert (child.settings.seed, child.effective.seed) == (7, 0)
    assert_same(parent, child)
    for session in (parent, child):
        session.do(Reset())
    assert len(child.state.scene.params["means"]) == 33
    assert_same(parent, child)


@pytest.mark.slow
def test_a_branch_of_a_parked_network_and_of_flat_scenes(quick):
    parent = ran(quick.patch_all([*SHORT, ("active", "vsd")]), 12, ("active", "sds"))
    points = ran(preset("playground").patch("steps", 100), 12)
    for run in (parent, points):
        child = child_of(run)
        with pytest.raises(RuntimeError, match="no state yet"):
            _ = child.state
        for session in (run, child):
            session.run(until=20)
            session.do(Patch((("active", "vsd"), ("losses.vsd.network", "copy"))))
            session.run(until=30)
        assert_same(run, child)


@pytest.mark.slow
def test_a_branch_with_another_loss_leaves_its_parent_alone(quick):
    alone = ran(quick.patch_all(SHORT), 40)
    parent = ran(quick.patch_all(SHORT), 20)
    child = child_of(parent, Patch.one("active", "sbp"))
    child.run(until=40)
    parent.run(until=40)
    assert_same(parent, alone)
    assert [(e.step, e.value) for e in events(child, Applied)] == [(20, "sbp")]
    assert events(child, Branched) == [Branched(20)]
    assert not torch.equal(parent.state.scene.params["means"], child.state.scene.params["means"])


def test_a_patch_that_fails_is_rolled_back_in_the_branch_too(quick, no_room_for_four_views):
    no_room_for_four_views()
    parent = ran(quick, 10)
    parent.do(Patch.one("camera.views", 4))
    child = child_of(parent)
    child.run(until=20)
    assert [e.path for e in events(child, Rejected)] == ["camera.views"]
    parent.run(until=20)
    assert_same(parent, child)
    assert [e.path for e in child.timeline.entries() if e.kind == "change"] == []


def test_running_and_paused_go_over_to_the_branch(quick):
    parent = Session(quick.patch("steps", 1000))
    parent.prepare()
    parent.do(Advance(5))
    for _ in range(2):
        parent.advance()
    child = child_of(parent)
    child.listen(lambda event: child.send(Stop()) if getattr(event, "text", "") == "paused at step 5" else None)
    child.run()
    assert child.state.step == 5


# ---- when there is nothing to branch from ------------------------------------------------------------------


def test_one_who_asks_an_ended_run_is_told(quick):
    parent = ran(quick, 10)
    asked = parent.branch()
    assert "has ended" in str(asked.exception(1))


def test_a_branch_of_nothing_says_why_and_answers(quick):
    origin: Future[Fork] = Future()
    child = Session(quick, origin=origin)

    def listen(event: object) -> None:
        if isinstance(event, Failed):
            tries.append(event.reason)
            child.send(Resume() if len(tries) == 1 else Stop())

    tries: list[str] = []
    child.listen(listen)
    origin.set_exception(RuntimeError("there is nothing to branch from: the run has ended"))
    child.run(start=False)
    assert tries == ["RuntimeError: there is nothing to branch from: the run has ended"] * 2
    assert child.status.phase == "ended"


def test_a_run_that_failed_before_it_had_a_scene_cannot_be_branched(tmp_path):
    parent = Session(preset("toybox").patch("prior.path", str(tmp_path / "nothing")))
    parent.listen(lambda event: parent.send(Stop()) if isinstance(event, Failed) else None)
    parent.run()
    with pytest.raises(RuntimeError, match="nothing to branch from"):
        parent.branch()


# ---- memory -----------------------------------------------------------------------------------------------


def test_moments_share_what_has_not_changed_and_nothing_with_the_run(quick):
    run = ran(quick.patch_all([*SHORT, ("active", "vsd")]), 10, ("active", "sds"))
    run.timeline.keep(one := run.moment())
    before = {path: leaf.clone() for path, leaf in leaves(one.parts).items() if isinstance(leaf, torch.Tensor)}
    run.run(until=20)
    two = run.moment()
    mine, other = leaves(one.parts), leaves(two.parts)
    assert all(torch.equal(before[path], mine[path]) for path in before), "a moment never changes"
    shared = {path for path in mine if isinstance(mine[path], torch.Tensor) and mine[path] is other[path]}
    assert any(path.startswith("/aux/score") for path in shared)
    assert "/scene/means" not in shared
    assert bytes_of([one, two]) < bytes_of([one]) + bytes_of([two])


def test_held_takes_a_known_tensor_only_when_it_is_equal():
    a, b = torch.ones(3), torch.zeros(2)
    like = {"x": {"same": a, "other": b, "shape": a, "kind": a}}
    parts = {"x": {"same": a.clone(), "other": b + 1, "shape": torch.ones(2), "kind": a.double(), "n": 3}}
    kept = held(parts, like)["x"]
    assert kept["same"] is a
    assert [kept[name] is like["x"][name] for name in ("other", "shape", "kind")] == [False] * 3
    assert kept["n"] == 3
