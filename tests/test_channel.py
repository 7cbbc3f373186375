"""Latest value, event log, a turnstile that shares time."""

import math
import pickle
import sys
import threading
import time
from collections.abc import Callable

import pytest

from sdlab.channel import (
    SLACK,
    Account,
    EventLog,
    Halted,
    Latest,
    Turn,
    Turnstile,
    rest,
    turn_of_thread,
    working_clock,
)
from sdlab.live.messages import Stepped


def test_latest_keeps_only_the_newest_and_wakes_waiters():
    latest: Latest[int] = Latest()
    seen = []
    reader = threading.Thread(target=lambda: seen.append((latest.wait(0, 5), latest.get())))
    reader.start()
    latest.set(7)
    reader.join()
    assert seen == [(True, 7)]
    assert not latest.wait(latest.version, 0.01)


def test_event_log_is_bounded_and_readers_catch_up():
    log: EventLog[int] = EventLog(capacity=5)
    for i in range(3):
        log.append(i)
    events, mark = log.since(0)
    assert events == [0, 1, 2]
    for i in range(3, 12):
        log.append(i)
    events, mark = log.since(mark)
    assert events == [7, 8, 9, 10, 11]
    assert log.since(mark) == ([], 12)


def test_the_figures_of_steps_share_their_names_and_survive_pickling():
    one, two = (Stepped.of(n, loss=0.5 * n, rms_grad=math.inf) for n in (3, 4))
    match two:
        case Stepped(step, stats):
            assert (step, stats) == (4, {"loss": 2.0, "rms_grad": math.inf})
    assert one.names is two.names
    assert pickle.loads(pickle.dumps(one)) == one != two
    figures = {f"ms_{n}": n / 7 for n in range(16)}
    packed = Stepped.of(5, **figures)
    as_dict = sys.getsizeof(figures) + sum(map(sys.getsizeof, figures.values()))
    assert sys.getsizeof(packed.values) < as_dict / 4


def test_the_turnstile_serves_in_order_of_arrival():
    gate = Turnstile()
    counts = [0, 0, 0, 0]
    together = threading.Barrier(4)
    end = time.monotonic() + 0.5

    def work(i):
        together.wait()
        while time.monotonic() < end:
            with gate:
                time.sleep(0.001)
                counts[i] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert max(counts) - min(counts) <= 2, counts


def test_the_turnstile_opens_again_after_an_error():
    gate = Turnstile()
    try:
        with gate:
            raise RuntimeError("boom")
    except RuntimeError:
        pass
    done = threading.Event()

    def enter():
        with gate:
            done.set()

    threading.Thread(target=enter).start()
    assert done.wait(2)


def together(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own, all from the same moment."""
    begin = threading.Barrier(len(works))
    threads = [threading.Thread(target=lambda work=work: (begin.wait(), work())) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def worker(gate: Turnstile, account: Account, turn: float, absence: float, gaps: list[float], seconds: float = 1.5):
    """Return a function that takes turns of `turn` seconds, is away in between, and notes how long it waits."""

    def work() -> None:
        end = time.monotonic() + seconds
        while (asked := time.monotonic()) < end:
            with gate.turn(account):
                gaps.append(time.monotonic() - asked)
                time.sleep(turn)
            time.sleep(absence)

    return work


def test_accounts_share_time_not_turns():
    """One takes short turns and is away in between, another takes long turns and is always there."""
    gate, short, long = Turnstile(), Account(), Account()
    gaps: list[float] = []
    together(worker(gate, short, 0.004, 0.004, gaps), worker(gate, long, 0.1, 0.0, []))
    assert abs(short.used - long.used) <= SLACK + 0.1 + 0.25 * long.used, (short.used, long.used)
    assert max(gaps) < 0.3


def test_an_account_with_three_users_has_the_share_of_one():
    gate, many, one = Turnstile(), Account(), Account()
    together(*(worker(gate, many, 0.01, 0.0, []) for _ in range(3)), worker(gate, one, 0.01, 0.002, []))
    assert abs(many.used - one.used) <= SLACK + 0.3 * one.used, (many.used, one.used)


def test_a_pause_earns_no_credit():
    gate, idle, busy = Turnstile(), Account(), Account()
    worker(gate, busy, 0.02, 0.0, [], 0.5)()
    before = busy.used
    together(worker(gate, idle, 0.01, 0.0, [], 0.4), worker(gate, busy, 0.01, 0.0, [], 0.4))
    assert busy.used - before > 0.1, "otherwise the one that comes back would catch up first"


def test_a_long_turn_lets_others_go_first_where_it_rests_and_goes_on_before_its_siblings():
    gate, long, short = Turnstile(), Account(), Account()
    order: list[str] = []
    began = threading.Event()

    def rests() -> None:
        with gate.turn(long):
            began.set()
            time.sleep(0.05)  # the others come and wait
            rest()
            order.append("long goes on")

    def waits(account: Account, name: str) -> Callable[[], None]:
        def work() -> None:
            began.wait()
            with gate.turn(account):
                order.append(name)

        return work

    together(rests, waits(short, "short"), waits(long, "sibling"))
    assert order == ["short", "long goes on", "sibling"]


def test_the_time_of_others_is_no_working_time():
    gate, long, short = Turnstile(), Account(), Account()
    began = threading.Event()
    worked: list[float] = []

    def rests() -> None:
        with gate.turn(long):
            started = working_clock()
            began.set()
            time.sleep(0.03)
            rest()
            worked.append(working_clock() - started)

    def waits() -> None:
        began.wait()
        with gate.turn(short):
            time.sleep(0.3)

    together(rests, waits)
    assert worked[0] < 0.2
    assert long.used < 0.2 < short.used


def test_a_thread_without_a_turn_rests_without_effect():
    assert turn_of_thread() is None
    rest()


def test_a_turn_that_is_stopped_ends_at_its_next_rest_or_never_begins():
    gate = Turnstile()
    turn = gate.turn(Account())

    def halted() -> None:
        with turn:
            rest()
            turn.stop = "no memory"
            rest()

    with pytest.raises(Halted, match="no memory"):
        halted()
    assert turn_of_thread() is None
    turn.stop = "still none"
    with pytest.raises(Halted, match="still none"), turn:
        pytest.fail("the turn has begun")
    with gate.turn(Account()):
        pass  # the lock is free


def test_growth_is_charged_to_the_turn_during_which_it_happens():
    size = 100
    gate = Turnstile(lambda: size)
    one, other = (gate.turn(Account()) for _ in range(2))
    with one:
        size += 7
        assert one.grown == 7
    with other:
        size += 1
    with one:
        size -= 3
    size += 50
    assert (one.grown, other.grown) == (4, 1)


def test_a_devices_work_is_waited_for_and_charged_if_others_wait():
    done: list[str] = []

    def finish() -> None:
        time.sleep(0.2)
        done.append("the device's work")

    gate, quick, other = Turnstile(finish=finish), Account(), Account()
    with gate.turn(quick):
        pass
    assert done == []
    assert quick.used < 0.1

    def waits() -> None:
        with gate.turn(other):
            pass

    with gate.turn(quick):
        thread = threading.Thread(target=waits)
        thread.start()
        while not gate.is_shared(quick):
            time.sleep(0.001)
    thread.join()
    assert done == ["the device's work"]
    assert quick.used > 0.2


def test_an_interrupted_wait_leaves_no_ticket_behind(monkeypatch: pytest.MonkeyPatch):
    gate, waiting = Turnstile(), Account()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with gate.turn(Account()):
        monkeypatch.setattr(gate._changed, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt), gate.turn(waiting):
            pytest.fail("the turn has begun")
        monkeypatch.undo()
    with gate.turn(Account()):
        pass


def test_turns_are_contexts_of_one_account():
    turn = Turn(Turnstile(), Account())
    with turn as held:
        assert held is turn is turn_of_thread()
