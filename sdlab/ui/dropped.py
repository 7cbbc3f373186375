"""Runs dropped onto the page, as a ZIP file of a run's folder: their settings, and an offer to continue them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sdlab.live.checkpoint import unpack
from sdlab.live.clients import NO_LIMIT
from sdlab.packed import PackedRun, run_in
from sdlab.parsing import Limits, parsed

if TYPE_CHECKING:
    from sdlab.ui.desk import Desk
    from sdlab.ui.page import Page

MOST_CHECKPOINT = 400_000_000  # bytes of the files of one; an auxiliary network with its optimiser takes 100 MB
NO_STATE = f"its checkpoint was not loaded: this server is shared, and takes no state from files; {NO_LIMIT}"


class Offer(NamedTuple):
    """A run that can be continued from its checkpoint."""

    name: str
    run: PackedRun

    @property
    def told(self) -> dict[str, Any]:
        """What the page is told."""
        step = self.run.step
        return {"step": step, "said": f"The settings of {self.name} are opened. It was saved at step {step}."}

    def accept(self, page: Page, desk: Desk) -> None:
        """Let the lane in focus continue from the checkpoint, paused; its status line says if that fails."""
        lane = desk.focus
        try:
            lane.continue_from(unpack(self.run), self.name)
        except ValueError as e:
            lane.say("error", f"{self.name}: {e}")


def read_run(raw: bytes, given: str, limits: Limits, shared: bool) -> PackedRun:
    """Return the run in an archive; on a `shared` server without its checkpoint. Raises ValueError, which begins with
    `given`, if there is none or it exceeds `limits`."""
    most = 0 if shared else MOST_CHECKPOINT
    run = parsed(run_in, raw, given, most, given=given, kinds=(PackedRun,), limits=limits)
    return run._replace(remark=NO_STATE) if shared and run.remark else run
