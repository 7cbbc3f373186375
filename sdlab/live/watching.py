"""What a viewer looks at closely: the lens on one view of a step, and the comparison of all losses."""

from __future__ import annotations

import time
from collections.abc import Iterator

from sdlab.channel import Latest, Turnstile
from sdlab.errors import reason
from sdlab.lens import Comparison, LensPictures, comparison_steps, probe, views_of_step
from sdlab.live.state import Run

LENS_EVERY = 0.3  # seconds
LENS_SHARE = 20.0  # pause between looks, as a multiple of the last look's duration: the lens takes under 1 / 20


class Watching:
    """The lens and the comparison of one session. `lens` and `comparison` may be read by any thread; the methods are
    for the owner of the run."""

    def __init__(self, turnstile: Turnstile) -> None:
        self.lens: Latest[LensPictures] = Latest()
        self.comparison: Latest[Comparison] = Latest()
        self.row: int | None = None  # the view that the lens shows, None while nobody looks
        self.t: int | None = None  # the timestep that the lens probes, None for that of each step
        self._turnstile = turnstile
        self._due = 0.0
        self._comparing: Iterator[Comparison] | None = None

    def watch(self, run: Run, row: int | None, t: int | None) -> None:
        """Point the lens at view `row`, at each step's timestep or at `t`; a `row` of None closes it."""
        self.row, self.t = row, t
        self.look(run, now=True)

    def look(self, run: Run, now: bool = False) -> None:
        """Update the lens if somebody looks and it is due, or `now`."""
        if self.row is None or run.state is None or not (now or time.monotonic() >= self._due):
            return
        started = time.perf_counter()
        try:
            with self._turnstile:
                seen = self._seen(run, self.row)
        except Exception as e:  # a look must not end a run
            seen = LensPictures(loss=run.effective.active, reason=f"nothing to show: {reason(e)}")
        if seen is not None:
            self.lens.set(seen)
        took = time.perf_counter() - started
        self._due = time.monotonic() + max(LENS_EVERY, LENS_SHARE * took)

    def _seen(self, run: Run, row: int) -> LensPictures | None:
        """Return what the lens shows; None before there is anything."""
        state, s, prior, bank = run.inputs()
        report, followed = run.trace.report, run.trace.settings
        if report is not None:
            row = min(row, len(report.cams) - 1)
        if self.t is not None:
            return probe(state, s, prior, bank, self.t, row, max(state.step - 1, 0))
        if report is None or followed is None:
            return None
        return views_of_step(report, followed, prior, row)

    # ---- the comparison ----------------------------------------------------------------------------------

    @property
    def comparing(self) -> bool:
        """Whether a comparison is under way."""
        return self._comparing is not None

    def compare(self, run: Run) -> None:
        """Start comparing the losses at the current state."""
        self._comparing = comparison_steps(*run.inputs())

    def compare_on(self) -> None:
        """Compare one more loss, if a comparison is under way. An error ends the comparison and is raised."""
        if self._comparing is None:
            return
        try:
            with self._turnstile:
                seen = next(self._comparing, None)
        except Exception:
            self._comparing = None
            raise
        if seen is None:
            self._comparing = None
        else:
            self.comparison.set(seen)

    def stop_comparing(self) -> None:
        """Give up the comparison under way: the prior has changed."""
        self._comparing = None

    def forget(self) -> None:
        """Clear what was seen: the scene has changed."""
        self.stop_comparing()
        self.lens.clear()
        self.comparison.clear()
