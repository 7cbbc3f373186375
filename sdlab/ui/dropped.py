"""Runs dropped onto the page, as a ZIP file of a run's folder: their settings, and an offer to continue them."""

from __future__ import annotations

from typing import NamedTuple

from sdlab.live.checkpoint import unpack
from sdlab.live.clients import NO_LIMIT
from sdlab.packed import PackedRun, run_in
from sdlab.parsing import Limits, parsed
from sdlab.ui.lane import Lane

MOST_CHECKPOINT = 400_000_000  # bytes of the files of one; an auxiliary network with its optimiser takes 100 MB
NO_STATE = f"its checkpoint was not loaded: this server is shared, and takes no state from files; {NO_LIMIT}"


class Offer(NamedTuple):
    """A run that can be continued from its checkpoint."""

    name: str
    run: PackedRun

    def accept(self, lane: Lane) -> None:
        """Let a lane continue from the checkpoint, paused; its status line says if that fails."""
        try:
            answer = lane.seat.session.continue_from(unpack(self.run))
        except ValueError as e:
            lane.say("error", f"{self.name}: {e}")
            return

        def told(_: object) -> None:
            if (error := answer.exception()) is not None:
                lane.say("error", f"{self.name}: {error}")

        answer.add_done_callback(told)


def read_run(raw: bytes, given: str, limits: Limits, shared: bool) -> PackedRun:
    """Return the run in an archive; on a `shared` server without its checkpoint. Raises ValueError, which begins with
    `given`, if there is none or it exceeds `limits`."""
    most = 0 if shared else MOST_CHECKPOINT
    run = parsed(run_in, raw, given, most, given=given, kinds=(PackedRun,), limits=limits)
    return run._replace(remark=NO_STATE) if shared and run.remark else run
