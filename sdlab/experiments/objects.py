"""What the embedded prior distils to, over all its objects, as the judge reads it.

`run_objects`  each object once: is it recognised, in its colour, and how long did it take?
`run_janus`    each object that has a front, with view-dependent prompts off and on: on how many sides is a front?

Every run is a `Session`, as `python -m sdlab run` drives it, and all share one loaded prior. The judge sees turntables
at the prior's resolution, before white, at the distance of its training data. Seconds are wall time from the first
step to the last, loading left out.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdlab import machine
from sdlab.cameras import CameraSettings, look_at, turntable, view_word
from sdlab.export.writers import render_turntable, stack_strips, write_ply
from sdlab.live.manager import PriorPool
from sdlab.live.messages import Event, Failed, Stepped, Stop
from sdlab.live.session import Session, compile_for
from sdlab.pictures import to_uint8
from sdlab.scenes import AnyScene, Scene, require_camera_scene
from sdlab.settings import Settings
from sdlab.toybox import judge, pictures
from sdlab.toybox.objects import OBJECTS

VIEWS = 8  # of the turntable that is read for object and colour, 45 degrees apart
RECOGNISED = 5  # of these must name the object
JANUS_VIEWS = 12  # 30 degrees apart, so that none lies between the azimuth bands of two view words
FRONT = "front view"
MODES = {"off": False, "on": True}  # of view-dependent prompts
PORTRAIT = (35.0, 15.0)  # azimuth and elevation in degrees: three quarters from the front
PORTRAIT_SIZE, STRIP_SIZE = 192, 96  # pixels, of a picture on the contact sheets
SHEET_COLUMNS = 8
SHEET_BYTES = 1_000_000  # a picture in a README must load at once
RED = (205, 50, 45)

T = TypeVar("T")
Item = TypeVar("Item")
Read = Callable[[np.ndarray], list[judge.Truth]]


def load_judge() -> Read:
    """The judge: uint8 [n, S, S, 3] -> what each picture shows."""
    classifier = judge.load()
    return lambda rgb: judge.read(classifier, torch.from_numpy(rgb).permute(0, 3, 1, 2) / 255)


# ---- what is run -----------------------------------------------------------------------------------------


class Case(NamedTuple):
    """One run to do."""

    object: str
    colour: str
    settings: Settings


class Outcome(NamedTuple):
    """One run done; `note` says why it ended before its plan, "" where it did not."""

    case: Case
    scene: AnyScene
    steps: int
    seconds: float
    note: str

    @property
    def sides(self) -> Scene:
        """The scene, to be looked at from all sides; ValueError for one that has none."""
        return require_camera_scene(self.scene)


def choose(names: str | None, option: str, front: bool = False) -> list[str]:
    """The objects in a list such as "bear,car", all for None, with `front` only those that have one.

    ValueError, naming `option`, for a list of none and for what is not an object (or has no front).
    """
    known = [name for name, model in OBJECTS.items() if model.front or not front]
    if names is None:
        return known
    chosen = list(dict.fromkeys(word.strip() for word in names.split(",") if word.strip()))
    for name in chosen:
        if name in OBJECTS and name not in known:
            raise ValueError(f"{option} {name}: looks the same from all sides; with a front there are: {_all(known)}")
        _must_be_one_of(name, known, option)
    if not chosen:
        raise ValueError(f"{option} {names!r}: names no object; there are: {_all(known)}")
    return chosen


def _must_be_one_of(given: str, known: Sequence[str], option: str) -> None:
    if given not in known:
        near = difflib.get_close_matches(given, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{option} {given}: {hint}allowed are {_all(known)}")


def _all(names: Sequence[str]) -> str:
    return ", ".join(names)


def cases(s: Settings, names: Sequence[str], colour: str = "") -> list[Case]:
    """ "a <colour> <object>" for each name; without `colour` each object has one of its own, the same in every call.

    ValueError for an unknown colour.
    """
    colours = tuple(pictures.COLOURS)
    if colour:
        _must_be_one_of(colour, colours, "--colour")
    found = []
    for name in names:
        its = colour or colours[tuple(OBJECTS).index(name) % len(colours)]
        article = "an" if its[0] in "aeiou" else "a"
        found.append(Case(name, its, s.patch("prompt.text", f"{article} {its} {name}")))
    return found


def janus_cases(s: Settings, names: Sequence[str], seeds: int = 1) -> list[Case]:
    """Each object with `seeds` seeds, each with view-dependent prompts off and on and nothing else changed."""
    return [
        case._replace(settings=case.settings.patch_all([("seed", s.seed + i), ("prompt.view_dependent", with_views)]))
        for case in cases(s, names)
        for i in range(seeds)
        for with_views in MODES.values()
    ]


class Bench:
    """One prior and one judge, loaded once, and runs that share them, `jobs` at a time.

    A run ends after `seconds` of wall time at the latest. Once `stop` is set, no run goes on.
    """

    def __init__(self, settings: Settings, device: torch.device, seconds: float = 60.0, jobs: int = 1) -> None:
        self.settings = settings
        self.device = device
        self.seconds = seconds
        self.jobs = jobs
        self.stop = threading.Event()
        self._pool = PriorPool()

    def prepare(self) -> None:
        """Load and compile before the first run begins; errors as those of loading a prior."""
        self.prior = self._pool.get(self.settings.prior, self.device, _say)
        _say("compiling")
        compile_for(self.settings, self.prior, self.device)
        self.read = load_judge()

    def run(self, cases: Sequence[Case], finish: Callable[[Outcome], T]) -> Iterator[T]:
        """`finish(outcome)` of each case as they come, none of a run that `stop` ended. It is called between runs, so
        that with one job nothing else runs while seconds are counted."""
        return self.each(cases, lambda case: self._run(case, finish))

    def each(self, items: Sequence[Item], work: Callable[[Item], T | None]) -> Iterator[T]:
        """`work` of each item as they come, without those that answered None."""
        with ThreadPoolExecutor(self.jobs, "sdlab-bench") as executor:
            try:
                pending = {executor.submit(work, item) for item in items}
                while pending:  # never waiting for long, since on Windows a thread that waits hears no Ctrl-C
                    done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                    yield from (result for future in done if (result := future.result()) is not None)
            except BaseException:  # of a run or of the caller: it must not wait for all the other runs
                self.stop.set()
                raise

    def session(self, settings: Settings) -> Session:
        """A session of the shared prior, ready for its first step, for the thread that asks."""
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
            nonlocal note, interrupted
            match event:
                case Failed(step, reason):
                    note = f"failed at step {step} of {planned}: {reason}"
                case Stepped(step) if step < planned and self.stop.is_set():
                    interrupted = True
                case Stepped(step) if step < planned and time.perf_counter() - started > self.seconds:
                    note = f"stopped after {self.seconds:g} s at step {step} of {planned}"
                case _:
                    return
            session.send(Stop())

        session.listen(listen)
        session.run(until=planned)
        if interrupted:
            return None
        return finish(Outcome(case, session.state.scene, session.state.step, time.perf_counter() - started, note))

    def figures(self) -> dict[str, Any]:
        """What every result depends on."""
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


def _say(text: str) -> None:
    print(f"{text} ...", file=sys.stderr)


# ---- what comes out --------------------------------------------------------------------------------------


def data_camera(s: CameraSettings) -> CameraSettings:
    """The distance and field of view of the pictures that the judge knows."""
    at = pictures.DISTANCE
    return dataclasses.replace(s, distance_min=at, distance_max=at, fovy=pictures.FOV_DEGREES)


def around(bench: Bench, outcome: Outcome, views: int) -> np.ndarray:
    """`views` views of what was made, as the judge sees them; uint8 [views, S, S, 3]."""
    return render_turntable(outcome.sides, data_camera(outcome.case.settings.camera), views, bench.prior.image_size)


def row_of(bench: Bench, outcome: Outcome, views: int) -> dict[str, Any]:
    """The figures of one run, with what the judge reads in `views` views around it."""
    return row_read_from(bench, outcome, around(bench, outcome, views))


def row_read_from(bench: Bench, outcome: Outcome, shown: np.ndarray) -> dict[str, Any]:
    """The figures of one run, with what the judge reads in the pictures `shown` of it, uint8 [n, S, S, 3]."""
    case = outcome.case
    truths = bench.read(shown)
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


class Progress:
    """Which share of the runs is done, and how long the rest will take at this rate."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def advance(self) -> str:
        """Count one more; the state in words."""
        self.done += 1
        rest = round(self.seconds / self.done * (self.total - self.done))
        left = f", {rest // 60}:{rest % 60:02} left" if self.done < self.total else ""
        return f"{self.done} of {self.total}{left}"


def write_json(path: Path, bench: Bench, summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({**summary, "rows": rows, **bench.figures()}, indent=1) + "\n", encoding="utf-8")


# ---- every object once -----------------------------------------------------------------------------------


def run_objects(bench: Bench, cases: Sequence[Case], out: Path, keep: bool = False) -> dict[str, Any]:
    """Distil each case, print a line when it is done, write objects.json and objects.png into the folder `out`, and
    with `keep` <object>/scene.ply; returns the summary. What is finished is written however it ends."""

    def finish(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
        splats = outcome.sides.splats()
        if keep and splats is not None:
            folder = out / outcome.case.object
            folder.mkdir(exist_ok=True)
            write_ply(folder / "scene.ply", splats)
        row = row_of(bench, outcome, VIEWS)
        return {**row, "recognised": row["object_votes"] >= RECOGNISED}, portrait(outcome)

    finished: list[tuple[dict[str, Any], np.ndarray]] = []
    progress = Progress(len(cases))
    print(f"{'prompt':24}{'seconds':>8}{'object':>8}{'colour':>8}  recognised")
    try:
        for row, picture in bench.run(cases, finish):
            finished.append((row, picture))
            print(_object_line(row, progress.advance()), flush=True)
    finally:
        finished.sort(key=lambda pair: [case.object for case in cases].index(pair[0]["object"]))
        rows = [row for row, _ in finished]
        summary = _objects_summary(rows, len(cases), progress.seconds)
        if rows:
            write_json(out / "objects.json", bench, summary, rows)
            save_portraits([picture for _, picture in finished], rows, out / "objects.png")
    print(
        f"{summary['recognised']} of {summary['finished']} recognised; votes for the object "
        f"{summary['object_share']:.1%}, for the colour {summary['colour_share']:.1%}; "
        f"{summary['run_seconds']} s of runs, {summary['seconds']} s in all; "
        + (f"results in {out}" if rows else "nothing written")
    )
    return summary


def _object_line(row: dict[str, Any], progress: str) -> str:
    votes = "".join(f"{row[key]:>6}/{row['views']}" for key in ("object_votes", "colour_votes"))
    verdict = "yes" if row["recognised"] else f"no ({row['seen_as']})"
    note = f"   {row['note']}" if row["note"] else ""
    return f"{row['prompt']:24}{row['seconds']:8.1f}{votes}  {verdict:14}{progress}{note}"


def _objects_summary(rows: Sequence[dict[str, Any]], planned: int, seconds: float) -> dict[str, Any]:
    views = max(sum(row["views"] for row in rows), 1)
    return {
        "planned": planned,
        "finished": len(rows),
        "recognised": sum(row["recognised"] for row in rows),
        "object_share": sum(row["object_votes"] for row in rows) / views,
        "colour_share": sum(row["colour_votes"] for row in rows) / views,
        "run_seconds": round(sum(row["seconds"] for row in rows), 1),
        "seconds": round(seconds, 1),
    }


@torch.no_grad()
def portrait(outcome: Outcome) -> np.ndarray:
    """uint8 [S, S, 3]: three quarters from the front, before white, finer than the prior sees."""
    azimuth, elevation, distance = (torch.tensor([v]) for v in (*PORTRAIT, pictures.DISTANCE))
    cams = look_at(azimuth, elevation, distance, pictures.FOV_DEGREES, PORTRAIT_SIZE, PORTRAIT_SIZE)
    return to_uint8(outcome.sides.render(cams, torch.ones(1, 3)).rgb)[0]


def save_portraits(portraits: Sequence[np.ndarray], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A contact sheet, each picture with its prompt and its votes underneath; a PNG of at most SHEET_BYTES."""
    margin, text_height = 12, 44
    cell_width, cell_height = PORTRAIT_SIZE + margin, PORTRAIT_SIZE + text_height + margin
    columns = min(SHEET_COLUMNS, len(portraits))
    size = (columns * cell_width + margin, -(-len(portraits) // columns) * cell_height + margin)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(size=16), ImageFont.load_default(size=13)
    for i, (picture, row) in enumerate(zip(portraits, rows, strict=True)):
        x, y = margin + i % columns * cell_width, margin + i // columns * cell_height
        sheet.paste(Image.fromarray(picture), (x, y))
        middle, below = x + PORTRAIT_SIZE // 2, y + PORTRAIT_SIZE
        draw.text((middle, below + 4), row["prompt"], fill=(40, 40, 48), font=large, anchor="mt")
        votes = "   ".join(f"{what} {row[f'{what}_votes']}/{row['views']}" for what in ("object", "colour"))
        draw.text(
            (middle, below + 26), votes, fill=(120, 120, 128) if row["recognised"] else RED, font=small, anchor="mt"
        )
    save_small(sheet, path)


def save_small(sheet: Image.Image, path: Path) -> None:
    """A PNG of at most SHEET_BYTES, made smaller until it is."""
    sheet.save(path, optimize=True)
    while path.stat().st_size > SHEET_BYTES:
        sheet = sheet.resize((sheet.width * 9 // 10, sheet.height * 9 // 10), Image.Resampling.LANCZOS)
        sheet.save(path, optimize=True)


def save_strips(strips: Sequence[np.ndarray], captions: Sequence[str], path: Path) -> None:
    """Strips of pictures below each other, each with its caption, in a PNG as small as `save_small` makes it."""
    stack_strips(strips, captions, path)
    with Image.open(path) as sheet:
        save_small(sheet.copy(), path)


# ---- off and on ------------------------------------------------------------------------------------------


def run_janus(bench: Bench, cases: Sequence[Case], out: Path) -> dict[str, Any]:
    """Distil the cases, count the views that the judge calls a front, print a line for each object when it is done,
    write janus.json and janus.png into the folder `out`; returns the summary.

    The picture holds the turntables of the first seed, off above on, with a bar under each view read as a front.
    """

    def finish(outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
        row = row_of(bench, outcome, JANUS_VIEWS)
        return row, front_strip(outcome, row)

    rows: list[dict[str, Any]] = []
    complete: dict[str, dict[str, float]] = {}  # object -> its fronts, once all its runs are done
    strips: dict[tuple[str, str], np.ndarray] = {}
    progress = Progress(len(cases))
    print(f"views of {JANUS_VIEWS} read as a front; an object with one front has {true_fronts(bench.settings)}")
    print(f"{'object':12}{'off':>8}{'on':>8}")
    try:
        for row, strip in bench.run(cases, finish):
            rows.append(row)
            if row["seed"] == bench.settings.seed:
                strips[row["object"], "on" if row["view_dependent"] else "off"] = strip
            state = progress.advance()
            own = [r for r in rows if r["object"] == row["object"]]
            if len(own) == sum(case.object == row["object"] for case in cases):
                complete[row["object"]] = mean_fronts(own)
                notes = "; ".join(r["note"] for r in own if r["note"])
                print(f"{_janus_line(row['object'], complete[row['object']])}   {state}   {notes}".rstrip(), flush=True)
    finally:
        summary = {
            "views": JANUS_VIEWS,
            "true_fronts": true_fronts(bench.settings),
            "objects": complete,
            "mean": mean_fronts([row for row in rows if row["object"] in complete]),
            "seconds": round(progress.seconds, 1),
        }
        if complete:
            rows.sort(key=lambda row: (row["object"], row["seed"], row["view_dependent"]))
            write_json(out / "janus.json", bench, summary, rows)
            shown = [(name, mode) for name in complete for mode in MODES]
            captions = [_strip_caption(name, mode, complete[name]) for name, mode in shown]
            stack_strips([strips[key] for key in shown], captions, out / "janus.png")
    if complete:
        print(_janus_line("mean", summary["mean"]))
    print(f"{summary['seconds']} s in all; " + (f"results in {out}" if complete else "nothing written"))
    return summary


def true_fronts(s: Settings) -> int:
    """How many of the views around an object with one front have it in the band of azimuths that is called so."""
    cams = turntable(JANUS_VIEWS, s.camera, 16)
    return sum(view_word(a, e) == FRONT for a, e in zip(cams.azimuth.tolist(), cams.elevation.tolist(), strict=True))


def mean_fronts(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Views read as a front, the mean over the runs with view-dependent prompts off and over those with them on."""
    votes = {mode: [r["front_votes"] for r in rows if r["view_dependent"] == on] for mode, on in MODES.items()}
    return {mode: round(sum(found) / max(len(found), 1), 2) for mode, found in votes.items()}


def _janus_line(name: str, fronts: dict[str, float]) -> str:
    return f"{name:12}{fronts['off']:8.1f}{fronts['on']:8.1f}"


def front_strip(outcome: Outcome, row: dict[str, Any]) -> np.ndarray:
    """The turntable side by side, uint8 [S, JANUS_VIEWS * S, 3], with a bar under each view read as a front."""
    views = render_turntable(outcome.sides, data_camera(outcome.case.settings.camera), JANUS_VIEWS, STRIP_SIZE)
    for picture, truth in zip(views, row["read"], strict=True):
        if truth["view"] == FRONT:
            picture[-4:, 8:-8] = RED
    return np.concatenate(list(views), axis=1)


def _strip_caption(name: str, mode: str, fronts: dict[str, float]) -> str:
    return f"{name}, view-dependent prompts {mode}: {fronts[mode]:g} of {JANUS_VIEWS} read as a front"
