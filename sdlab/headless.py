"""Runs without a page: run, resume and replay with a progress bar, a diary, checkpoints and results in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlab import machine
from sdlab.arguments import claim
from sdlab.progress import progress_bar

if TYPE_CHECKING:
    import torch

    from sdlab.live.messages import Event
    from sdlab.live.session import Session
    from sdlab.options import Plan
    from sdlab.settings import Settings
    from sdlab.types import Prior

# Seconds between the checkpoints of a headless run; a slow disk may need longer intervals.
CHECKPOINT_EVERY = float(os.environ.get("SDLAB_CHECKPOINT_EVERY", "20"))


class Done(NamedTuple):
    """A run that ended with results; `interrupted` tells whether Ctrl-C ended it early."""

    interrupted: bool
    prior: Prior


def run(
    s: Settings, device: torch.device, out: Path, preset: str, size: int, plan: Plan, overwrite: bool = False
) -> Done:
    """Run `s` from its first step to its last with the changes of `plan`, and write results into the folder `out`.

    `preset` is recorded with the results; `size` is the side of a turntable view in pixels.
    Raises ValueError if `out` contains a run and `overwrite` is not set, RuntimeError if a step fails.
    """
    _make_room(out, overwrite)
    return _drive(s, device, out, preset, size, until=s.steps, plan=plan, resumed=False)


def replay(source: Path, device: torch.device, out: Path, size: int, overwrite: bool = False) -> Done:
    """Repeat the run in `source`, every change at its step, with results in another folder, `out`.

    Raises ValueError if `source` holds no run.
    """
    from sdlab.live.diary import changes_in
    from sdlab.settings import from_toml

    if not (source / "settings.toml").is_file():
        raise ValueError(f"DIR = {source}: there is no settings.toml; give a folder written by `run --out`")
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the run to replay: choose another folder")
    s = from_toml((source / "settings.toml").read_text(encoding="utf-8"), f"settings of {source}")
    plan, last = changes_in(source / "metrics.jsonl")
    _make_room(out, overwrite)
    return _drive(s, device, out, _earlier_preset(source), size, until=last, plan=plan, resumed=False)


def resume(out: Path, device: torch.device, size: int, steps: int | None = None) -> Done:
    """Continue the run in `out` from its checkpoint, until `steps` steps are done or as planned.

    Raises ValueError if there is no usable checkpoint or nothing left to do.
    """
    from sdlab.live import checkpoint
    from sdlab.settings import from_toml

    if not out.is_dir():
        raise ValueError(f"DIR = {out}: there is no such folder; give a folder written by `run --out`")
    claim(out)
    number, _, texts = checkpoint.load(out / "checkpoint")
    s = from_toml(texts.get("settings.toml", ""), f"settings of the checkpoint in {out}")
    until = steps or s.steps
    if number >= until:
        raise ValueError(f"--steps {until}: the run in {out} is already at step {number}; give a larger number")
    whole_plan = ((step, [(path, value) for path, value in changes]) for step, changes in _earlier(out, "plan", []))
    plan = [(step, changes) for step, changes in whole_plan if step >= number]
    return _drive(s, device, out, _earlier_preset(out), size, until, plan, resumed=True)


def _make_room(out: Path, overwrite: bool) -> None:
    claim(out)
    if (out / "checkpoint").exists():
        if not overwrite:
            raise ValueError(
                f"--out {out} already contains a run: `resume` it, choose another folder, or add --overwrite"
            )
        shutil.rmtree(out / "checkpoint")


def _earlier(out: Path, key: str, default: Any) -> Any:
    """Return one entry of run.json, which records how the run in `out` was started; `default` if there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((out / "run.json").read_text(encoding="utf-8"))[key]
    return default


def _earlier_preset(out: Path) -> str:
    return str(_earlier(out, "preset", out))


# ---- the run -----------------------------------------------------------------------------------------------------


def _drive(
    s: Settings, device: torch.device, out: Path, preset: str, size: int, until: int, plan: Plan, resumed: bool
) -> Done:
    """Step until `until` with the changes of `plan`, then write the results."""
    from sdlab.live.diary import Recorder
    from sdlab.live.messages import Patch, Stepped, Stop
    from sdlab.live.session import Session
    from sdlab.settings import to_toml

    started = time.perf_counter()
    session = Session(s, device)
    session.listen(_print_loading)
    rasteriser = rasteriser_for(s.scene, session.device)
    session.prepare()  # before anything is written: a missing prior must not leave half a run behind
    if resumed:
        session.restore(out / "checkpoint")
    else:
        (out / "settings.toml").write_text(to_toml(session.pinned()), encoding="utf-8")
        (out / "run.json").write_text(json.dumps({"preset": preset, "plan": plan}), encoding="utf-8")
    for number, changes in plan:
        session.plan(number, Patch(tuple(changes)))
    first = session.state.step if resumed else 0
    recorder = Recorder(out / "metrics.jsonl", keep_until=first if resumed else None)
    last_save = time.monotonic()

    def keep(event: Event) -> None:
        nonlocal last_save
        recorder(event)
        if isinstance(event, Stepped) and time.monotonic() - last_save > CHECKPOINT_EVERY:
            recorder.flush()
            session.save(out / "checkpoint")
            last_save = time.monotonic()

    console = _Console(session, first, until)
    session.listen(keep)
    session.listen(console)
    with interruptible(lambda: session.send(Stop())) as interrupted:
        session.run(until=until)
    wall = time.perf_counter() - started
    console.bar.close()
    session.save(out / "checkpoint")
    recorder.close()
    if console.failure:
        raise RuntimeError(
            f"stopped at step {session.state.step} because {console.failure}; the state is in {out}/checkpoint"
        )
    session.export(out, size)
    result = {**_result(session, preset, wall), **rasteriser}
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(
        f"{session.state.step} steps in {result['seconds']} s ({result['steps_per_s']}/s), "
        f"{_size_of(session.state.scene)}, results in {out}"
    )
    return Done(interrupted(), session.prior)


class _Console:
    """A session listener that shows progress on stderr, refusals above the bar, and stops a run whose step fails."""

    def __init__(self, session: Session, first: int, until: int) -> None:
        self.failure = ""
        self.bar = progress_bar(until, "step", initial=first)
        self._session = session
        self._shown, self._shown_at = "", 0.0

    def __call__(self, event: Event) -> None:
        from sdlab.live.messages import Failed, Rejected, Skipped, Status, Stepped, Stop

        match event:
            case Stepped(number, stats):
                self.bar.update(number - self.bar.n)
                if "n_gaussians" in stats:
                    self.bar.set_postfix_str(f"{stats['n_gaussians']:.0f} Gaussians", refresh=False)
            case Status(_, phase, text):
                self._describe(phase, text)
            case Skipped(number, what):
                self.bar.write(f"step {number} skipped: {what} is not finite", file=sys.stderr)
            case Rejected(number, path, value, reason):
                self.bar.write(f"step {number}: {path} = {value!r} was refused: {reason}", file=sys.stderr)
            case Failed(_, reason):
                self.failure = reason
                self._session.send(Stop())

    def _describe(self, phase: str, text: str) -> None:
        """Show the session's activity in front of the bar. A warm-up reports many times a second and takes no steps."""
        before, self._shown = self._shown, text if phase == "running" else phase
        self.bar.set_description_str(self._shown, refresh=False)
        if (self._shown == phase) != (before == phase) or time.monotonic() - self._shown_at > self.bar.mininterval:
            self._shown_at = time.monotonic()
            self.bar.refresh()


def _print_loading(event: Event) -> None:
    from sdlab.live.messages import Status

    if isinstance(event, Status) and event.phase in ("loading", "compiling"):
        print(f"{event.text} ...", file=sys.stderr)


def rasteriser_for(scene: Any, device: torch.device) -> dict[str, str]:
    """Return the rasteriser of a 3D scene for result.json, and tell the user if it is a fallback."""
    if scene.kind != "splats":
        return {}
    from sdlab.raster import backend_for

    if device.type == "cuda":
        print("checking gsplat, which compiles itself on first use (takes minutes, once) ...", file=sys.stderr)
    name, note = backend_for(device)
    if note:
        print(f"sdlab: {note}", file=sys.stderr)
    return {"rasteriser": name, "rasteriser_note": note}


@contextlib.contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C call `stop`, so that results are kept, and a second one interrupt as usual.

    Yields a function that tells whether Ctrl-C was pressed.
    """
    pressed: list[int] = []

    def handler(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop()

    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, previous)


# ---- result ------------------------------------------------------------------------------------------------------


def _size_of(scene: Any) -> str:
    name, tensor = next(iter(scene.params.items()))
    return f"{len(tensor)} {'Gaussians' if 'means' in scene.params else name}"


def _result(session: Session, preset: str, wall: float) -> dict[str, Any]:
    state, s = session.state, session.effective
    return {
        "preset": preset,
        "prompt": s.prompt.text,
        "prior": session.prior.name,
        "prior_commit": session.prior.commit,
        "engine": session.prior.engine_name,
        "engine_note": session.prior.engine_note,
        "loss": s.active,
        "seed": s.seed,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "wall_seconds": round(wall, 2),
        "steps_per_s": round(state.step / state.seconds, 2) if state.seconds else 0.0,
        "prior_share": round(state.prior_seconds / state.seconds, 3) if state.seconds else 0.0,
        "start_note": getattr(state.scene, "note", ""),
        "n_gaussians": int(state.scene.params["means"].shape[0]) if "means" in state.scene.params else 0,
        "skipped_nonfinite": state.skipped,
        "peak_rss_mb": machine.peak_rss_mb(),
        "device": str(session.device),
        "machine": machine.processor(),
        "versions": machine.versions(),
    }
