"""The terminal of a run: its progress, its messages, and the signals that end it."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from sdlab.console import say
from sdlab.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from sdlab.live.messages import Event
    from sdlab.live.session import Session


class Console:
    """A session listener that shows progress on stderr, refusals above the bar, and stops a run whose step fails.

    The run continues if stderr cannot be written, as after its terminal was closed.
    """

    def __init__(self, session: Session, first: int, until: int) -> None:
        self.failure = ""
        self._session = session
        self._shown, self._shown_at = "", 0.0
        with _unheard():
            self._bar = progress_bar(until, "step", initial=first)

    def __call__(self, event: Event) -> None:
        from sdlab.live.messages import Failed, Stop

        if isinstance(event, Failed):
            self.failure = event.reason
            self._session.send(Stop())
        with _unheard():
            self._show(event)

    def stepped(self, number: int) -> None:
        """Show how far the run has come."""
        with _unheard():
            self._bar.update(number - self._bar.n)

    def warn(self, text: str) -> None:
        """Show a line above the bar."""
        with _unheard():
            self._bar.write(f"sdlab: {text}", file=sys.stderr)

    def close(self) -> None:
        with _unheard():
            self._bar.close()

    def _show(self, event: Event) -> None:
        from sdlab.live.messages import Rejected, Skipped, Status, Stepped

        match event:
            case Stepped(_, stats):
                if "n_gaussians" in stats:
                    self._bar.set_postfix_str(f"{stats['n_gaussians']:.0f} Gaussians", refresh=False)
            case Status(_, phase, text):
                self._describe(phase, text)
            case Skipped(number, what):
                self._bar.write(f"step {number} skipped: {what} is not finite", file=sys.stderr)
            case Rejected(number, path, value, why):
                self._bar.write(f"step {number}: {path} = {value!r} was refused: {why}", file=sys.stderr)

    def _describe(self, phase: str, text: str) -> None:
        """Show the session's activity in front of the bar. A warm-up reports many times a second and takes no steps."""
        before, self._shown = self._shown, text if phase == "running" else phase
        self._bar.set_description_str(self._shown, refresh=False)
        if (self._shown == phase) != (before == phase) or time.monotonic() - self._shown_at > self._bar.mininterval:
            self._shown_at = time.monotonic()
            self._bar.refresh()


def _unheard() -> contextlib.suppress:
    """Ignore that a stream is closed, or has an encoding without the characters of a message."""
    return contextlib.suppress(OSError, ValueError)


def _wait_for(text: str) -> None:
    """Print what the user waits for."""
    with _unheard():
        print(f"{text} ...", file=sys.stderr)


def print_loading(event: Event) -> None:
    """Print what a session loads or compiles, and its notes."""
    from sdlab.live.messages import Noted, Status

    if isinstance(event, Status) and event.phase in ("loading", "compiling"):
        _wait_for(event.text)
    elif isinstance(event, Noted):
        say(f"note: {event.text}")


def rasteriser_for(scene: Any, device: torch.device) -> dict[str, str]:
    """Return the rasteriser of a 3D scene for result.json, and tell the user if it is a fallback."""
    if scene.kind != "splats":
        return {}
    from sdlab.raster import announcement_for, backend_for

    announcement = announcement_for(device)
    if announcement:
        _wait_for(announcement)
    name, note = backend_for(device)
    if note:
        say(note)
    return {"rasteriser": name, "rasteriser_note": note}


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP call `stop`, so that results are kept, and a second Ctrl-C interrupt as
    usual. Further SIGTERMs and SIGHUPs are ignored: shells and `timeout` send theirs twice.

    Yields a function that tells whether there was one.
    """
    received: list[int] = []

    def handler(number: int, frame: Any) -> None:
        if received and number != signal.SIGINT:
            return
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    numbers = [signal.SIGINT]
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; nohup ignores it
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) != signal.SIG_IGN:
            numbers.append(number)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield lambda: bool(received)
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
