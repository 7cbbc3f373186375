"""Sessions that share a prior's forward passes."""

import threading

import pytest
import torch
from waiting import until

from sdlab.live.manager import Manager
from sdlab.live.messages import Failed, Resume
from sdlab.priors.batching import BatchingPrior
from sdlab.priors.mixture import MixturePrior
from sdlab.priors.wrapping import WrappedPrior
from sdlab.types import Prior, cat_conds

WAIT = 10.0  # seconds; a safety limit, everything here takes less than one


class Slow(WrappedPrior):
    """A prior that records the batch sizes it is asked for, and does not answer before `go`."""

    def __init__(self) -> None:
        super().__init__(MixturePrior(height=4, width=4).load(torch.device("cpu")))
        self.go = threading.Event()
        self.asked: list[int] = []
        self.breaks_on = -1.0  # an image of this value
        self.most = 1000

    def eps(self, z_t, t, cond):
        self.asked.append(len(z_t))
        assert self.go.wait(WAIT)
        if bool((z_t == self.breaks_on).any()):
            raise ValueError("this image is broken")
        if len(z_t) > self.most:
            raise torch.OutOfMemoryError("too much for one forward pass")
        return self._prior.eps(z_t, t, cond)


def pictures(prior, n, value=0.5):
    cond = cat_conds([prior.embed("a red bear")] * n)
    return torch.full((n, *prior.shape), value), torch.full((n,), 500), cond


def asked_at_once(shared, slow, requests):
    """Return the answers or errors of `requests`; the first is in the network when the others arrive, in order."""
    results = [None] * len(requests)

    def ask(i):
        try:
            results[i] = shared.eps(*requests[i])
        except Exception as e:
            results[i] = e

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
    for i, thread in enumerate(threads):
        thread.start()
        until(lambda i=i: len(slow.asked) + len(shared.queue) > i, WAIT)
    slow.go.set()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    return results


def test_requests_that_arrive_meanwhile_form_one_batch():
    slow = Slow()
    shared = BatchingPrior(slow, max_batch=8)
    requests = [pictures(slow, n, 0.1 * n) for n in (2, 2, 4, 2, 1)]
    answers = asked_at_once(shared, slow, requests)
    assert slow.asked == [2, 8, 1], "the first alone, then as many as fit"
    assert (shared.forwards, shared.requests) == (3, 5)
    for request, answer in zip(requests, answers, strict=True):
        assert torch.allclose(answer, slow._prior.eps(*request), atol=1e-6)


def test_a_lone_request_gets_the_priors_own_answer():
    prior = MixturePrior(height=4, width=4).load(torch.device("cpu"))
    shared = BatchingPrior(prior)
    assert isinstance(shared, Prior)
    request = pictures(prior, 3)
    assert torch.equal(shared.eps(*request), prior.eps(*request))
    assert (shared.name, shared.shape) == (prior.name, prior.shape)


def test_a_request_that_does_not_fit_waits_for_the_next_batch():
    slow = Slow()
    shared = BatchingPrior(slow, max_batch=8)
    z, t, cond = pictures(slow, 2)
    results = asked_at_once(shared, slow, [(z, t, cond), (z, t, cond), (z.double(), t, cond), (z, t, cond)])
    assert slow.asked == [2, 4, 2]
    assert [r.dtype for r in results] == [torch.float32, torch.float32, torch.float64, torch.float32]


def test_an_error_reaches_only_the_request_at_fault():
    slow = Slow()
    slow.breaks_on = 7.0
    results = asked_at_once(BatchingPrior(slow), slow, [pictures(slow, 1, v) for v in (0.0, 0.1, 7.0, 0.3)])
    assert [isinstance(r, ValueError) for r in results] == [False, False, True, False]
    assert slow.asked == [1, 3, 1, 1, 1]


def test_too_much_memory_for_all_is_not_too_much_for_each():
    slow = Slow()
    slow.most = 2
    results = asked_at_once(BatchingPrior(slow), slow, [pictures(slow, 2, v) for v in (0.0, 0.1, 0.2)])
    assert all(isinstance(r, torch.Tensor) for r in results)


def test_batches_of_two_sessions_are_prepared_where_they_fit(monkeypatch: pytest.MonkeyPatch):
    prepared = []
    monkeypatch.setattr(Slow, "prepare", lambda _, sizes: prepared.append(sizes))
    BatchingPrior(Slow(), max_batch=8).prepare([2, 4, 6])
    assert prepared == [{2, 4, 6, 8}]


def shown_step(seat) -> int:
    """Step of the latest frame, -1 before the first."""
    frame = seat.session.latest.get()
    return -1 if frame is None else frame.step


def failed(seats) -> list[Failed]:
    return [e for seat in seats for e in seat.session.events.since()[0] if isinstance(e, Failed)]


@pytest.mark.slow
@pytest.mark.parametrize("batching", [False, True])
def test_sessions_of_a_batching_server_run_side_by_side(quick, batching):
    manager = Manager(max_sessions=3, batching=batching)
    try:
        seats = [manager.open(quick.patch_all([("steps", 100_000), ("seed", i)])) for i in range(3)]
        for seat in seats:
            seat.session.send(Resume())
        until(lambda: failed(seats) or all(shown_step(seat) >= 20 for seat in seats), 60)
        assert not failed(seats)
        prior = seats[0].session.prior
        assert isinstance(prior, BatchingPrior) == batching
        if batching:
            assert prior.requests >= 60
            assert prior.forwards <= prior.requests
    finally:
        manager.shutdown()
