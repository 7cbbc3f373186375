"""Distil the same objects with every loss on exact scores: `python -m sdlab bench gallery-losses`.

Each loss runs with its gallery preset and the number of steps planned there. DDS and PDS edit, so they need something
to edit: their runs begin with SDS on the same object in another colour, and halfway the loss is changed and the prompt
names the asked colour. Their steps and seconds cover both halves.

Of each object, `VIEWS` views are read for object and colour and `JANUS_VIEWS` for fronts. Saturation and sharpness are
those of `bench six`, averaged over the objects.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdlab.experiments.objects import (
    JANUS_VIEWS,
    STRIP_SIZE,
    VIEWS,
    Case,
    Outcome,
    Runner,
    cases,
    data_camera,
    row_from,
    row_of,
    save_strips,
    views_around,
    write_json,
)
from sdlab.experiments.six import image_stats
from sdlab.experiments.variants import rehearse
from sdlab.export.writers import render_turntable
from sdlab.live.messages import Patch
from sdlab.progress import print_above, run_bar
from sdlab.settings import Settings, losses, preset, preset_names
from sdlab.toybox import pictures

PRESET = "gallery"
OBJECTS = ("bear", "car", "robot")
COLOUR = "red"
SHOWN = 4  # views of each object on the contact sheet


class Entry(NamedTuple):
    """A run to do."""

    loss: str
    preset: str
    case: Case


def preset_for(loss: str) -> str:
    """Return the gallery preset of `loss`; ValueError if there is none."""
    own = f"{PRESET}-{loss}"
    if own in preset_names():
        return own
    if preset(PRESET).active == loss:
        return PRESET
    raise ValueError(f"--losses {loss}: there is no preset {own}")


def entries(names: Sequence[str], objects: Sequence[str], settings: Sequence[Settings]) -> list[Entry]:
    """Return every object for every loss in `names`, with the settings of that loss."""
    found = []
    for loss, s in zip(names, settings, strict=True):
        for case in cases(s, objects, COLOUR):
            found.append(Entry(loss, preset_for(loss), edited(case, loss) if s.loss.needs_reference else case))
    return found


def edited(case: Case, loss: str) -> Case:
    """Return a run that makes the object in another colour by the preset `gallery`, and halfway begins to edit it by
    `loss`."""
    colours = tuple(pictures.COLOURS)
    other = colours[(colours.index(case.colour) + len(colours) // 2) % len(colours)]
    first = case.settings.patch_all([("active", preset(PRESET).active), ("prompt.text", f"a {other} {case.object}")])
    half = case.settings.steps // 2
    change = Patch((("active", loss), ("prompt.text", case.settings.prompt.text), ("schedule.start", half)))
    return case._replace(settings=first, planned={half: change})


def run_gallery_losses(runner: Runner, todo: Sequence[Entry], out: Path) -> dict[str, Any]:
    """Distil the entries, print a line for each loss, and return the summary.

    Writes gallery-losses.json and gallery-losses.png to the folder `out`; results so far are written even if it is
    interrupted or fails.
    """

    def work(entry: Entry) -> tuple[Entry, dict[str, Any], np.ndarray] | None:
        rehearse(runner, entry.case.settings)
        done = list(runner.run([entry.case], lambda outcome: _judged(runner, outcome)))
        if not done:
            return None
        row, strip = done[0]
        return entry, {"loss": entry.loss, "preset": entry.preset, **row}, strip

    objects = list(dict.fromkeys(entry.case.object for entry in todo))
    rows: list[dict[str, Any]] = []
    strips: dict[str, list[np.ndarray]] = {}
    started = time.perf_counter()
    print(_header(objects), flush=True)
    try:
        with run_bar(len(todo)) as bar:
            for entry, row, strip in runner.each(todo, work):
                rows.append(row)
                strips.setdefault(entry.loss, []).append(strip)
                bar.update()
                own = [r for r in rows if r["loss"] == entry.loss]
                if len(own) == len(objects):
                    print_above(_line(summed_up(own), objects))
    finally:
        table = [summed_up([r for r in rows if r["loss"] == loss]) for loss in strips]
        summary = {
            "objects": objects,
            "recognised": [row["loss"] for row in table if row["recognised"]],
            "table": table,
            "seconds": round(time.perf_counter() - started, 1),
        }
        if rows:
            write_json(out / "gallery-losses.json", runner, summary, rows)
            captions = [_caption(row) for row in table]
            save_strips([np.concatenate(strips[row["loss"]], 1) for row in table], captions, out / "gallery-losses.png")
    print(
        f"{len(summary['recognised'])} of {len(table)} losses recognised in all {VIEWS} views of every object; "
        f"{summary['seconds']} s in total; " + (f"results in {out}" if rows else "nothing written")
    )
    return summary


def _judged(runner: Runner, outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
    """Return the results of one run, and SHOWN of its views side by side."""
    shown = views_around(runner, outcome, VIEWS)
    turned = row_of(runner, outcome, JANUS_VIEWS)
    row = {
        **row_from(runner, outcome, shown),
        **image_stats(shown),
        "front_votes": turned["front_votes"],
        "front_views": JANUS_VIEWS,
    }
    views = render_turntable(outcome.sides, data_camera(outcome.case.settings.camera), SHOWN, STRIP_SIZE)
    return row, np.concatenate(list(views), 1)


def summed_up(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return one line of the table: votes by object, means of the rest."""
    return {
        "loss": rows[0]["loss"],
        "preset": rows[0]["preset"],
        "object_votes": {row["object"]: row["object_votes"] for row in rows},
        "colour_votes": sum(row["colour_votes"] for row in rows),
        "front_votes": {row["object"]: row["front_votes"] for row in rows},
        "views": rows[0]["views"],
        "recognised": all(row["object_votes"] == row["views"] for row in rows),
        **{
            name: round(statistics.fmean(row[name] for row in rows), digits)
            for name, digits in (("steps", 0), ("seconds", 1), ("saturation", 3), ("sharpness", 4))
        },
        "notes": list(dict.fromkeys(row["note"] for row in rows if row["note"])),
    }


def _header(objects: Sequence[str]) -> str:
    views = "".join(f"{name:>8}" for name in objects)
    return f"{'loss':6}{views}{'colour':>9}{'fronts':>12}{'steps':>7}{'seconds':>9}{'saturat.':>10}{'sharpn.':>9}"


def _line(row: dict[str, Any], objects: Sequence[str]) -> str:
    votes = "".join(f"{row['object_votes'][name]:>6}/{row['views']}" for name in objects)
    colour = f"{row['colour_votes']}/{row['views'] * len(objects)}"
    fronts = " ".join(str(row["front_votes"][name]) for name in objects)
    looks = f"{row['saturation']:10.3f}{row['sharpness']:9.4f}"
    line = f"{row['loss']:6}{votes}{colour:>9}{fronts:>12}{row['steps']:7.0f}{row['seconds']:9.1f}{looks}"
    return f"{line}   {'; '.join(row['notes'])}".rstrip()


def _caption(row: dict[str, Any]) -> str:
    votes = ", ".join(f"{name} {n}/{row['views']}" for name, n in row["object_votes"].items())
    return f"{losses()[row['loss']].title}: {votes}; {row['steps']:.0f} steps in {row['seconds']:.0f} s"
