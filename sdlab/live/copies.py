"""Copies of a run that leave it between two steps: for a branch, a checkpoint, an export, a hand-in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sdlab.channel import Turn
from sdlab.export.writers import Material, material_of, write_results
from sdlab.live import checkpoint
from sdlab.live.frames import flat_frame
from sdlab.live.moments import Moment
from sdlab.live.state import Run, Undo, moment_of
from sdlab.live.tape import Taken, Tape, print_of
from sdlab.live.timeline import Timeline
from sdlab.live.watching import views_around
from sdlab.prompts import PromptBank
from sdlab.scenes import FlatScene
from sdlab.settings import Settings, codes_of, to_toml
from sdlab.types import Frame


@dataclass(frozen=True)
class Fork:
    """The current state of a run, for another session to continue from."""

    moment: Moment
    timeline: Timeline
    running: bool
    steps_left: int | None  # until the pause that an Advance asked for
    undo: Undo | None  # of a patch that has not had its first step


def fork_of(run: Run, running: bool, steps_left: int | None) -> Fork:
    """Return the state and history of `run` for a branch, which continues with `running` and `steps_left`."""
    moment, undo = moment_of(run), run.undo
    if undo is not None:  # a bank of prompts belongs to one thread
        undo = dataclasses.replace(undo, bank=PromptBank(undo.prior))
    return Fork(moment, run.timeline.branched(moment), running, steps_left, undo)


def saved_of(run: Run, settings: Settings, texts: Mapping[str, str]) -> checkpoint.Saved:
    """Return what a checkpoint of `run` holds, with `settings` and further `texts` by file name."""
    texts = {checkpoint.SETTINGS: to_toml(settings), **texts}
    return checkpoint.Saved(run.step, dict(moment_of(run).parts), texts, True)


def pinned(run: Run) -> Settings:
    """Return the effective settings of `run` with the commit of a prior from the Hub, which fixes its weights."""
    commit = run.prior.commit if run.prior is not None else ""
    return run.effective.patch("prior.revision", commit) if commit else run.effective


def write_checkpoint(run: Run, folder: Path, texts: Mapping[str, str]) -> Path:
    """Write a checkpoint of `run` into `folder`, with further `texts` by file name; return its path. OSError if it
    cannot be written."""
    texts = {**texts, **codes_of(run.settings), checkpoint.SETTINGS: to_toml(pinned(run))}
    return checkpoint.save(folder, run.built.step, moment_of(run).parts, texts)


def exportable(run: Run, frame: Frame | None) -> Material:
    """Return a copy of what `run` has made so far, with the images of the newest `frame`."""
    state, images = run.built, frame.preview if frame is not None else None
    return material_of(state.scene, run.effective, state.step, run.timeline.film(), images)


def write_export(run: Run, folder: Path, size: int) -> list[Path]:
    """Write the results of `run` into `folder`, turntables with `size` pixels; return the files written."""
    state, s, prior, bank = run.inputs()
    if isinstance(state.scene, FlatScene):
        return state.scene.write(folder, prior, bank.prompt(s.prompt))
    return write_results(folder, state.scene, s.camera, size)


def taken_of(run: Run, tape: Tape, turn: Turn) -> Taken:
    """Return what a hand-in tells of `run` as it is now; takes about 0.2 s of `turn`."""
    state, s, prior, bank = run.inputs()
    with turn:
        images = around = views_around(run)
        if around is None and flat_frame(state.scene, None, s.loss) is None:
            images = state.scene.preview(prior, bank, s.prompt, s.camera, None).images
    place = run.stretch.place
    now = print_of(place.tick, run.step, state.scene.params)
    return Taken(place, now, tape.stretches, tape.dropped, s, images, around is not None, state.scene.stats())
