"""Latest value, event log, fair turnstile."""

import math
import pickle
import sys
import threading
import time

from sdlab.channel import EventLog, Latest, Turnstile
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
