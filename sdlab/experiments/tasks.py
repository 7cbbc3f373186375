"""The tasks of the SBP thesis (McAllister 2024, UCB/EECS-2024-177) at the scale of the toybox: `bench tasks`.

    illusion   two to four prompts for one picture (appendix, "Illusion generation"): `illusions`
    painting   a painting becomes a picture of the same object (section 3.1, "Painting-to-Real"): `paintings`
    sketch     a crude 3D sketch becomes an object (appendix, "3D sketch-to-real"): `sketches`

Each has a preset, runs that it consists of, and what is measured of them. A run is written to runs.jsonl, and its
images to strips/, as it finishes; one that is found there is not repeated.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np

from sdlab.arguments import listed
from sdlab.experiments import illusions, paintings, sketches
from sdlab.experiments.journal import Journal, key_of
from sdlab.experiments.objects import Case, Outcome, Runner, save_strips, write_json
from sdlab.progress import print_above, run_bar
from sdlab.settings import Settings

Measured = tuple[dict[str, Any], np.ndarray]  # what is known of a run, and its images as one strip


@runtime_checkable
class Task(Protocol):
    """What the module of a task has."""

    PRESET: str

    def trials(self, s: Settings, quick: bool) -> list[tuple[str, Case]]:
        """Return the runs, with labels, that start from the settings `s` of the preset."""
        ...

    def measure(self, runner: Runner, label: str, outcome: Outcome) -> Measured: ...

    def line(self, row: Mapping[str, Any]) -> str:
        """Return one run for the console."""
        ...

    def summary(self, runner: Runner, found: Sequence[Measured]) -> dict[str, Any]:
        """Return what all runs show together."""
        ...

    def lines(self, summary: Mapping[str, Any]) -> list[str]:
        """Return the summary for the console."""
        ...

    def shown(self, found: Sequence[Measured]) -> list[tuple[str, np.ndarray]]:
        """Return captions and strips of the picture."""
        ...


TASKS: dict[str, Task] = {
    name: cast(Task, module)
    for name, module in (("illusion", illusions), ("painting", paintings), ("sketch", sketches))
}


def parse_tasks(text: str, option: str) -> list[str]:
    """Return the tasks of a list such as "illusion,sketch", or all for "". ValueError that names `option` otherwise."""
    names = listed(text) or list(TASKS)
    for name in names:
        if name not in TASKS:
            raise ValueError(f"{option} {name}: the tasks are {', '.join(TASKS)}")
    return names


def run(runner: Runner, name: str, out: Path, quick: bool = False) -> dict[str, Any]:
    """Do the runs of task `name` with the settings of `runner`, print a line for each, and return the summary.

    Writes <name>.json and <name>.png to the folder `out`; results so far are written even if it is interrupted.
    """
    out.mkdir(parents=True, exist_ok=True)
    task, journal = TASKS[name], Journal(out)
    trials = task.trials(runner.settings, quick)
    keys = [_key(name, label, case) for label, case in trials]
    todo = [(key, *trial) for key, trial in zip(keys, trials, strict=True) if not journal.finished(key)]
    if len(todo) < len(trials):
        print(f"{name}: {len(trials) - len(todo)} of {len(trials)} runs are in {journal.path}")
    started = time.perf_counter()
    try:
        with run_bar(len(todo)) as bar:
            for key, label, case in todo:
                for row, strip in runner.run([case], _finish(task, runner, label)):
                    journal.add(key, row, strip)
                    bar.update()
                    print_above(task.line(row))
    finally:
        found = _found(journal, keys)
        summary = task.summary(runner, found) if found else {}
        summary |= {"planned": len(trials), "finished": len(found), "seconds": round(time.perf_counter() - started, 1)}
        if found:
            write_json(out / f"{name}.json", runner, summary, [row for row, _ in found])
            captions, strips = zip(*task.shown(found), strict=True)
            save_strips(strips, captions, out / f"{name}.png")
    if found:
        print("\n".join(task.lines(summary)))
    print(f"{name}: {summary['seconds']} s; " + (f"results in {out}" if found else "nothing written"))
    return summary


def _key(name: str, label: str, case: Case) -> str:
    return key_of(case.settings, "bench tasks", name, label, case.settings.steps, sorted(case.planned.items()))


def _finish(task: Task, runner: Runner, label: str) -> Callable[[Outcome], Measured]:
    return lambda outcome: task.measure(runner, label, outcome)


def _found(journal: Journal, keys: Sequence[str]) -> list[Measured]:
    """Return the finished runs, in the order of `keys`."""
    pairs = ((journal.get(key), journal.strip(key)) for key in keys)
    return [(row, strip) for row, strip in pairs if row is not None and strip is not None]
