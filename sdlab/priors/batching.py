"""Continuous batching: live sessions that share a prior also share its forward passes.

The thread that acquires the network runs all queued requests as one batch, up to a maximum size; requests that arrive
meanwhile form the next. So a lone session never waits, and n sessions cost less than n times one, as long as one
session's batch does not saturate the network. The last bits of a prediction may differ from a lone session's, because
kernels round in a different order at a different batch size.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable

import torch
from torch import Tensor

from sdlab.channel import Turnstile
from sdlab.priors.wrapping import WrappedPrior
from sdlab.types import Cond, Prior, cat_conds

MAX_BATCH = {"cpu": 8, "cuda": 32}  # images; beyond this, time only grows in proportion


class _Request:
    """A batch of one session, waiting for its noise prediction."""

    def __init__(self, z_t: Tensor, t: Tensor, cond: Cond) -> None:
        self.z_t = z_t
        self.t = t
        self.cond = cond
        self.answer: Tensor | None = None
        self.error: BaseException | None = None

    @property
    def done(self) -> bool:
        return self.answer is not None or self.error is not None

    def fits(self, other: _Request) -> bool:
        """Return whether both can go into one batch."""
        return (
            self.z_t.shape[1:] == other.z_t.shape[1:]
            and self.z_t.dtype == other.z_t.dtype
            and self.cond.hidden.shape[1:] == other.cond.hidden.shape[1:]
            and {k: v.shape[1:] for k, v in self.cond.extra.items()}
            == {k: v.shape[1:] for k, v in other.cond.extra.items()}
        )


class BatchingPrior(WrappedPrior):
    """Wraps `prior` so that concurrent calls of `eps` are combined into batches of at most `max_batch` images.

    `forwards` counts the batches run so far, `requests` the calls they answered; `queue` holds the waiting ones.
    """

    def __init__(self, prior: Prior, max_batch: int | None = None) -> None:
        super().__init__(prior)
        self._max_batch = max_batch or MAX_BATCH.get(prior.device.type, MAX_BATCH["cpu"])
        self.queue: deque[_Request] = deque()
        self._queue_lock = threading.Lock()
        self._network = Turnstile()
        self.forwards = 0
        self.requests = 0

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Prepare the prior for these batch sizes, and for twice each: two sessions in one batch."""
        sizes = set(batch_sizes)
        self._prior.prepare(sizes | {2 * b for b in sizes if 2 * b <= self._max_batch})

    @torch.no_grad()
    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the prior's own `eps`, or raise its error; an error reaches only the callers that caused it."""
        request = _Request(z_t, t, cond)
        with self._queue_lock:
            self.queue.append(request)
        with self._network:
            while not request.done:
                self._run(self._next_batch())
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def _next_batch(self) -> list[_Request]:
        """Take the oldest request from the queue, and later ones that fit in a batch with it."""
        with self._queue_lock:
            chosen = [self.queue.popleft()]
            room = self._max_batch - len(chosen[0].z_t)
            for request in list(self.queue):
                if len(request.z_t) <= room and request.fits(chosen[0]):
                    self.queue.remove(request)
                    chosen.append(request)
                    room -= len(request.z_t)
            return chosen

    def _run(self, requests: list[_Request]) -> None:
        self.forwards += 1
        self.requests += len(requests)
        try:
            if len(requests) == 1:
                requests[0].answer = self._prior.eps(requests[0].z_t, requests[0].t, requests[0].cond)
                return
            z_t, t = (torch.cat(parts) for parts in zip(*((r.z_t, r.t) for r in requests), strict=True))
            answers = self._prior.eps(z_t, t, cat_conds([r.cond for r in requests]))
            for request, answer in zip(requests, answers.split([len(r.z_t) for r in requests]), strict=True):
                request.answer = answer
        except BaseException as e:
            if len(requests) > 1 and isinstance(e, Exception):
                for request in requests:  # one may be at fault, or memory suffices only for each alone
                    self._run([request])
            else:
                for request in requests:
                    request.error = e
