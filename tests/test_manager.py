"""Seats, timeouts, the shared pool of priors."""

import platform
import re
import threading
import time
from dataclasses import dataclass
from typing import ClassVar

import psutil
import pytest
import torch
from waiting import until

from sdlab.channel import SLACK
from sdlab.errors import give_back
from sdlab.live import manager as manager_module
from sdlab.live.clients import Client
from sdlab.live.manager import Manager, PriorPool
from sdlab.live.messages import Applied, Branched, Failed, Patch, Pause, Rejected, Resume, Stop
from sdlab.priors import PriorConfig, gallery, silent
from sdlab.priors.galleries import Galleries
from sdlab.priors.mixture import MixturePrior
from sdlab.priors.sources import unheard
from sdlab.priors.sources.toybox import ToyboxSource
from sdlab.settings import default_settings


@pytest.fixture
def manager():
    m = Manager(max_sessions=2, grace=0.3, idle=60.0)
    yield m
    m.shutdown()


def test_seats_are_separate_and_fair(manager, quick):
    long = quick.patch("steps", 100_000)
    clients = Client(), Client()
    a, b = manager.open(long, clients[0]), manager.open(long.patch("prompt.text", "a blue car"), clients[1])
    for seat in (a, b):
        until(lambda seat=seat: seat.session.status.phase == "ready")
    assert a.id != b.id
    assert a.session.prior is b.session.prior, "a prior is loaded once"
    a.session.send(Resume())
    b.session.send(Resume())
    until(lambda: a.session.state.step > 5 and b.session.state.step > 5)
    start = [client.account.used for client in clients]
    time.sleep(1.5)
    used = [client.account.used - before for client, before in zip(clients, start, strict=True)]
    assert abs(used[0] - used[1]) <= 0.1 * sum(used) / 2 + SLACK, used
    assert not torch.equal(a.session.state.scene.params["means"], b.session.state.scene.params["means"])


def ready(seat):
    until(lambda: seat.session.status.phase == "ready")
    return seat


@pytest.mark.slow
def test_four_lanes_of_one_page_get_the_same_number_of_steps_with_any_losses(quick):
    """A warm-up step counts as a turn."""
    manager = Manager(max_sessions=4)
    long = quick.patch_all([("steps", 100_000), ("losses.vdm.operator", "linear"), ("losses.vsd.network", "copy")])
    long = long.patch_all([("losses.vdm.warm_up", 8), ("losses.vsd.warm_up", 0)])
    page = Client()
    seats = [ready(manager.open(long.patch("active", loss), page)) for loss in ("sds", "vdm", "vsd", "sbp")]
    for seat in seats:
        seat.session.send(Resume())
    until(lambda: all(seat.session.state.step > 3 for seat in seats), 60)
    start = [seat.session.state.step for seat in seats]
    until(lambda: seats[0].session.state.step > start[0] + 60, 120)
    steps = [seat.session.state.step - before for seat, before in zip(seats, start, strict=True)]
    manager.shutdown()
    assert max(steps) - min(steps) <= 0.1 * max(steps), steps


def events(seat, kind):
    return [e for e in seat.session.events.since()[0] if isinstance(e, kind)]


def test_a_branch_goes_on_from_where_its_parent_is(manager, quick):
    long = quick.patch("steps", 100_000)
    parent = ready(manager.open(long))
    parent.session.send(Resume())
    until(lambda: parent.session.state.step > 5)
    child = manager.branch(parent.id, [("active", "sbp")])
    until(lambda: events(child, Branched) and child.session.state.step > events(child, Branched)[0].step + 3)
    (branched,) = events(child, Branched)
    assert branched.step > 5
    assert [(e.step, e.path, e.value) for e in events(child, Applied)] == [(branched.step, "active", "sbp")]
    assert parent.session.settings.active == "sds"
    assert child.session.prior is parent.session.prior
    for seat in (parent, child):
        seat.session.send(Pause())
        until(lambda seat=seat: seat.session.status.phase == "paused")
    at_rest = parent.session.state
    manager.close(child.id)
    other = manager.branch(parent.id)
    until(lambda: other.session.status.phase == "paused")
    assert other.session.state.step == at_rest.step
    for name, p in other.session.state.scene.params.items():
        assert torch.equal(p, at_rest.scene.params[name])
        assert p is not at_rest.scene.params[name]


def test_a_branch_never_waits_for_a_parent_that_is_busy(quick):
    """It opens at once, holds its commands, and starts when the parent has handed over its state."""
    free = threading.Event()
    manager = Manager(max_sessions=2)
    load = manager.pool.get

    def slow(config, *rest):
        if config.height == 32:
            free.wait(30)
        return load(config, *rest)

    manager.pool.get = slow
    parent = ready(manager.open(quick))
    parent.session.send(Patch((("prior.height", 32), ("prior.width", 32))))
    until(lambda: parent.session.status.phase == "loading")
    started = time.monotonic()
    child = manager.branch(parent.id, [("losses.sds.cfg", 3.0)])
    assert time.monotonic() - started < 5
    until(lambda: child.session.status.phase == "loading")
    child.session.send(Resume())
    time.sleep(0.1)
    assert child.session.status.phase == "loading"
    free.set()
    until(lambda: child.session.status.phase == "running" and child.session.state.step > 2)
    assert child.session.settings.losses["sds"].cfg == 3.0
    manager.shutdown()


def test_a_branch_is_refused_before_a_seat_is_taken(manager, quick):
    parent = ready(manager.open(quick))
    with pytest.raises(ValueError, match="1 to 16"):
        manager.branch(parent.id, [("camera.views", 99)])
    with pytest.raises(RuntimeError, match="has ended"):
        manager.branch("nobody")
    assert manager.count() == 1
    manager.open(quick)
    with pytest.raises(RuntimeError, match="all 2 seats"):
        manager.branch(parent.id)
    assert not events(parent, Rejected)


def test_a_parent_that_ends_before_it_could_answer_leaves_a_branch_that_says_so(manager, quick):
    parent = ready(manager.open(quick))
    parent.session.send(Stop())
    parent.thread.join(10)
    child = manager.branch(parent.id)
    until(lambda: child.session.status.phase == "failed")
    assert "the run has ended" in events(child, Failed)[0].reason


def test_when_all_seats_are_taken_it_says_so(manager, quick):
    manager.open(quick)
    manager.open(quick)
    with pytest.raises(RuntimeError, match=r"all 2 seats .* --max-sessions"):
        manager.open(quick)


def test_a_seat_ends_after_its_grace_period_unless_someone_comes_back(manager, quick):
    gone, back = manager.open(quick), manager.open(quick)
    closed = []
    gone.on_close.append(lambda: closed.append(1))
    manager.leave(gone.id)
    manager.leave(back.id)
    assert manager.get(back.id) is back
    until(lambda: not manager.exists(gone.id))
    gone.thread.join(5)
    assert not gone.thread.is_alive()
    assert closed == [1]
    assert manager.exists(back.id)


def test_a_seat_may_be_given_longer_than_the_grace_period(manager, quick):
    soon, later = manager.open(quick), manager.open(quick)
    manager.leave(soon.id)
    manager.leave(later.id, at_least=60)
    until(lambda: not manager.exists(soon.id))
    assert manager.exists(later.id)


def test_an_idle_seat_ends(quick):
    manager = Manager(max_sessions=2, idle=0.2)
    seat = manager.open(quick)
    until(lambda: manager.count() == 0)
    seat.thread.join(5)
    assert not seat.thread.is_alive()
    assert manager.get(seat.id) is None
    manager.shutdown()


@pytest.mark.slow
def test_freed_memory_is_given_back_now_and_then(monkeypatch):
    given: list[float] = []
    monkeypatch.setattr(manager_module, "TRIM_EVERY", 1.5)
    monkeypatch.setattr(manager_module, "give_back", lambda: given.append(time.monotonic()))
    m = Manager()
    until(lambda: len(given) == 2)
    m.shutdown()
    assert given[1] - given[0] >= 1.5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators give back by themselves")
def test_giving_back_takes_what_was_freed_between_what_is_kept():
    pieces = [bytearray(b"x" * 50_000) for _ in range(3000)]
    pieces = pieces[::20]
    before = psutil.Process().memory_info().rss
    assert give_back()
    assert psutil.Process().memory_info().rss < before - 80e6
    assert len(pieces) == 150


def test_the_pool_loads_once_even_when_many_ask_at_the_same_time():
    loads = []

    @dataclass(frozen=True)
    class Slow(PriorConfig):
        kind: ClassVar[str] = "slow"

        def load(self, device, progress=silent):
            loads.append(1)
            time.sleep(0.1)
            return MixturePrior().load(device)

    pool, got = PriorPool(), []
    threads = [
        threading.Thread(target=lambda: got.append(pool.get(Slow(), torch.device("cpu"), silent))) for _ in range(4)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert loads == [1]
    assert all(g is got[0] for g in got)


def test_a_failed_load_is_tried_again():
    tries = []

    @dataclass(frozen=True)
    class Flaky(PriorConfig):
        kind: ClassVar[str] = "flaky"

        def load(self, device, progress=silent):
            tries.append(1)
            if len(tries) == 1:
                raise RuntimeError("no network")
            return MixturePrior().load(device)

    pool = PriorPool()
    with pytest.raises(RuntimeError, match="no network"):
        pool.get(Flaky(), torch.device("cpu"), silent)
    assert pool.get(Flaky(), torch.device("cpu"), silent).name == "mixture"


def test_preloading_is_what_the_first_session_finds(manager, quick):
    manager.preload(quick)
    until(lambda: manager.pool._loaded)
    seat = manager.open(quick)
    until(lambda: seat.session.status.phase == "ready")
    assert list(manager.pool._loaded.values()) == [seat.session.prior]


def test_preloading_what_cannot_be_loaded_harms_nobody(manager, quick, tmp_path):
    from sdlab.settings import preset

    manager.preload(preset("toybox").patch("prior.path", str(tmp_path / "nothing")))
    seat = manager.open(quick)
    until(lambda: seat.session.status.phase == "ready")


@pytest.fixture
def slow_blue(monkeypatch):
    """Let the images of everything blue take until the returned event is set, with a first progress report."""
    release, draw = threading.Event(), ToyboxSource.draw

    def slow(self, key, count, size, seed, progress=unheard):
        if "blue" in key:
            progress(count // 4, count)
            assert release.wait(60)
        return draw(self, key, count, size, seed, progress)

    monkeypatch.setattr(ToyboxSource, "draw", slow)
    monkeypatch.setattr(gallery, "SHARED", Galleries(10**9))
    yield release
    release.set()


def gallery_run(prompt):
    small = [("prior.size", 16), ("prior.images", 8), ("prior.null_images", 8), ("scene.n_init", 60)]
    return default_settings("gallery").patch_all([*small, ("steps", 1_000_000), ("prompt.text", prompt)])


def moves_on(seat, steps=5):
    before = seat.session.state.step
    until(lambda: seat.session.state.step >= before + steps)


DRAWING = re.compile(r"^drawing 8 images of 'a blue car, front view': \d+ %, \d+ s left$")


@pytest.mark.parametrize("mid_run", [False, True], ids=["at the start", "by a new prompt"])
def test_other_runs_go_on_while_a_gallery_is_drawn(manager, slow_blue, mid_run):
    other = ready(manager.open(gallery_run("a red bear")))
    other.session.send(Resume())
    moves_on(other)
    if mid_run:
        mine = ready(manager.open(gallery_run("a red car")))
        mine.session.send(Resume())
        moves_on(mine)
        mine.session.send(Patch.one("prompt.text", "a blue car"))
    else:
        mine = manager.open(gallery_run("a blue car"))
        mine.session.send(Resume())
    until(lambda: DRAWING.match(mine.session.status.text))
    assert mine.session.status.phase == "loading"
    moves_on(other, 20)
    assert DRAWING.match(mine.session.status.text), "still at it"
    slow_blue.set()
    until(lambda: mine.session.status.phase == "running")
    moves_on(mine)
    assert mine.session.settings.prompt.text == "a blue car"
