"""Distil all objects of the toybox and let the judge read the results.

`run_objects`  each object once: is it recognised, in the right colour, with its front on one side only, and how long
               did it take?
`run_janus`    each object that has a front, with view-dependent prompts off and on: how many sides show a front?

Every run is a `Session`, as in `python -m sdlab run`, and all share one loaded prior. The judge sees turntables at the
prior's resolution, on white, from the camera distance of its training data. Seconds are wall time from the first step
to the last, without loading.
"""

from __future__ import annotations

import difflib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdlab import machine
from sdlab.cameras import look_at, turntable, view_word
from sdlab.export.writers import render_turntable, stack_strips, write_ply
from sdlab.live.building import prepare_for
from sdlab.live.manager import PriorPool
from sdlab.live.messages import Event, Failed, Patch, Stop
from sdlab.live.session import Session
from sdlab.pictures import to_uint8
from sdlab.progress import print_above, run_bar
from sdlab.scenes import AnyScene, Scene, require_camera_scene
from sdlab.settings import Settings
from sdlab.toybox import judge, pictures
from sdlab.toybox.judge import data_camera
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.readings import JANUS_VIEWS
from sdlab.toybox.words import FRONT

VIEWS = 8  # turntable views read for object and colour, 45 degrees apart
RECOGNISED = 5  # views that must be read as the object
TOLERANCE = 1  # views by which the number of fronts of an object may differ from the true number
MODES = {"off": False, "on": True}  # prompt.view_dependent
PORTRAIT = (35.0, 15.0)  # azimuth and elevation in degrees: a three-quarter view from the front
PORTRAIT_FOV = 1.15 * pictures.FOV_DEGREES  # so that a tall object has air above
PORTRAIT_SIZE, STRIP_SIZE = 192, 96  # pixels per side of an image on a contact sheet
SHEET_COLUMNS = 8
SHEET_BYTES = 1_000_000  # size limit of a contact sheet, which may be shown in a README
RED = (205, 50, 45)

T = TypeVar("T")
Item = TypeVar("Item")
Read = Callable[[np.ndarray], list[judge.Truth]]


def load_judge() -> Read:
    """Return the judge, a function from uint8 [n, S, S, 3] to what each image shows."""
    classifier = judge.load()
    return lambda rgb: judge.read(classifier, torch.from_numpy(rgb).permute(0, 3, 1, 2) / 255)


# ---- runs ------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A run to do."""

    object: str
    colour: str
    settings: Settings
    planned: Mapping[int, Patch] = MappingProxyType({})  # changes of settings by step


class Outcome(NamedTuple):
    """A finished run; `note` says why it ended before its planned steps, or is ""."""

    case: Case
    scene: AnyScene
    steps: int
    seconds: float
    note: str

    @property
    def sides(self) -> Scene:
        """The scene, if it can be rendered from any side; ValueError otherwise."""
        return require_camera_scene(self.scene)


def parse_objects(names: str | None, option: str, front: bool = False) -> list[str]:
    """Return the objects in a list such as "bear,car", or all for None. With `front`, only objects with a front count.

    Raises ValueError that names `option` for an empty list and for anything that is not an object (with a front).
    """
    known = [name for name, model in OBJECTS.items() if model.front or not front]
    if names is None:
        return known
    found = list(dict.fromkeys(word.strip() for word in names.split(",") if word.strip()))
    for name in found:
        if name in OBJECTS and name not in known:
            raise ValueError(f"{option} {name}: looks the same from all sides; objects with a front: {_all(known)}")
        _require_known(name, known, option)
    if not found:
        raise ValueError(f"{option} {names!r}: names no object; choose from {_all(known)}")
    return found


def _require_known(given: str, known: Sequence[str], option: str) -> None:
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{option} {given}: {hint}choose from {_all(known)}")


def _all(names: Sequence[str]) -> str:
    return ", ".join(names)


def cases(s: Settings, names: Sequence[str], colour: str = "") -> list[Case]:
    """Return a case with the prompt "a <colour> <object>" for each name.

    Without `colour`, each object has its own, the same in every call. Raises ValueError for an unknown colour.
    """
    colours = tuple(pictures.COLOURS)
    if colour:
        _require_known(colour, colours, "--colour")
    found = []
    for name in names:
        own = colour or colours[tuple(OBJECTS).index(name) % len(colours)]
        article = "an" if own[0] in "aeiou" else "a"
        found.append(Case(name, own, s.patch("prompt.text", f"{article} {own} {name}")))
    return found


def janus_cases(s: Settings, names: Sequence[str], seeds: int = 1) -> list[Case]:
    """Return each object with `seeds` seeds, each with view-dependent prompts off and on, and nothing else changed."""
    return [
        case._replace(settings=case.settings.patch_all([("seed", s.seed + i), ("prompt.view_dependent", with_views)]))
        for case in cases(s, names)
        for i in range(seeds)
        for with_views in MODES.values()
    ]


class Runner:
    """Runs sessions that share one loaded prior and one judge, `jobs` in parallel.

    `seconds` is the time limit per run (wall time). Setting `stop` ends all runs.
    """

    def __init__(self, settings: Settings, device: torch.device, seconds: float = 60.0, jobs: int = 1) -> None:
        self.settings = settings
        self.device = device
        self.seconds = seconds
        self.jobs = jobs
        self.stop = threading.Event()
        self._pool = PriorPool()

    def prepare(self) -> None:
        """Load and compile everything before the first run. Raises what loading a prior raises."""
        self.prior = self._pool.get(self.settings.prior, self.device, _print_status)
        _print_status("compiling")
        prepare_for(self.settings, self.prior, self.device)
        self.read = load_judge()

    def run(self, cases: Sequence[Case], finish: Callable[[Outcome], T]) -> Iterator[T]:
        """Yield `finish(outcome)` for each case as runs finish, except runs ended by `stop`.

        A job calls it between its runs: with one job, nothing else runs while a run's seconds are counted.
        """
        return self.each(cases, lambda case: self._run(case, finish))

    def each(self, items: Sequence[Item], work: Callable[[Item], T | None]) -> Iterator[T]:
        """Yield `work(item)` for each item as they finish, except None."""
        with ThreadPoolExecutor(self.jobs, "sdlab-run") as executor:
            try:
                pending = {executor.submit(work, item) for item in items}
                while pending:  # with a timeout: on Windows, a waiting thread does not receive Ctrl-C
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    yield from (result for future in done if (result := future.result()) is not None)
            except BaseException:  # from a run or from the caller, which must not wait for all other runs
                self.stop.set()
                raise

    def session(self, settings: Settings) -> Session:
        """Return a session that uses the shared prior, ready for its first step in the calling thread."""
        session = Session(settings, self.device, self._pool.get)
        session.prepare()
        return session

    def _run(self, case: Case, finish: Callable[[Outcome], T]) -> T | None:
        if self.stop.is_set():
            return None
        session = self.session(case.settings)
        planned, started = case.settings.steps, time.perf_counter()
        note = ""
        interrupted = False

        def listen(event: Event) -> None:
            nonlocal note
            if isinstance(event, Failed):
                note = f"failed at step {event.step} of {planned}: {event.reason}"
                session.send(Stop())

        def stepped(step: int) -> None:
            nonlocal note, interrupted
            if step >= planned:
                return
            if self.stop.is_set():
                interrupted = True
                session.send(Stop())
            elif time.perf_counter() - started > self.seconds:
                note = f"stopped after {self.seconds:g} s at step {step} of {planned}"
                session.send(Stop())

        session.listen(listen)
        session.listen_to_steps(stepped)
        for step, change in case.planned.items():
            session.plan(step, change)
        session.run(until=planned)
        if interrupted:
            return None
        return finish(Outcome(case, session.state.scene, session.state.step, time.perf_counter() - started, note))

    def conditions(self) -> dict[str, Any]:
        """Return what every result depends on, for the JSON file."""
        return {
            "prior": self.prior.name,
            "engine": self.prior.engine_name,
            "device": str(self.device),
            "jobs": self.jobs,
            "seconds_limit": self.seconds if math.isfinite(self.seconds) else None,
            "machine": machine.processor(),
            "versions": machine.versions(),
            "settings": {path: knob.value for path, knob in self.settings.knobs().items()},
        }


def _print_status(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


# ---- results ---------------------------------------------------------------------------------------------


def views_around(runner: Runner, outcome: Outcome, views: int) -> np.ndarray:
    """Render `views` views of the object as the judge sees them; uint8 [views, S, S, 3]."""
    return render_turntable(outcome.sides, data_camera(outcome.case.settings.camera), views, runner.prior.image_size)


def row_of(runner: Runner, outcome: Outcome, views: int) -> dict[str, Any]:
    """Return the results of one run, including what the judge reads in `views` views around the object."""
    return row_from(runner, outcome, views_around(runner, outcome, views))


def row_from(runner: Runner, outcome: Outcome, shown: np.ndarray) -> dict[str, Any]:
    """Return the results of one run, including what the judge reads in its images `shown`, uint8 [n, S, S, 3]."""
    case = outcome.case
    truths = runner.read(shown)
    seen = Counter(truth.object for truth in truths)
    return {
        "object": case.object,
        "colour": case.colour,
        "prompt": case.settings.prompt.text,
        "seed": case.settings.seed,
        "view_dependent": case.settings.prompt.view_dependent,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "note": outcome.note,
        "views": len(shown),
        "object_votes": seen[case.object],
        "colour_votes": sum(truth.colour == case.colour for truth in truths),
        "front_votes": sum(truth.view == FRONT for truth in truths),
        "seen_as": seen.most_common(1)[0][0],
        "read": [{"object": truth.object, "colour": truth.colour, "view": truth.view} for truth in truths],
    }


def write_json(path: Path, runner: Runner, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({**summary, "rows": rows, **runner.conditions()}, indent=1) + "\n", encoding="utf-8")


# ---- every object once -----------------------------------------------------------------------------------


def run_objects(runner: Runner, cases: Sequence[Case], out: Path, keep: bool = False) -> dict[str, Any]:
    """Distil each case, printing a line for each, and return the summary.

    Writes objects.json and objects.png to the folder `out`, and with `keep` also <object>/scene.ply. Results so far
    are written even if it is interrupted or fails.
    """

    true = true_fronts(runner.settings)

    def finish(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
        splats = outcome.sides.splats()
        if keep and splats is not None:
            folder = out / outcome.case.object
            folder.mkdir(exist_ok=True)
            write_ply(folder / "scene.ply", splats)
        row: dict[str, Any] = {**row_of(runner, outcome, VIEWS), "fronts": None, "fronts_right": None}
        if OBJECTS[outcome.case.object].front:
            around = row_of(runner, outcome, JANUS_VIEWS)["front_votes"]
            row |= {"fronts": around, "fronts_right": abs(around - true) <= TOLERANCE}
        return {**row, "recognised": row["object_votes"] >= RECOGNISED}, portrait(outcome)

    finished: list[tuple[dict[str, Any], np.ndarray]] = []
    started = time.perf_counter()
    print(f"fronts: views of {JANUS_VIEWS} read as a front; an object with one front has {true}")
    print(f"{'prompt':24}{'seconds':>8}{'object':>8}{'colour':>8}{'fronts':>8}  recognised", flush=True)
    try:
        with run_bar(len(cases)) as bar:
            for row, image in runner.run(cases, finish):
                finished.append((row, image))
                bar.update()
                print_above(_object_line(row))
    finally:
        finished.sort(key=lambda pair: [case.object for case in cases].index(pair[0]["object"]))
        rows = [row for row, _ in finished]
        summary = _objects_summary(rows, len(cases), time.perf_counter() - started)
        if rows:
            write_json(out / "objects.json", runner, summary, rows)
            save_portraits([image for _, image in finished], rows, out / "objects.png")
    print(
        f"{summary['recognised']} of {summary['finished']} recognised; {VIEWS} of {VIEWS} views read as the object on "
        f"{summary['object_in_all_views']}, as its colour on {summary['colour_in_all_views']}; fronts within "
        f"{TOLERANCE} of {true} on {summary['fronts_right']} of {summary['with_front']}; "
        f"{summary['run_seconds']} s of runs, {summary['seconds']} s in total; "
        + (f"results in {out}" if rows else "nothing written")
    )
    return summary


def _object_line(row: dict[str, Any]) -> str:
    votes = "".join(f"{row[key]:>6}/{row['views']}" for key in ("object_votes", "colour_votes"))
    fronts = "" if row["fronts"] is None else row["fronts"]
    verdict = "yes" if row["recognised"] else f"no ({row['seen_as']})"
    return f"{row['prompt']:24}{row['seconds']:8.1f}{votes}{fronts:>8}  {verdict:14}{row['note']}".rstrip()


def _objects_summary(rows: Sequence[dict[str, Any]], planned: int, seconds: float) -> dict[str, Any]:
    views = max(sum(row["views"] for row in rows), 1)
    return {
        "planned": planned,
        "finished": len(rows),
        "recognised": sum(row["recognised"] for row in rows),
        "object_share": sum(row["object_votes"] for row in rows) / views,
        "colour_share": sum(row["colour_votes"] for row in rows) / views,
        "object_in_all_views": sum(row["object_votes"] == row["views"] for row in rows),
        "colour_in_all_views": sum(row["colour_votes"] == row["views"] for row in rows),
        "with_front": sum(row["fronts"] is not None for row in rows),
        "fronts_right": sum(row["fronts_right"] is True for row in rows),
        "run_seconds": round(sum(row["seconds"] for row in rows), 1),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def portrait(outcome: Outcome) -> np.ndarray:
    """Render a three-quarter view on white at a higher resolution than the prior's; uint8 [S, S, 3]."""
    azimuth, elevation, distance = (torch.tensor([v]) for v in (*PORTRAIT, pictures.DISTANCE))
    cams = look_at(azimuth, elevation, distance, PORTRAIT_FOV, PORTRAIT_SIZE, PORTRAIT_SIZE)
    return to_uint8(outcome.sides.render(cams, torch.ones(1, 3)).rgb)[0]


def save_portraits(portraits: Sequence[np.ndarray], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Write a contact sheet, each image above its prompt and votes; a PNG of at most SHEET_BYTES."""
    margin, text_height = 12, 44
    cell_width, cell_height = PORTRAIT_SIZE + margin, PORTRAIT_SIZE + text_height + margin
    columns = min(SHEET_COLUMNS, len(portraits))
    size = (columns * cell_width + margin, -(-len(portraits) // columns) * cell_height + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    for i, (image, row) in enumerate(zip(portraits, rows, strict=True)):
        x, y = margin + i % columns * cell_width, margin + i // columns * cell_height
        sheet.paste(Image.fromarray(image), (x, y))
        middle, below = x + PORTRAIT_SIZE // 2, y + PORTRAIT_SIZE
        draw.text((middle, below + 4), row["prompt"], fill=(40, 40, 48), font=large, anchor="mt")
        votes = "   ".join(f"{what} {row[f'{what}_votes']}/{row['views']}" for what in ("object", "colour"))
        draw.text(
            (middle, below + 26), votes, fill=(120, 120, 128) if row["recognised"] else RED, font=small, anchor="mt"
        )
    save_small(sheet, path)


def save_small(sheet: Image.Image, path: Path) -> None:
    """Write a PNG of at most SHEET_BYTES, scaling the image down until it fits."""
    sheet.save(path, optimize=True)
    while path.stat().st_size > SHEET_BYTES:
        sheet = sheet.resize((sheet.width * 9 // 10, sheet.height * 9 // 10), Image.Resampling.LANCZOS)
        sheet.save(path, optimize=True)


def save_strips(strips: Sequence[np.ndarray], captions: Sequence[str], path: Path) -> None:
    """Write strips of images below each other, each with its caption, in a PNG limited by `save_small`."""
    stack_strips(strips, captions, path)
    with Image.open(path) as sheet:
        save_small(sheet.copy(), path)


# ---- Janus -----------------------------------------------------------------------------------------------


def run_janus(runner: Runner, cases: Sequence[Case], out: Path) -> dict[str, Any]:
    """Distil the cases and count the views that the judge reads as a front, printing a line for each object.

    Returns the summary, and writes it to janus.json in the folder `out`. janus.png shows the turntables of the first
    seed, off above on, with a bar under each view read as a front.
    """

    def finish(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
        row = row_of(runner, outcome, JANUS_VIEWS)
        return row, front_strip(outcome, row)

    rows: list[dict[str, Any]] = []
    complete: dict[str, dict[str, float]] = {}  # object -> fronts by mode, once all its runs are done
    strips: dict[tuple[str, str], np.ndarray] = {}
    started = time.perf_counter()
    print(f"views of {JANUS_VIEWS} read as a front; an object with one front has {true_fronts(runner.settings)}")
    print(f"{'object':12}{'off':>8}{'on':>8}", flush=True)
    try:
        with run_bar(len(cases)) as bar:
            for row, strip in runner.run(cases, finish):
                rows.append(row)
                if row["seed"] == runner.settings.seed:
                    strips[row["object"], "on" if row["view_dependent"] else "off"] = strip
                bar.update()
                own = [r for r in rows if r["object"] == row["object"]]
                if len(own) == sum(case.object == row["object"] for case in cases):
                    complete[row["object"]] = mean_fronts(own)
                    notes = "; ".join(r["note"] for r in own if r["note"])
                    print_above(f"{_janus_line(row['object'], complete[row['object']])}   {notes}".rstrip())
    finally:
        summary = {
            "views": JANUS_VIEWS,
            "true_fronts": true_fronts(runner.settings),
            "objects": complete,
            "mean": mean_fronts([row for row in rows if row["object"] in complete]),
            "seconds": round(time.perf_counter() - started, 1),
        }
        if complete:
            rows.sort(key=lambda row: (row["object"], row["seed"], row["view_dependent"]))
            write_json(out / "janus.json", runner, summary, rows)
            shown = [(name, mode) for name in complete for mode in MODES]
            captions = [_strip_caption(name, mode, complete[name]) for name, mode in shown]
            stack_strips([strips[key] for key in shown], captions, out / "janus.png")
    if complete:
        print(_janus_line("mean", summary["mean"]))
    print(f"{summary['seconds']} s in total; " + (f"results in {out}" if complete else "nothing written"))
    return summary


def true_fronts(s: Settings) -> int:
    """Return how many views of an object with one front lie within the azimuth range called "front view"."""
    cams = turntable(JANUS_VIEWS, s.camera, 16)
    return sum(view_word(a, e) == FRONT for a, e in zip(cams.azimuth.tolist(), cams.elevation.tolist(), strict=True))


def mean_fronts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the mean number of views read as a front, with view-dependent prompts off and on."""
    votes = {mode: [r["front_votes"] for r in rows if r["view_dependent"] == on] for mode, on in MODES.items()}
    return {mode: round(sum(found) / max(len(found), 1), 2) for mode, found in votes.items()}


def _janus_line(name: str, fronts: dict[str, float]) -> str:
    return f"{name:12}{fronts['off']:8.1f}{fronts['on']:8.1f}"


def front_strip(outcome: Outcome, row: dict[str, Any]) -> np.ndarray:
    """Render a turntable strip, uint8 [S, JANUS_VIEWS * S, 3], with a bar under each view read as a front."""
    views = render_turntable(outcome.sides, data_camera(outcome.case.settings.camera), JANUS_VIEWS, STRIP_SIZE)
    for image, truth in zip(views, row["read"], strict=True):
        if truth["view"] == FRONT:
            image[-4:, 8:-8] = RED
    return np.concatenate(list(views), axis=1)


def _strip_caption(name: str, mode: str, fronts: dict[str, float]) -> str:
    return f"{name}, view-dependent prompts {mode}: {fronts[mode]:g} of {JANUS_VIEWS} read as a front"
