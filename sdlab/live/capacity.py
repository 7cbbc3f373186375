"""How many seats a server carries at how many steps a second, from a short measurement of its own settings."""

from __future__ import annotations

import math
import time
from typing import NamedTuple

import torch

from sdlab.channel import Account, Turnstile
from sdlab.live.building import LoadPrior
from sdlab.live.cost import Load
from sdlab.live.moments import size_of
from sdlab.live.session import Session
from sdlab.live.timeline import FILM_BYTES, MOST_MOMENTS
from sdlab.settings import Settings

WARM_UP = 5  # uncounted steps
SECONDS, MOST_STEPS = 2.0, 200  # of the device's time that is measured, and steps at most
LOG_BYTES = 4_000_000  # of the statistics of the last 5000 steps
LIVE = 3  # copies of its state that a run holds besides: the state, its gradients, the last frame
WATCHABLE = 1.0  # steps a second, below which nothing seems to move


class Capacity(NamedTuple):
    """`step` is how many seconds of the device's time a step takes, `seat_bytes` how much memory a seat may come to use
    and `room` how much there is for all, None where there is no limit."""

    step: float
    seat_bytes: int
    seats: int
    room: int | None = None

    def rate(self, seats: int) -> float:
        """Return the steps a second that each of `seats` runs makes when all run."""
        return 1 / (self.step * seats)

    @property
    def most(self) -> int:
        """Seats of which each makes a step a second, and which fit into memory; at least 1."""
        fitting = math.inf if self.room is None else self.room / self.seat_bytes
        return max(int(min(1 / (self.step * WATCHABLE), fitting)), 1)

    def __str__(self) -> str:
        alone, all_run = self.rate(1), self.rate(self.seats)
        each = f"{alone:.3g} steps a second alone"
        if self.seats > 1:
            each += f", {all_run:.2g} each when all {self.seats} run"
        return (
            f"{each}; this machine carries {self.most} seats at {WATCHABLE:g} step a second, "
            f"each with up to {self.seat_bytes / 1e6:.0f} MB of memory"
        )


def measured(
    settings: Settings,
    device: torch.device,
    load: LoadPrior,
    turnstile: Turnstile,
    seats: int,
    history: int,
    room: int | None = None,
) -> Capacity:
    """Return the capacity for `seats` runs of `settings` whose moments take at most `history` bytes each, in `room`
    bytes. Runs it for a moment; others that run meanwhile get their turns. Raises RuntimeError when a step fails."""
    session = Session(settings.patch("steps", 1_000_000), device, load, turnstile.turn(Account()))
    session.run(until=WARM_UP)
    step = _seconds_per_step(session, turnstile)
    state, passes = size_of(session.moment().parts), Load.of(session.effective, session.prior).step_bytes
    seat_bytes = min(MOST_MOMENTS * state, history) + FILM_BYTES + LOG_BYTES + LIVE * state + int(passes)
    return Capacity(step, seat_bytes, seats, room)


def _seconds_per_step(session: Session, turnstile: Turnstile) -> float:
    """Return the seconds of work that a step takes, without waiting for others; on a GPU, until it is idle again."""
    first, taken = session.state.step, 0.0
    worked, began = session.state.seconds, time.perf_counter()
    while taken < SECONDS and session.state.step < first + MOST_STEPS:
        session.run(until=session.state.step + 1)
        turnstile.finish()
        on_gpu = session.device.type == "cuda"
        taken = time.perf_counter() - began if on_gpu else session.state.seconds - worked
    return taken / (session.state.step - first)
