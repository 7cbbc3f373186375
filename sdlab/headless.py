"""Runs without a page: run, resume and replay with a progress bar, a diary, checkpoints and results in a folder.

A folder belongs to one process at a time. An existing run in it is replaced only when the new one has taken its first
step and has saved it; results are replaced only when all new ones are complete; a checkpoint or a diary that cannot be
written is reported, and the run continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdlab import machine
from sdlab.arguments import claimed
from sdlab.files import digest, remove, scratch_for, sweep, why, write_whole
from sdlab.options import is_settings_file, paths_in, planned_end, text_of
from sdlab.progress import progress_bar
from sdlab.quoting import reason

if TYPE_CHECKING:
    import torch

    from sdlab.live.messages import Event
    from sdlab.live.session import Session
    from sdlab.options import Plan
    from sdlab.scenes import AnyScene
    from sdlab.settings import Settings
    from sdlab.types import Prior

# Seconds between the checkpoints of a headless run; a slow disk may need longer intervals.
CHECKPOINT_EVERY = float(os.environ.get("SDLAB_CHECKPOINT_EVERY", "20"))

SETTINGS, RECORD, DIARY = "settings.toml", "run.json", "metrics.jsonl"
RESULT, CHECKPOINT = "result.json", "checkpoint"
LIKENESS_VIEWS, PSNR = 12, "psnr_to_truth"
OURS = re.compile(  # what runs of all kinds of scenes write; one of these is enough for a folder to contain a run
    r"settings\.toml|own_loss\.py|run\.json|metrics\.jsonl|result\.json|checkpoint|scene\.ply|turntable\.(png|mp4)|cameras\.json|"
    r"pictures\.png|"
    r"(picture|sheet)-\d\d+\.png|turn\.gif|trajectories\.png|samples\.png|beside-sds\.png|control-variate\.png"
)


class Done(NamedTuple):
    """A run that ended with results; `interrupted` tells whether a signal ended it early."""

    interrupted: bool
    prior: Prior


@dataclasses.dataclass(frozen=True)
class Job:
    """What a run is to do, and where."""

    settings: Settings
    device: torch.device
    out: Path
    size: int  # pixels of a turntable view
    preset: str  # recorded with the results
    plan: Plan
    until: int | None = None  # the step at which it ends; None for where settings and plan end
    resumed: bool = False
    record: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # content of run.json, of a resumed run


def run(
    s: Settings, device: torch.device, out: Path, preset: str, size: int, plan: Plan, overwrite: bool = False
) -> Done:
    """Run `s` from its first step to its last with the changes of `plan`, and write results into the folder `out`.

    `preset` is recorded with the results; `size` is the side of a turntable view in pixels.
    Raises ValueError if `out` contains a run and `overwrite` is not set, if another process uses it, or if an output
    would replace a file that the run reads; RuntimeError if a step fails; OSError if something could not be written.
    """
    settings_file = [("the settings", preset)] if is_settings_file(preset) else []
    with claimed(out):
        _must_have_room(out, overwrite, [*settings_file, *_inputs(s, plan)])
        return _drive(Job(s, device, out, size, preset, plan))


def replay(source: Path, device: torch.device, out: Path, size: int, overwrite: bool = False) -> Done:
    """Repeat the run in `source`, every change at its step, with results in another folder, `out`.

    Raises ValueError if `source` holds no run, and as `run` does.
    """
    from sdlab.live.diary import changes_in
    from sdlab.settings import from_toml

    if not (source / SETTINGS).is_file():
        raise ValueError(f"DIR = {source}: there is no settings.toml; give a folder written by `run --out`")
    if out.resolve() == source.resolve():
        raise ValueError(f"--out {out} is the run to replay: choose another folder")
    s = from_toml(text_of(source / SETTINGS), f"settings of {source}")
    plan, last = changes_in(source / DIARY)
    record = _record_in(source)
    for edit in _edits(source, record):
        _say(f"{edit}; the replay follows the file as it is now")
    for change in _changed(s, record):
        _say(f"{change}: the replay uses its new content")
    for difference in _other_code(s, source):
        _say(difference)
    with claimed(out):
        _must_have_room(out, overwrite, [("the run to replay", str(source)), *_inputs(s, plan)])
        return _drive(Job(s, device, out, size, str(record.get("preset", source)), plan, until=last))


def resume(out: Path, device: torch.device, size: int, steps: int | None = None) -> Done:
    """Continue the run in `out` from its newest whole checkpoint, until `steps` steps are done or as planned. A run
    that is at its end already gets the results that are missing.

    Raises ValueError if there is no usable checkpoint or nothing left to do, and as `run` does.
    """
    from sdlab.live import checkpoint

    if not out.is_dir():
        raise ValueError(f"DIR = {out}: there is no such folder; give a folder written by `run --out`")
    with claimed(out, "DIR ="):
        (number, s, text), _ = checkpoint.newest(
            out / CHECKPOINT, lambda saved: (saved.step, checkpoint.settings_of(saved), saved.texts.get(RECORD))
        )
        record = json.loads(text) if text is not None else _record_in(out)
        plan = [(step, [(path, value) for path, value in changes]) for step, changes in record.get("plan", [])]
        until = steps or max(planned_end(s, plan, number), number)
        if number > until or (number == until and _complete(out, number)):
            given = f"--steps {steps}" if steps else f"DIR = {out}"
            raise ValueError(f"{given}: the run in {out} is already at step {number}; give a larger --steps")
        for edit in _edits(out, record):
            _say(f"{edit}; the run continues with the settings of its checkpoint")
        for change in _changed(s, record):
            if change.startswith("prior."):  # the start is in the checkpoint
                _say(f"{change}: the run continues with its new content")
        for difference in _other_code(s, out):
            _say(difference)
        return _drive(Job(s, device, out, size, str(record.get("preset", out)), plan, steps, True, record))


# ---- the folder --------------------------------------------------------------------------------------------------


def _ours(out: Path) -> list[Path]:
    return sorted(path for path in out.iterdir() if OURS.fullmatch(path.name))


def _inputs(s: Settings, plan: Plan) -> list[tuple[str, str]]:
    """Return the files and folders that a run may read, with the knobs that name them."""
    named = {path for path, _ in paths_in(s)}
    return [*paths_in(s), *(change for _, changes in plan for change in changes if change[0] in named)]


def _must_have_room(out: Path, overwrite: bool, inputs: Sequence[tuple[str, str]]) -> None:
    """Raise ValueError if a run in `out` would replace another without `overwrite`, or one of its `inputs`."""
    ours = _ours(out)
    if ours and not overwrite:
        names = ", ".join(path.name for path in ours[:3])
        raise ValueError(
            f"--out {out} already contains a run ({names}{', ...' if len(ours) > 3 else ''}): `resume` it, "
            "choose another folder, or add --overwrite"
        )
    others = [path for path in out.iterdir() if path not in ours and not path.name.startswith(".")]
    for given, value in inputs:
        path = Path(value).expanduser().resolve()
        if not path.exists():
            continue
        replaced = any(mine.resolve() in (path, *path.parents) for mine in ours)
        # without `others`, a folder of this name holds only earlier results, as in `run toybox --out toybox`
        if replaced or (path == out.resolve() and others):
            raise ValueError(
                f"--out {out}: {given} ({value}) is read from there, and would be overwritten; choose another folder"
            )


def _digests(inputs: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Return the SHA-256 of each input that is a file, by knob."""
    found = {}
    for knob, value in inputs:
        with contextlib.suppress(OSError):
            found[knob] = digest(Path(value).expanduser())
    return found


def _changed(s: Settings, record: Mapping[str, Any]) -> list[str]:
    """Say which files that a run with `record` read have another content now; those that are gone are left out."""
    before, now = record.get("inputs", {}), _digests(paths_in(s))
    return [
        f"{knob} ({value}) has changed since the run began"
        for knob, value in paths_in(s)
        if knob in now and before.get(knob, now[knob]) != now[knob]
    ]


def _record_in(out: Path) -> dict[str, Any]:
    """Return run.json, which records how the run in `out` was started; {}, and a warning, if it cannot be read."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("it is not an object")
    except (OSError, ValueError) as e:
        _say(f"{out / RECORD} cannot be read ({e}): changes that were planned with --at are not known")
        return {}
    return record


def _other_code(s: Settings, out: Path) -> list[str]:
    """Say which losses of the user's own have other code than in the run in `out`."""
    from sdlab.settings import codes_of

    found = []
    for name, code in codes_of(s).items():
        with contextlib.suppress(OSError, ValueError):
            if (out / name).read_text(encoding="utf-8") != code:
                found.append(f"{out / name}, the loss of this run, differs from the file of --own-loss, which is used")
    return found


def _edits(out: Path, record: Mapping[str, Any]) -> list[str]:
    """Say how settings.toml in `out` differs from what the run wrote; [] if it does not, or if that is not known."""
    from sdlab.settings import from_toml

    file = out / SETTINGS
    if "settings" not in record or not file.is_file():
        return []
    try:
        now = from_toml(text_of(file), "it")
        changes = from_toml(record["settings"]).differences(now)
        what = ", ".join(f"{path} = {value!r}" for path, value in changes)
    except (OSError, ValueError) as e:
        what = str(e)
    return [f"{file} was edited after the run began ({what})"] if what else []


def _complete(out: Path, step: int) -> bool:
    """Return whether the results in `out` are those of `step`, and all there."""
    from sdlab.export.writers import SHOWN

    try:
        result = json.loads((out / RESULT).read_text(encoding="utf-8"))
        if "files" not in result:  # version 0.1
            return result["steps"] == step and any((out / name).is_file() for name in SHOWN)
        return result["steps"] == step and all((out / name).is_file() for name in result["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


class _Keeper:
    """A session listener that keeps a run in its folder: diary, and a checkpoint every `CHECKPOINT_EVERY` seconds.

    An earlier run in the folder is untouched until the new one has taken a step. `warn` receives one line if something
    cannot be written; the next attempt follows when the next checkpoint is due.
    """

    def __init__(self, session: Session, job: Job, warn: Callable[[str], None]) -> None:
        from sdlab.live.diary import Recorder
        from sdlab.settings import to_toml

        self._session, self._out, self._warn = session, job.out, warn
        self._recorder: Recorder | None = None
        self._early: list[Event] = []  # until there is a recorder
        self._saved: int | None = None  # step of the last checkpoint
        self._tried_at = time.monotonic()
        if job.resumed:
            self._record = json.dumps(job.record)
            self._saved = session.state.step
            self._recorder = Recorder(job.out / DIARY, keep_until=session.state.step)
            return
        self._settings = to_toml(session.pinned())
        inputs = _digests(paths_in(job.settings))
        self._record = json.dumps(
            {"preset": job.preset, "plan": job.plan, "settings": self._settings, "inputs": inputs}
        )
        if not _ours(job.out):
            self.begin()

    @property
    def begun(self) -> bool:
        """Whether the folder holds this run, rather than an earlier one."""
        return self._recorder is not None

    def __call__(self, event: Event) -> None:
        if self._recorder is None:
            self._early.append(event)
        else:
            self._recorder(event)

    def stepped(self, number: int) -> None:
        """Begin after the first step, and save what is due."""
        if self._recorder is None:
            self.begin()
        if time.monotonic() - self._tried_at > CHECKPOINT_EVERY:
            problem = self.save()
            if problem:
                self._warn(f"{problem}; the run continues")

    def save(self) -> str:
        """Write diary and checkpoint; return why they could not be written, or "". A checkpoint ahead of the diary
        would lose changes in a replay: neither or both are written."""
        assert self._recorder is not None
        number = self._session.state.step
        self._recorder.flush(to_disk=True)
        problem = self._recorder.problem
        if not problem:
            try:
                self._session.save(self._out / CHECKPOINT, {RECORD: self._record})
            except OSError as e:
                problem = why(e)
        self._tried_at = time.monotonic()
        if not problem:
            self._saved = number
            return ""
        last = "there is none yet" if self._saved is None else f"the last one is of step {self._saved}"
        return f"the checkpoint of step {number} could not be saved ({problem}); {last}"

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.close()

    def begin(self) -> None:
        """Make the folder that of this run. An earlier one is removed when settings and first checkpoint of this one
        are on disk. Raises OSError if they cannot be written, which leaves the earlier one as it was."""
        from sdlab.live.diary import Recorder
        from sdlab.settings import codes_of

        out, earlier = self._out, _ours(self._out)
        new = scratch_for(out / "new")
        try:
            new.mkdir()
            write_whole(new / SETTINGS, self._settings)
            write_whole(new / RECORD, self._record)
            for name, code in codes_of(self._session.settings).items():
                write_whole(new / name, code)
            if earlier:
                self._session.save(new / CHECKPOINT, {RECORD: self._record})
                self._saved = self._session.state.step
            for path in earlier:
                remove(path)
            for path in new.iterdir():
                path.rename(out / path.name)
        except OSError as e:
            kept = "; the run that it contains is untouched" if earlier and _ours(out) == earlier else ""
            raise OSError(f"--out {out} cannot be written ({why(e)}){kept}") from e
        finally:
            remove(new)
        self._recorder = Recorder(out / DIARY)
        for event in self._early:
            self._recorder(event)


# ---- the run -----------------------------------------------------------------------------------------------------


def _drive(job: Job) -> Done:
    """Take the steps of `job`, then write the results."""
    from sdlab.live import checkpoint
    from sdlab.live.messages import Patch, Stop
    from sdlab.live.session import Session

    started = time.perf_counter()
    sweep(job.out)
    s = job.settings
    if job.resumed:  # the start, such as a mesh file, may be gone: the checkpoint holds what it became
        s = dataclasses.replace(s, scene=s.scene.bare())
    session = Session(s, job.device)
    stepping = False

    def stop() -> None:
        if not stepping:
            raise KeyboardInterrupt
        session.send(Stop())

    with interruptible(stop) as interrupted:
        session.listen(_print_loading)
        rasteriser = rasteriser_for(s.scene, session.device)
        session.prepare()  # before anything is written: a missing prior must not leave half a run behind
        if job.resumed:
            passed_over = session.restore(job.out / CHECKPOINT)
            if passed_over:
                checkpoint.set_aside(job.out / CHECKPOINT, session.state.step)
                _say(f"{passed_over}; the run continues from step {session.state.step}")
        stepping = True
        if interrupted():  # a library may have swallowed the interrupt
            raise KeyboardInterrupt
        first = session.state.step
        until = job.until or max(planned_end(session.settings, job.plan, first), first)
        for number, changes in job.plan:
            if number >= first:
                session.plan(number, Patch(tuple(changes)))
        with contextlib.closing(_Console(session, first, until)) as console:
            keeper = _Keeper(session, job, console.warn)
            session.listen(keeper)
            session.listen(console)
            session.listen_to_steps(keeper.stepped)
            session.listen_to_steps(console.stepped)
            try:
                session.run(until=until)
            except (Exception, SystemExit) as e:  # whatever it is, the state is saved
                console.failure = console.failure or reason(e)
        wall = time.perf_counter() - started
        if not keeper.begun:  # without a step, it is not worth an earlier run
            if console.failure:
                raise RuntimeError(f"stopped at step 0 because {console.failure}; the run in {job.out} is untouched")
            raise KeyboardInterrupt
        unsaved = keeper.save()
        keeper.close()
        if console.failure:
            where = unsaved or f"the state is in {job.out / CHECKPOINT}"
            raise RuntimeError(f"stopped at step {session.state.step} because {console.failure}; {where}")
        psnr = likeness(session.state.scene, session.effective, session.prior)
        result = {**_result(session, job.preset, wall), **rasteriser, **({} if psnr is None else {PSNR: psnr})}
        _write_results(session, job, result, unsaved)
    if unsaved:
        raise OSError(f"{unsaved}; the results are in {job.out}")
    _say(
        f"{session.state.step} steps in {result['seconds']} s ({result['steps_per_s']}/s), "
        f"{_size_of(session.state.scene)}, results in {job.out}",
        sys.stdout,
    )
    if PSNR in result:
        _say(f"{result[PSNR]} dB PSNR to the mesh's own renders, {LIKENESS_VIEWS} views", sys.stdout)
    return Done(interrupted(), session.prior)


def likeness(scene: AnyScene, s: Settings, prior: Prior) -> float | None:
    """Return the mean PSNR in dB of the scene's views to the prior's own, on white; None if its source has none."""
    if s.prior.kind != "gallery":
        return None
    import torch

    from sdlab.cameras import turntable
    from sdlab.pictures import psnr
    from sdlab.priors.gallery import GalleryScores
    from sdlab.scenes import FlatScene

    if isinstance(scene, FlatScene):
        return None
    cams = turntable(LIKENESS_VIEWS, s.camera, prior.image_size)
    truth = prior.source.truth(cams) if isinstance(prior, GalleryScores) else None
    if truth is None:
        return None
    with torch.no_grad():
        seen = scene.render(cams, torch.ones(len(cams), 3)).rgb.cpu()
    return round(float(psnr(seen.clamp(0, 1), truth).mean()), 2)


def _write_results(session: Session, job: Job, result: dict[str, Any], unsaved: str) -> None:
    """Write the results, and `result` with their names. Earlier ones are replaced when all are complete. Raises OSError
    that says how to get them."""
    new = scratch_for(job.out / "results")
    try:
        new.mkdir()
        names = [file.name for file in session.export(new, job.size)]
        (new / RESULT).write_text(json.dumps({**result, "files": names}, indent=2) + "\n", encoding="utf-8")
        for name in (*names, RESULT):
            os.replace(new / name, job.out / name)
    except OSError as e:
        rest = unsaved or f"the run is kept, and `resume {job.out}` writes them"
        what = why(e).replace(str(new), str(job.out))
        raise OSError(f"the results could not be written to {job.out} ({what}); {rest}") from e
    finally:
        remove(new)


class _Console:
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


def _say(text: str, stream: Any = None) -> None:
    """Print one line, by default on stderr and with the name of the program."""
    with _unheard():
        print(text if stream is not None else f"sdlab: {text}", file=stream or sys.stderr)


def _print_loading(event: Event) -> None:
    from sdlab.live.messages import Noted, Status

    if isinstance(event, Status) and event.phase in ("loading", "compiling"):
        with _unheard():
            print(f"{event.text} ...", file=sys.stderr)
    elif isinstance(event, Noted):
        _say(f"note: {event.text}")


def rasteriser_for(scene: Any, device: torch.device) -> dict[str, str]:
    """Return the rasteriser of a 3D scene for result.json, and tell the user if it is a fallback."""
    if scene.kind != "splats":
        return {}
    from sdlab.raster import announcement_for, backend_for

    announcement = announcement_for(device)
    if announcement:
        print(f"{announcement} ...", file=sys.stderr)
    name, note = backend_for(device)
    if note:
        print(f"sdlab: {note}", file=sys.stderr)
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


# ---- result ------------------------------------------------------------------------------------------------------


def _size_of(scene: Any) -> str:
    name, tensor = next(iter(scene.params.items()))
    return f"{len(tensor)} {'Gaussians' if 'means' in scene.params else name}"


def _result(session: Session, preset: str, wall: float) -> dict[str, Any]:
    state, s = session.state, session.effective
    return {
        "preset": preset,
        "prompt": " / ".join(s.prompts),
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
