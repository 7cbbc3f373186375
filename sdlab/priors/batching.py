"""Several live sessions that share a prior also share its forwards (continuous batching).

Whoever gets to the network evaluates everything that waits for it, up to a number of pictures; while it does, the
requests of the others gather for the next. So a session alone waits for nobody, and n of them cost less than n times
one wherever the network is not yet busy with the pictures of one. Answers may then differ in their last bits from
those of a session alone: the kernels of another batch size round in another order.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sdlab.channel import Turnstile
from sdlab.types import Cond, Prior, cat_conds

MOST_PICTURES = {"cpu": 8, "cuda": 32}  # beyond, a forward takes as much longer as it holds more


class _Request:
    """Pictures that wait for their noise prediction."""

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
        """Whether one forward can hold both."""
        return (
            self.z_t.shape[1:] == other.z_t.shape[1:]
            and self.z_t.dtype == other.z_t.dtype
            and self.cond.hidden.shape[1:] == other.cond.hidden.shape[1:]
            and {k: v.shape[1:] for k, v in self.cond.extra.items()}
            == {k: v.shape[1:] for k, v in other.cond.extra.items()}
        )


class Together:
    """`prior`, whose `eps` may be called by several threads at once and then answers them together."""

    def __init__(self, prior: Prior, most: int | None = None) -> None:
        self._prior = prior
        self._most = most or MOST_PICTURES.get(prior.device.type, MOST_PICTURES["cpu"])
        self._waiting: deque[_Request] = deque()
        self._arriving = threading.Lock()
        self._network = Turnstile()
        self.forwards = 0
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prior, name)

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """As the prior's own, and for two sessions with as many each."""
        sizes = set(batch_sizes)
        self._prior.prepare(sizes | {2 * b for b in sizes if 2 * b <= self._most})

    @torch.no_grad()
    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """As the prior's own `eps`, and with its errors, which reach only those whose request is at fault."""
        request = _Request(z_t, t, cond)
        with self._arriving:
            self._waiting.append(request)
        with self._network:
            while not request.done:
                self._answer(self._next())
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer

    def _next(self) -> list[_Request]:
        """The request that has waited longest, and those behind it that go with it."""
        with self._arriving:
            chosen = [self._waiting.popleft()]
            room = self._most - len(chosen[0].z_t)
            for request in list(self._waiting):
                if len(request.z_t) <= room and request.fits(chosen[0]):
                    self._waiting.remove(request)
                    chosen.append(request)
                    room -= len(request.z_t)
            return chosen

    def _answer(self, requests: list[_Request]) -> None:
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
                for request in requests:  # so that the one at fault, or too much memory for all, spoils nobody else's
                    self._answer([request])
            else:
                for request in requests:
                    request.error = e
