"""What a viewer looks at closely: the lens on one view of a step, the comparison of all losses, and the views around
the object that charts measure."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from sdlab.cameras import turntable
from sdlab.channel import Latest, Turn
from sdlab.errors import reason
from sdlab.lens import Comparison, LensPictures, comparison_steps, probe, texts_with_truth, views_of_step
from sdlab.live.state import Run
from sdlab.pictures import to_uint8
from sdlab.priors import PriorConfig
from sdlab.priors.judged import knows
from sdlab.priors.truth import Truth, truth_of
from sdlab.scenes import FlatScene
from sdlab.settings import Settings
from sdlab.types import Prior

LENS_EVERY = 0.3  # seconds
LENS_SHARE = 20.0  # pause between looks, as a multiple of the last look's duration: the lens takes under 1 / 20
AROUND_VIEWS = 12
AROUND_EVERY, AROUND_SHARE = 4.0, 50.0  # as for the lens: rendering the views around takes under 1 / 50


class Around(NamedTuple):
    """The object after a step: uint8 [AROUND_VIEWS, S, S, 3] on white, evenly around it, the first of its front."""

    step: int
    images: np.ndarray


class Watching:
    """The lens and the comparison of one session, and the views around its object. `lens`, `comparison` and `around`
    may be read by any thread; the methods are for the owner of the run. `news` is called by another thread when the
    lens could show more than before."""

    def __init__(self, turn: Turn, news: Callable[[], None]) -> None:
        self.lens: Latest[LensPictures] = Latest()
        self.comparison: Latest[Comparison] = Latest()
        self.around: Latest[Around] = Latest()
        self.row: int | None = None  # the view that the lens shows, None while nobody looks
        self.t: int | None = None  # the timestep that the lens probes, None for that of each step
        self.exact = False  # whether the lens shows exact predictions beside the network's
        self.absent = ""  # why the lens shows nothing of a run without a report, "" if one will come
        self._turn = turn
        self._news = news
        self._drawing: Drawing | None = None
        self._drawn_for: Prior | None = None
        self._due = self._around_due = 0.0
        self._took = self._around_took = 0.0  # seconds, by the last look
        self._comparing: Iterator[Comparison] | None = None

    def watch(self, run: Run, row: int | None, t: int | None, exact: bool = False) -> None:
        """Point the lens at view `row`, at each step's timestep or at `t`, with exact predictions or without; a `row`
        of None closes it."""
        self.row, self.t, self.exact = row, t, exact
        if not exact:
            self.stop_drawing()
        self.look(run, now=True)

    def look(self, run: Run, now: bool = False) -> None:
        """Update the lens if somebody looks and it is due, or `now`."""
        if self.row is None or run.state is None or not (now or time.monotonic() >= self._due):
            return
        took = 0.0
        try:
            with self._turn:  # waiting for it is no time of the lens
                started = time.perf_counter()
                seen = self._seen(run, self.row)
                took = time.perf_counter() - started
        except Exception as e:  # a look must not end a run
            seen = LensPictures(loss=run.effective.active, reason=f"nothing to show: {reason(e)}")
        if seen is not None:
            self.lens.set(seen)
        usual = min(took, self._took)  # the first look, or the first of a loss, also compiles
        self._took = took
        self._due = time.monotonic() + max(LENS_EVERY, LENS_SHARE * usual)

    def _seen(self, run: Run, row: int) -> LensPictures | None:
        """Return what the lens shows; None before there is anything."""
        state, s, prior, bank = run.inputs()
        report, followed = run.trace.report, run.trace.settings
        if report is not None:
            row = min(row, len(report.cams) - 1)
        if self.t is None and followed is not None:
            s = followed
        truth, note = self._truth(s, run.effective.prior, prior)
        if self.t is not None:
            seen = probe(state, s, prior, bank, self.t, row, max(state.step - 1, 0), truth)
        elif report is not None:
            seen = views_of_step(report, s, prior, row, truth)
        else:
            return LensPictures(loss=s.active, reason=self.absent) if self.absent else None
        return replace(seen, note="; ".join(n for n in (seen.note, note) if n))

    # ---- the views around ---------------------------------------------------------------------------------

    def go_around(self, run: Run, now: bool = False) -> None:
        """Render the views around the object if they are due, or `now`, and the scene has changed and has sides."""
        seen = self.around.get()
        if not (now or time.monotonic() >= self._around_due) or (seen is not None and seen.step == run.step):
            return
        took = 0.0
        try:
            with self._turn:
                started = time.perf_counter()
                images = views_around(run)
                took = time.perf_counter() - started
        except Exception:  # a look must not end a run; without the views, their charts end
            images = None
        if images is None:
            self.around.clear()
        else:
            self.around.set(Around(run.step, images))
        usual = min(took, self._around_took)  # the first time may also compile
        self._around_took = took
        self._around_due = time.monotonic() + max(AROUND_EVERY, AROUND_SHARE * usual)

    # ---- the exact predictions ---------------------------------------------------------------------------

    def _truth(self, s: Settings, config: PriorConfig, prior: Prior) -> tuple[Truth | None, str]:
        """Return the exact predictions of `prior`, loaded from `config`, if somebody wants to see them, and a note for
        the user. Have the images drawn that the texts of `s` lack."""
        if not self.exact:
            return None, ""
        if self._drawing is None or self._drawn_for is not prior:
            self.stop_drawing()
            try:
                self._drawing, self._drawn_for = Drawing(truth_of(config, prior), self._news), prior
            except ValueError as e:
                return None, str(e)
        return self._drawing.truth, self._drawing.want(texts_with_truth(s))

    def stop_drawing(self) -> None:
        """Draw no more images for exact predictions, once those under way are done."""
        if self._drawing is not None:
            self._drawing.want(())

    # ---- the comparison ----------------------------------------------------------------------------------

    @property
    def comparing(self) -> bool:
        """Whether a comparison is under way."""
        return self._comparing is not None

    def compare(self, run: Run, names: Sequence[str] | None = None) -> None:
        """Start comparing the losses `names`, or all, at the current state."""
        self._comparing = comparison_steps(*run.inputs(), names)

    def compare_on(self) -> None:
        """Compare one more loss, if a comparison is under way. An error ends the comparison and is raised."""
        if self._comparing is None:
            return
        try:
            with self._turn:
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
        self.around.clear()


@torch.no_grad()
def views_around(run: Run) -> np.ndarray | None:
    """Return the views around the object, see `Around`; None for a scene that has no sides. What the toybox's judge can
    read is seen from the distance of its training images."""
    from sdlab.toybox.judge import data_camera  # imports numba, which takes half a second

    state, s, prior, _ = run.inputs()
    if isinstance(state.scene, FlatScene):
        return None
    camera = data_camera(s.camera) if knows(s.prior) else s.camera
    cams = turntable(AROUND_VIEWS, camera, prior.image_size)
    return to_uint8(state.scene.render(cams, torch.ones(AROUND_VIEWS, 3)).rgb)


class Drawing:
    """Draws the images of a truth in a thread that ends when there is nothing left to draw; `news` is called by that
    thread after each text."""

    def __init__(self, truth: Truth, news: Callable[[], None]) -> None:
        self.truth = truth
        self._news = news
        self._lock = threading.Lock()
        self._left: list[str] = []
        self._thread: threading.Thread | None = None
        self._failure = ""

    def want(self, texts: Collection[str]) -> str:
        """Draw what these texts lack, and nothing else. Return a note for the user, "" when everything is drawn."""
        missing = [text for text in texts if not self.truth.has(text)]
        with self._lock:
            if self._failure:
                return f"no exact predictions: {self._failure}"
            self._left = missing
            if missing and self._thread is None:
                self._thread = threading.Thread(target=self._draw, name="truth", daemon=True)
                self._thread.start()
        done = len(texts) - len(missing)
        return f"drawing images for the exact predictions, {done} of {len(texts)} texts are done" if missing else ""

    def _draw(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._thread = None
                    return
                text = self._left.pop(0)
            try:
                self.truth.prepare(text)
            except Exception as e:  # such as memory: the run continues without
                with self._lock:
                    self._failure = reason(e)
                    self._left.clear()
            self._news()
