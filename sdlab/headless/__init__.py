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
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sdlab.arguments import claimed
from sdlab.console import say, tell
from sdlab.files import sweep
from sdlab.headless.folder import (
    CHECKPOINT,
    DIARY,
    RECORD,
    SETTINGS,
    changed,
    complete,
    edits,
    inputs,
    must_have_room,
    other_code,
    record_in,
)
from sdlab.headless.job import Job
from sdlab.headless.keeper import Keeper
from sdlab.headless.results import LIKENESS_VIEWS, PSNR, likeness, result_of, size_of, write_results
from sdlab.headless.terminal import Console, interruptible, print_loading, rasteriser_for
from sdlab.options import is_settings_file, planned_end, text_of
from sdlab.quoting import reason

if TYPE_CHECKING:
    import torch

    from sdlab.options import Plan
    from sdlab.settings import Settings
    from sdlab.types import Prior

# Seconds between the checkpoints of a headless run; a slow disk may need longer intervals.
CHECKPOINT_EVERY = float(os.environ.get("SDLAB_CHECKPOINT_EVERY", "20"))


class Done(NamedTuple):
    """A run that ended with results; `interrupted` tells whether a signal ended it early."""

    interrupted: bool
    prior: Prior


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
        must_have_room(out, overwrite, [*settings_file, *inputs(s, plan)])
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
    record = record_in(source)
    for edit in edits(source, record):
        say(f"{edit}; the replay follows the file as it is now")
    for change in changed(s, record):
        say(f"{change}: the replay uses its new content")
    for difference in other_code(s, source):
        say(difference)
    with claimed(out):
        must_have_room(out, overwrite, [("the run to replay", str(source)), *inputs(s, plan)])
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
        record = json.loads(text) if text is not None else record_in(out)
        plan = [(step, [(path, value) for path, value in changes]) for step, changes in record.get("plan", [])]
        until = steps or max(planned_end(s, plan, number), number)
        if number > until or (number == until and complete(out, number)):
            given = f"--steps {steps}" if steps else f"DIR = {out}"
            raise ValueError(f"{given}: the run in {out} is already at step {number}; give a larger --steps")
        for edit in edits(out, record):
            say(f"{edit}; the run continues with the settings of its checkpoint")
        for change in changed(s, record):
            if change.startswith("prior."):  # the start is in the checkpoint
                say(f"{change}: the run continues with its new content")
        for difference in other_code(s, out):
            say(difference)
        return _drive(Job(s, device, out, size, str(record.get("preset", out)), plan, steps, True, record))


# ---- the run --------------------------------------------------------------------------------------------------------


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
        session.listen(print_loading)
        rasteriser = rasteriser_for(s.scene, session.device)
        session.prepare()  # before anything is written: a missing prior must not leave half a run behind
        if job.resumed:
            passed_over = session.restore(job.out / CHECKPOINT)
            if passed_over:
                checkpoint.set_aside(job.out / CHECKPOINT, session.state.step)
                say(f"{passed_over}; the run continues from step {session.state.step}")
        stepping = True
        if interrupted():  # a library may have swallowed the interrupt
            raise KeyboardInterrupt
        first = session.state.step
        until = job.until or max(planned_end(session.settings, job.plan, first), first)
        for number, changes in job.plan:
            if number >= first:
                session.plan(number, Patch(tuple(changes)))
        with contextlib.closing(Console(session, first, until)) as console:
            keeper = Keeper(session, job, console.warn, CHECKPOINT_EVERY)
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
        result = {**result_of(session, job.preset, wall), **rasteriser, **({} if psnr is None else {PSNR: psnr})}
        write_results(session, job, result, unsaved)
    if unsaved:
        raise OSError(f"{unsaved}; the results are in {job.out}")
    tell(
        f"{session.state.step} steps in {result['seconds']} s ({result['steps_per_s']}/s), "
        f"{size_of(session.state.scene)}, results in {job.out}",
    )
    if PSNR in result:
        tell(f"{result[PSNR]} dB PSNR to the mesh's own renders, {LIKENESS_VIEWS} views")
    return Done(interrupted(), session.prior)
