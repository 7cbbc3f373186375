"""Shared by the benchmarks of steps: sessions controlled by a benchmark, and statistics over rounds.

Machines are noisy, so everything that is compared alternates within one process. A round is a dict, key -> ms. Times
are medians over rounds; ratios are medians of the ratios within a round.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from sdlab.live.building import LoadPrior, load_prior
from sdlab.live.messages import Event, Failed, Stepped, Stop
from sdlab.live.session import Session
from sdlab.settings import Settings
from sdlab.step import STAGES

Round = Mapping[str, float]


class Lane:
    """A session that steps on demand and publishes frames as for the page.

    It takes the first `warm_up` steps at once (compilation, caches, warm-up of the loss). Raises RuntimeError if a step
    fails.
    """

    def __init__(
        self,
        settings: Settings,
        warm_up: int,
        load: LoadPrior = load_prior,
        device: torch.device | str = "cpu",
    ) -> None:
        self.session = Session(settings.patch("steps", 1_000_000), device, load)
        self._stages: dict[str, list[float]] = {stage: [] for stage in STAGES}
        self._counting = False
        self._failure = ""
        self._goal = 0  # step to reach
        self.session.listen(self._listen)
        self._run_on(warm_up)

    def _listen(self, event: Event) -> None:
        match event:
            case Stepped(_, stats) if self._counting:
                for stage in STAGES:
                    self._stages[stage].append(stats[f"ms_{stage}"])
            case Failed(number, reason):
                self._failure = f"step {number} of {self.session.settings.active} failed: {reason}"
                self.session.send(Stop())

    def _run_on(self, n: int) -> None:
        self._goal += n
        self.session.run(until=self._goal)
        if self._failure:
            raise RuntimeError(self._failure)

    def steps(self, n: int, uncounted: int = 0) -> float:
        """Return the milliseconds per step of `n` more steps, frames included, after `uncounted` others."""
        if uncounted:
            self._run_on(uncounted)
        self._counting = True
        wait_for(self.session.device)
        started = time.perf_counter()
        self._run_on(n)
        wait_for(self.session.device)
        ms = 1e3 * (time.perf_counter() - started) / n
        self._counting = False
        return ms

    def stages_ms(self, average: Callable[[Sequence[float]], float]) -> dict[str, float]:
        """Return the average of each stage over all counted steps."""
        return {stage: round(average(values), 2) for stage, values in self._stages.items() if values}

    @property
    def gaussians(self) -> int:
        return int(self.session.state.scene.params["means"].shape[0])


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_engines(s: Settings) -> bool:
    """Return whether the prior's network can run on different engines."""
    return any(f.name == "engine" for f in dataclasses.fields(s.prior))


def median(rows: Sequence[Round], key: str) -> float:
    return round(statistics.median(row[key] for row in rows), 2)


def ratio(rows: Sequence[Round], a: str, b: str) -> float:
    return round(statistics.median(row[a] / row[b] for row in rows), 2)
