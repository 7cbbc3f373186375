"""A page of a lesson in the static edition: what its template is told. Texts of lessons are escaped here."""

from __future__ import annotations

import ast
import base64
import inspect
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdlab.lens import Comparison
from sdlab.lessons import Lesson
from sdlab.lessons.lesson import Ask, Do, Page, Wait
from sdlab.lessons.readings import COMPARED, meaning_of
from sdlab.own_loss import REFERENCE
from sdlab.settings import about, losses
from sdlab.site.lesson_recording import PageRecording
from sdlab.site.playground import link_to
from sdlab.site.recording import QUALITY, short, thinned, write, write_lens
from sdlab.ui.formulas import formula
from sdlab.ui.lesson_page import inline, prose
from sdlab.ui.wording import label_of, number

PUSH_SIDE = 88  # pixels of a picture in the table of compared losses
ALL_COSINES = 4  # with more losses, only those with the active one are shown


def file_of(lesson: Lesson, page: int) -> str:
    """Return the name of a lesson's page, which counts from 0."""
    return f"lesson-{lesson.name}-{page + 1}.html"


def told_of(lesson: Lesson, place: int, found: PageRecording, folder: Path) -> dict[str, Any]:
    """Write the pictures of page `place`, which counts from 0, to `folder` and return what its template needs, links to
    other pages excepted."""
    page, name = lesson.pages[place], f"lesson-{lesson.name}-{place + 1}"
    run = _run(page, found, folder, name)
    return {
        "title": page.title,
        "heading": inline(page.title),
        "lesson": lesson,
        "page": place,
        "text": prose(page.text),
        "formula": formula(page.formula) if page.formula else "",
        "source": page.source,
        "ask": _ask(page.ask),
        "acts": [*_acts(page.do), *_acts(page.student)],
        "code": _code(page.student),
        "look": inline(page.look),
        "answer": prose(page.answer),
        "reading": _reading(page.wait, found),
        "comparison": _comparison(found.comparison, found.settings.active),
        "live": link_to(found.settings),
        "run": run,
        "lens": run["lens"]["cells"] and ("open" if "lens" in page.highlight else "folded"),
    }


# ---- texts -----------------------------------------------------------------------------------------------


def _ask(ask: Ask | None) -> dict[str, Any] | None:
    if ask is None:
        return None
    choices = [inline(choice) for choice in ask.choices]
    return {
        "question": inline(ask.question),
        "choices": choices,
        "answer": ask.answer,
        "right": choices[ask.answer],
        "because": inline(ask.because),
    }


def _acts(acts: Sequence[Do]) -> list[str]:
    """Return in words how acts change the run."""
    said: list[str] = []
    for act in acts:
        match act.what:
            case "set":
                said += [_change(path, value) for path, value in act.value]
            case "preset":
                said.append(f"the preset {about(act.value)['title']}")
            case "reset":
                said.append("a new start")
            case "advance":
                said.append(f"{act.value} steps")
            case "branch":
                said.append("a branch of the run")
            case "compare":
                said.append("losses compared at this state")
            case "write":
                said.append("a loss as a learner writes it")
    return said


def _change(path: str, value: Any) -> str:
    """Return in words how a knob is set; which loss it belongs to, since two may be set alike."""
    group, _, rest = path.partition(".")
    loss = losses().get(rest.partition(".")[0]) if group == "losses" else None
    name = f"{label_of(path) if path != 'prompt.text' else 'prompt'}{f' of {loss.title}' if loss is not None else ''}"
    if isinstance(value, bool):
        return f"{name} {'on' if value else 'off'}"
    if path == "active" and value in losses():
        return f"{name} = {losses()[value].title}"
    return f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"


def _code(acts: Sequence[Do]) -> dict[str, str] | None:
    """Return the gradient that a learner writes on a page, with that of the reference; None if there is nothing to
    write."""
    written = [act.value for act in acts if act.what == "write"]
    if not written:
        return None
    reference = losses()[REFERENCE]
    return {
        "written": gradient_in(written[-1]),
        "reference": textwrap.dedent(inspect.getsource(reference.gradient)),
        "title": reference.title,
    }


def gradient_in(code: str) -> str:
    """Return the method `gradient` in the code of a loss, or the whole code if there is none."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.FunctionDef) and node.name == "gradient":
            return textwrap.dedent("\n".join(code.splitlines()[node.lineno - 1 : node.end_lineno]))
    return code


# ---- figures ---------------------------------------------------------------------------------------------


def _reading(wait: Wait | None, found: PageRecording) -> dict[str, str] | None:
    """Return the reading that a page waits for: its name, meaning, what was promised and what was measured."""
    if wait is None or not wait.reading:
        return None
    reached, value, bound = found.outcome.reached, found.outcome.value, found.outcome.threshold
    measured = "no reading" if value is None else number(value)
    if reached is None:
        said = f"Not reached after {found.outcome.steps} steps: {measured}"
    elif wait.reading.startswith(COMPARED):
        said = f"Measured: {measured}"
    else:
        said = f"Reached at step {reached.step}: {measured}"
    if wait.mark and found.marked is not None and bound is not None:
        said += f"; “{wait.mark}” was {number(found.marked)}, so the threshold is {number(bound)}"
    return {"name": wait.reading, "meaning": meaning_of(wait.reading), "promise": wait.promise(), "said": said}


def _curve(wait: Wait | None, found: PageRecording) -> list[dict[str, Any]]:
    """Return the curve of the reading that a page waits for, with its thresholds."""
    if wait is None or len(found.readings) < 2:
        return []
    bounds = [bound for bound in wait.bounds(found.marked) or () if math.isfinite(bound)]
    return [{"title": wait.reading, "points": thinned(found.readings), "bounds": [short(bound) for bound in bounds]}]


def _run(page: Page, found: PageRecording, folder: Path, name: str) -> dict[str, Any]:
    """Write the pictures of a page's run and return what the player needs to know."""
    told = write(found.run, folder, name)
    read = page.wait.reading if page.wait is not None else ""
    titles = {"fronts": "Fronts of 12", "saturation": "Saturation", "control_correlation": "Control variate"}
    told["curves"] = _curve(page.wait, found) + [one for one in told["curves"] if one["title"] != titles.get(read)]
    if found.probed:
        step = found.run.shots[-1].step
        told["lens"] = write_lens(found.probed, folder, name)
        told["labels"] = [f"t = {one.t}" for one in found.probed]
        told["steps"] = [step] * len(found.probed)
        told["numbers"] = [{}] * len(found.probed)
        told["curves"] = []
    return told


def _comparison(c: Comparison | None, active: str) -> dict[str, Any] | None:
    """Return the table of the losses that a page compares; None without."""
    if c is None or c.done < len(c.losses):
        return None
    beside = range(len(c.losses)) if len(c.losses) <= ALL_COSINES else [_place(c, active)]
    rows = [
        {
            "title": c.titles[i],
            "note": c.notes[i],
            "picture": "" if c.reason or not math.isfinite(float(c.rms[i])) else data_uri(c.pictures[i, 0]),
            "nfe": c.nfe[i],
            "rms": number(float(c.rms[i])),
            "cosines": [number(round(float(c.cosines[i, j]), 3)) for j in beside],
        }
        for i in range(len(c.losses))
    ]
    render = "" if c.reason else data_uri(c.renders[0])
    return {"t": c.t[0], "beside": [c.titles[j] for j in beside], "rows": rows, "render": render, "side": PUSH_SIDE}


def _place(c: Comparison, active: str) -> int:
    return c.losses.index(active) if active in c.losses else 0


def data_uri(picture: np.ndarray) -> str:
    """Return a picture, uint8 [S, S, 3], as a data URI in the size of the table."""
    file = io.BytesIO()
    size = (PUSH_SIDE, PUSH_SIDE)
    Image.fromarray(picture).resize(size, Image.Resampling.BOX).save(file, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
