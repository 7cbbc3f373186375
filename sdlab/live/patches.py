"""A change of settings as a transaction: how it is undone if the first step after it fails, and what is told of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from sdlab.live.building import Builder
from sdlab.live.messages import Applied
from sdlab.live.moments import Moment
from sdlab.live.state import Run, Undo, moment_of
from sdlab.live.tape import Changes
from sdlab.prompts import PROMPT


def moment_before(run: Run) -> Moment | None:
    """Return the state to restore if the first step after a patch to `run` fails; None if there is no state, or if an
    earlier patch, still without a step, has kept one."""
    return moment_of(run) if run.undo is None and run.state is not None else None


def undoable(run: Run, before: Run, moment: Moment | None, changes: Changes) -> Run:
    """Return `run`, which has adopted `changes` to `before`, with what undoes them. `moment` is the state before, or
    None if the scene was rebuilt: then the current state is taken."""
    undo = run.undo
    run.timeline.go_on()
    if undo is None and run.state is not None and before.prior is not None and before.bank is not None:
        moment = moment or dataclasses.replace(moment_of(run), settings=before.settings, place=None)
        run.timeline.keep(moment)
        undo = Undo(moment, before.prior, before.bank, run.timeline.number)
    if undo is None:
        return run
    return dataclasses.replace(run, undo=dataclasses.replace(undo, changes=(*undo.changes, *changes)))


def without_patch(run: Run, undo: Undo) -> Run:
    """Return `run`, whose first step after a patch failed, with the prior before the patch; its state is still that of
    the failed step."""
    if run.prior is not undo.prior:  # an auxiliary may build on the weights of its prior
        run = dataclasses.replace(run, state=dataclasses.replace(run.built, aux={}, aux_keys={}))
    return dataclasses.replace(run, prior=undo.prior, bank=undo.bank, undo=None)


def rolled_back(run: Run, undo: Undo, builder: Builder) -> Run:
    """Return `run` (from `without_patch`) as it was before the patch, timeline and tape included. If the state cannot
    be put back, both stay as they are."""
    back = builder.put_back(run, undo.moment)
    back.timeline.forget(undo.noted)
    stretch, place = back.stretch, undo.moment.place
    if place is not None and place.stretch is stretch:
        stretch.undo(place.changes)
    else:
        stretch.note(run.settings.differences(undo.moment.settings))
    return back


def applied(run: Run, path: str, value: Any, waiting: Collection[str]) -> Applied:
    """Return the event of one change that `run` has adopted, and note it in the timeline; changes of the knobs
    `waiting` apply from the next reset on."""
    note = "from the next reset on" if path in waiting else ""
    if path.startswith("prompt.") and isinstance(value, str) and run.prior is not None:
        note = run.prior.remark(_as_read(path, value, run.settings.prompt.text))
    text = f"{path} = {value}, {note}" if path in waiting else f"{path} = {value}"
    run.timeline.note(run.step, "change", text, path, value)
    return Applied(run.step, path, value, note)


def _as_read(path: str, value: str, prompt: str) -> str:
    """Return the text that the prior reads for the wording `value` at `path`."""
    if path in ("prompt.target", "prompt.source"):
        return value.replace(PROMPT, prompt)
    return f"{prompt}, {value}" if path == "prompt.negative" and value else value
