"""The API for programs and agents: typed, named endpoints of Gradio, on by `app.py --api`; see also `sdlab.ui.agents`.

A run that `start` opens has a token, unguessable and the only key to it. It has a seat like a page's, with the same
limits, and ends when nobody has asked for it for as long as a page's would, or with `stop`. Every endpoint answers at
once or within seconds; errors are `gr.Error`, whose text reaches the caller.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import secrets
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import gradio as gr
import numpy as np
from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from sdlab.errors import first_line
from sdlab.knobs import shown
from sdlab.lens.compare import Comparison
from sdlab.live.clients import NO_LIMIT, Bucket
from sdlab.live.manager import Manager, Seat
from sdlab.live.messages import Applied, Compare, Event, Failed, Noted, Patch, Pause, Rejected, Resume, Skipped, Stepped
from sdlab.settings import Settings
from sdlab.ui import thumbnails
from sdlab.ui.answers import client_address
from sdlab.ui.results import FORMATS, Shelves
from sdlab.ui.visitors import PATIENCE, Visitors

CHANGE_WITHIN, COMPARE_WITHIN, EXPORT_WITHIN = 5.0, 120.0, 120.0  # seconds to wait for an answer of the run
POLL = 0.05  # seconds
STARTS = 0.5, 10.0  # runs a second that a server starts for programs, and at once
CALLS = 4  # that are answered at a time
TOLD = 20  # remarks of a run that `status` repeats


@dataclass
class Run:
    """A run of the API: its seat, the key of its files, and which events were told."""

    seat: Seat
    shelf: str
    next_event: int = 0


def _told(endpoint: Callable[..., Any], limiter: CapacityLimiter) -> Callable[..., Awaitable[Any]]:
    """Answer in a thread, and pass what is wrong on to the caller; any other error is a fault of the server, of which
    only the log has details."""

    @functools.wraps(endpoint)
    async def answer(*args: Any, **kwargs: Any) -> Any:
        args = tuple(gr.Request(a) if isinstance(a, Request) else a for a in args)  # MCP gives Starlette's
        try:
            return await to_thread.run_sync(functools.partial(endpoint, *args, **kwargs), limiter=limiter)
        except (ValueError, RuntimeError, TimeoutError) as e:
            raise gr.Error(first_line(e, 500), print_exception=False) from e
        except Exception as e:
            traceback.print_exc()
            raise gr.Error("the server failed to answer", print_exception=False) from e

    return answer


class Api:
    """The endpoints. Visitors of a public server have their limits and locked knobs here, too."""

    def __init__(self, manager: Manager, visitors: Visitors, shelves: Shelves) -> None:
        self._manager = manager
        self._visitors = visitors
        self._shelves = shelves
        self._lock = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._starts = Bucket(*STARTS)

    def add(self) -> None:
        """Add the endpoints to the Gradio page that is being built."""
        steering = self.start, self.status, self.set, self.stop
        endpoints: tuple[Callable[..., Any], ...] = (self.presets, *steering, self.frame, self.compare, self.export)
        limiter = CapacityLimiter(CALLS)
        for endpoint in endpoints:
            gr.api(
                _told(endpoint, limiter),
                api_name=endpoint.__name__,
                # HTTP calls are queued all the same. Queued tools of MCP would be called by way of the server's own
                # address, where the limits of the caller's address do not hold.
                queue=False,
                concurrency_limit=CALLS,
                concurrency_id="api",
            )

    # ---- endpoints ---------------------------------------------------------------------------------------

    def presets(self) -> list[str]:
        """Return the names of the presets that this server offers."""
        return list(self._visitors.presets)

    def start(
        self,
        request: gr.Request,
        preset: str = "",
        prompt: str = "",
        changes: dict[str, Any] | None = None,
        paused: bool = False,
    ) -> dict[str, Any]:
        """Start a run and return its token as `run`, which the other endpoints need.

        preset: one of `presets`, "" for the server's own; prompt: what to make, "" for the preset's; changes: knobs by
        path, such as {"losses.sds.cfg": 7.5, "steps": 300, "seed": 1}; paused: wait at step 0.
        """
        if self._starts.take(1) > 0:
            raise RuntimeError("too many runs were started at once: try again in a few seconds")
        wanted = self._wanted(preset, prompt, changes or {})
        client = self._visitors.client(client_address(request), self._manager.max_sessions)
        seat = self._manager.open(wanted, client)
        token, shelf = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        with self._lock:
            self._runs[token] = Run(seat, shelf)
        seat.on_close.append(lambda: self._forget(token))
        seat.session.in_detail = True
        if not paused:
            seat.session.send(Resume())
        return {"run": token, **self._state(self._runs[token])}

    def status(self, run: str) -> dict[str, Any]:
        """Return where a run is: step, phase, settings that matter, the statistics of its last step, and what happened
        since the last call."""
        return self._state(self._find(run))

    def set(self, run: str, changes: dict[str, Any] | None = None, paused: bool | None = None) -> dict[str, Any]:
        """Change knobs of a run by path, such as {"active": "vsd"} or {"prompt.text": "a blue car"}, all or none; and
        pause it or let it go on. Return which were applied at which step, and which were refused and why."""
        found = self._find(run)
        client, session = found.seat.client, found.seat.session
        if client.messages.take(1, PATIENCE) > PATIENCE:
            raise RuntimeError(f"changes come too fast for a visitor of this server; {NO_LIMIT}")
        changes = changes or {}
        self._must_not_be_locked(changes)
        session.settings.patch_all(changes.items())
        _, after = session.events.since()
        if changes:
            session.send(Patch(tuple(changes.items())))
        if paused is not None:
            session.send(Pause() if paused else Resume())
        applied, refused = {}, {}
        for event in self._events(found, after, CHANGE_WITHIN):
            match event:
                case Applied(step, path, value, note) if path in changes:
                    applied[path] = {"step": step, "value": value, "note": note}
                case Rejected(_, path, _, reason):
                    refused[path] = reason
            if changes.keys() <= applied.keys() | refused.keys():
                break
        return {"applied": applied, "refused": refused, **self._state(found)}

    def frame(self, run: str, kind: Literal["front", "around", "seen"] = "front") -> dict[str, Any]:
        """Return a picture of a run as it is now, as a data URL with a JPEG: its front, twelve views around it, or what
        the loss saw in its last step."""
        found = self._find(run)
        if kind not in (kinds := get_args(thumbnails.Kind)):
            raise ValueError(f"kind = {shown(kind)}: must be one of {', '.join(kinds)}")
        picture = thumbnails.picture(found.seat.session, kind)
        if picture is None:
            raise ValueError(f"this run has no picture of kind {kind!r} yet")
        return {"step": self._step(found), "image": f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}"}

    def compare(self, run: str) -> dict[str, Any]:
        """Compare the gradients of all losses at the present state of a run: the root mean square of each, its network
        evaluations per view, and its cosine with the active loss."""
        found = self._find(run)
        session = found.seat.session
        before = session.comparison.version
        session.send(Compare())

        def finished() -> Comparison | None:
            one = session.comparison.get() if session.comparison.version > before else None
            return one if one is not None and one.done == len(one.losses) else None

        result = self._wait(found, finished, COMPARE_WITHIN)
        own = result.losses.index(session.settings.active)
        return {
            "losses": {
                name: {
                    "title": result.titles[i],
                    "rms": _number(result.rms[i]),
                    "cosine": _number(result.cosines[i][own]),
                    "evaluations": result.nfe[i],
                    "note": result.notes[i],
                }
                for i, name in enumerate(result.losses)
            },
            "t": list(result.t),
        }

    def export(self, run: str, format: str = "ply") -> dict[str, Any]:
        """Make a file of a run as it is now and return its address, relative to the server's.

        format: ply, spz, splat, khr, glb, mp4, growth, cameras, html, png or toml.
        """
        found = self._find(run)
        if format not in FORMATS:
            raise ValueError(f"format = {shown(format)}: must be one of {', '.join(FORMATS)}")
        shelf = self._shelves.open(found.shelf)
        self._visitors.must_have_room(sum(r.phase in ("waiting", "working") for r in shelf.list()))
        name = shelf.start(format, found.seat.session.material().result(CHANGE_WITHIN))

        def finished() -> Any:
            one = next((r for r in shelf.list() if r.id == name), None)
            return one if one is not None and one.phase not in ("waiting", "working") else None

        result = self._wait(found, finished, EXPORT_WITHIN)
        if result.phase != "done":
            raise RuntimeError(result.message or f"the file was {result.phase}")
        return {"url": f"results/{found.shelf}/{name}", "name": result.name, "bytes": result.size, "step": result.step}

    def stop(self, run: str) -> bool:
        """End a run, whose files are deleted, and give its seat back."""
        self._manager.close(self._find(run).seat.id)
        return True

    # ---- runs --------------------------------------------------------------------------------------------

    def _find(self, token: str) -> Run:
        """Return a run, which counts as a sign of life. ValueError if there is none, RuntimeError for a visitor who
        asks too often."""
        with self._lock:
            found = self._runs.get(token)
        if found is None or self._manager.get(found.seat.id) is None:
            raise ValueError("there is no such run: it was stopped, or nobody asked for it for a while")
        if found.seat.client.polls.take(1, PATIENCE) > PATIENCE:
            raise RuntimeError(f"requests come too fast for a visitor of this server; {NO_LIMIT}")
        return found

    def _forget(self, token: str) -> None:
        with self._lock:
            run = self._runs.pop(token, None)
        if run is not None:
            self._shelves.close(run.shelf)

    def _wanted(self, preset: str, prompt: str, changes: dict[str, Any]) -> Settings:
        """Return the settings of a new run as this server allows them. ValueError says what is wrong."""
        if preset and preset not in self._visitors.offered:
            raise ValueError(f"preset = {shown(preset)}: this server offers {', '.join(self._visitors.presets)}")
        base = self._visitors.offered[preset] if preset else self._visitors.settings
        self._must_not_be_locked(changes)
        if prompt:
            changes = {"prompt.text": prompt, **changes}
        return self._visitors.admitted(base.patch_all(changes.items()), base)

    def _must_not_be_locked(self, changes: dict[str, Any]) -> None:
        for path in changes:
            if path in self._visitors.locked:
                raise ValueError(
                    f"{path} = {shown(changes[path])}: visitors of this server cannot change it; {NO_LIMIT}"
                )

    def _state(self, run: Run) -> dict[str, Any]:
        session, seat = run.seat.session, run.seat
        settings, status = session.settings, session.status
        events, run.next_event = session.events.since(run.next_event)
        steps = [event for event in events if isinstance(event, Stepped)]
        said = [text for event in events if (text := _said(event))]
        return {
            "phase": status.phase,
            "text": self._visitors.told(status.text),
            "step": self._step(run),
            "steps": settings.planned_end,
            "prompt": settings.prompt.text,
            "loss": settings.active,
            "view": f"viewport/{seat.id}/",
            "statistics": {k: _number(v) for k, v in steps[-1].stats.items()} if steps else {},
            "remarks": self._visitors.told(said[-TOLD:]),
        }

    def _step(self, run: Run) -> int:
        frame = run.seat.session.latest.get()
        return frame.step if frame is not None else 0

    # ---- waiting -----------------------------------------------------------------------------------------

    def _wait(self, run: Run, look: Callable[[], Any], seconds: float) -> Any:
        """Return the first answer of `look` that is not None. RuntimeError when the run ends, TimeoutError."""
        until = time.monotonic() + seconds
        while (answer := look()) is None:
            if self._manager.get(run.seat.id) is None:
                raise RuntimeError("the run has ended")
            if time.monotonic() > until:
                raise TimeoutError(f"no answer within {seconds:.0f} s: the server is busy, ask again")
            time.sleep(POLL)
        return answer

    def _events(self, run: Run, after: int, seconds: float) -> Iterator[Event]:
        """Yield the events of a run from number `after` on, as they come, for `seconds` at most."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._manager.exists(run.seat.id):
            events, after = run.seat.session.events.since(after)
            yield from events
            if not events:
                time.sleep(POLL)


def _said(event: Event) -> str:
    """Return what a caller should know about an event, "" for the usual course."""
    match event:
        case Rejected(step, path, value, reason):
            return f"step {step}: {path} = {shown(value)} was refused: {reason}"
        case Skipped(step, what):
            return f"step {step} was skipped: {what} was not finite"
        case Noted(step, text) | Failed(step, text):
            return f"step {step}: {text}"
    return ""


def _number(value: Any) -> float | None:
    """Return a number for JSON, None if it is not finite."""
    with contextlib.suppress(TypeError, ValueError):
        if np.isfinite(value):
            return float(f"{float(value):.6g}")
    return None
