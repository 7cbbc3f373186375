"""Build the static edition: an index, recorded runs, lessons, the playground, and a README for a static Space."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
from PIL import Image

import sdlab
from sdlab.cameras import view_word
from sdlab.experiments.gallery_losses import OBJECTS, entries, preset_for
from sdlab.lessons import Lesson
from sdlab.live.messages import Patch
from sdlab.progress import print_above, run_bar
from sdlab.scenes.splats import Splats
from sdlab.settings import Settings, about, losses, preset, to_toml
from sdlab.site.lesson_pages import file_of, told_of
from sdlab.site.lesson_recording import SHOTS, PageRecording, record_lesson
from sdlab.site.playground import PAGE, module, static, world
from sdlab.site.recording import FRAMES, SIDES, Recording, record, save, write
from sdlab.ui.formulas import formula
from sdlab.ui.lesson_page import inline
from sdlab.ui.wording import TITLE, sentence
from sdlab.web import source_hash

HERE = Path(__file__).parent
MORE = {  # recorded besides the losses: name -> preset, changes
    "janus": ("janus", {}),
    "network": ("toybox", {}),
    "esd-views": ("gallery-esd-views", {"losses.esd.lam": 1.0}),
    "field": ("gallery-field", {}),
    "illusion": ("illusion", {}),
    "painting": ("painting-to-real", {}),
}
QUICK_SHARE, QUICK_FRAMES, QUICK_SHOTS = 0.25, 16, 10  # of a run's steps, frames, and pictures of a lesson's page
LIMIT = 50_000_000  # bytes of the whole site
SMALLER = (60, 40, 25)  # qualities of WebP to try when it is larger
MADE_BY = "Static edition made by"
FRONT_MATTER = """---
title: {title}
emoji: \N{BEAR FACE}
colorFrom: red
colorTo: yellow
sdk: static
app_file: index.html
short_description: Recorded runs, lessons, and a live playground
license: mit
tags: [score-distillation, text-to-3d, education]
---

{made_by} `{command}`. Open index.html: it needs no server and no network.
"""
# file: is what a browser that does not take 'self' for its folder calls pages opened from disk
POLICY = (
    "default-src 'none'; img-src 'self' file: data:; style-src {styles}; script-src {scripts}; base-uri 'none'; "
    "form-action 'none'"
)


@dataclass(frozen=True)
class Plan:
    """A run to record."""

    name: str
    preset: str
    title: str
    summary: str
    settings: Settings
    changes: Mapping[int, Patch] = field(default_factory=lambda: MappingProxyType({}))


def plans(quick: bool = False, names: Sequence[str] = ()) -> list[Plan]:
    """Return the runs to record, all or those in `names`. ValueError names those that there are."""
    found = {plan.name: plan for plan in [*map(_of_loss, losses()), *(_more(name) for name in MORE)]}
    if unknown := [name for name in names if name not in found]:
        raise ValueError(f"--runs {unknown[0]}: there are {', '.join(found)}")
    chosen = [found[name] for name in names] if names else list(found.values())
    return [_shorter(plan) for plan in chosen] if quick else chosen


def _of_loss(loss: str) -> Plan:
    name = preset_for(loss)
    entry = entries([loss], OBJECTS[:1], [preset(name)])[0]
    case, kind = entry.case, losses()[loss]
    return Plan(loss, name, kind.title, sentence(kind.look_for), case.settings, case.planned)


def _more(name: str) -> Plan:
    own, changes = MORE[name]
    told = about(own)
    text = told["text"].removesuffix(" Starts a new run.")
    return Plan(name, own, told["title"], text, preset(own).patch_all(list(changes.items())))


def _shorter(plan: Plan) -> Plan:
    """Return a plan of fewer steps, with its changes at the same parts of the run."""
    steps = max(round(plan.settings.steps * QUICK_SHARE), 20)
    share = steps / plan.settings.steps
    changes = {round(step * share): _moved(patch, round(step * share)) for step, patch in plan.changes.items()}
    return Plan(plan.name, plan.preset, plan.title, plan.summary, plan.settings.patch("steps", steps), changes)


def _moved(patch: Patch, step: int) -> Patch:
    return Patch(tuple((path, step if path == "schedule.start" else value) for path, value in patch.changes))


# ---- pages -----------------------------------------------------------------------------------------------


@functools.cache
def _templates() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(HERE / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=False)


def as_script_data(told: Any) -> str:
    """Return JSON that may stand in a <script> element."""
    return json.dumps(told, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def policy(style: str, scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy of a page that has these inline elements: nothing else runs or is loaded."""
    return POLICY.format(styles=source_hash(style), scripts=" ".join(map(source_hash, scripts)) or "'none'")


class Site:
    """Writes pages to `out`; `command` made them. `has_lessons` and `has_runs` decide what the pages link to."""

    def __init__(self, out: Path, command: str, quick: bool, has_runs: bool = True, has_lessons: bool = True) -> None:
        self._out = out
        style = static("site.css")
        self._common = {
            "command": command,
            "version": sdlab.__version__,
            "quick": quick,
            "style": style,
            "has_runs": has_runs,
            "has_lessons": has_lessons,
        }

    def page(self, file: str, template: str, scripts: Sequence[str] = (), module: bool = False, **told: Any) -> None:
        """Write one page, which runs `scripts`, as a module if `module`."""
        told |= {"scripts": scripts, "module": module, "policy": policy(self._common["style"], scripts)}
        text = _templates().get_template(template).render(**self._common, **told)
        (self._out / file).write_text(text, encoding="utf-8", newline="\n")

    def index(self, runs: Sequence[Plan], lessons: Sequence[Lesson] = ()) -> None:
        """Write the index."""
        cards = [
            {
                "href": f"{plan.name}.html",
                "poster": f"{plan.name}.webp",
                "title": plan.title,
                "summary": plan.summary,
                "alt": f"what the run with {plan.title} made",
            }
            for plan in runs
        ]
        entries = [
            {
                "href": file_of(lesson, 0),
                "title": f"{lesson.number}. {lesson.title}",
                "summary": inline(lesson.summary),
                "minutes": f"{lesson.minutes:g} min, {len(lesson.pages)} pages",
            }
            for lesson in lessons
        ]
        title = "Score distillation, recorded"
        self.page("index.html", "index.html", title=title, runs=cards, lessons=entries)

    def readme(self) -> None:
        """Write the README of a static Space, which also marks the folder as a site."""
        text = FRONT_MATTER.format(title=TITLE, made_by=MADE_BY, command=self._common["command"])
        (self._out / "README.md").write_text(text, encoding="utf-8")

    def run(self, plan: Plan, found: Recording, before: Plan | None, after: Plan | None) -> None:
        """Write the page of a recorded run."""
        s = plan.settings
        told = write(found, self._out, plan.name)
        save(found.shots[-1].view, self._out / f"{plan.name}.webp")
        loss = losses().get(plan.name, s.loss)
        self.page(
            f"{plan.name}.html",
            "run.html",
            [static("player.js")],
            title=plan.title,
            formula=formula(loss.formula),
            paper=loss.paper,
            text=plan.summary,
            alt=f"the object of this run from {SIDES} sides",
            sides=_sides(s),
            shell=shell(plan),
            toml=to_toml(s),
            data=as_script_data(told),
            before=_linked(before),
            after=_linked(after),
        )

    def lesson(self, lesson: Lesson, found: Sequence[PageRecording], after: Lesson | None) -> None:
        """Write the pages of a lesson that were recorded; `after` is the lesson that follows."""
        for number, one in enumerate(found):
            told = told_of(lesson, number, one, self._out)
            data = as_script_data(told.pop("run"))
            pages = [{"file": file_of(lesson, n), "title": lesson.pages[n].title} for n in range(len(found))]
            self.page(
                file_of(lesson, number),
                "lesson.html",
                [static("lesson.js"), static("player.js")],
                pages=pages,
                next_lesson=after and {"file": file_of(after, 0), "title": after.title},
                sides=_sides(one.settings),
                data=data,
                **told,
            )

    def plane(self) -> None:
        """Write the playground."""
        self.page(PAGE, "plane.html", [module()], True, title="Playground", data=as_script_data(world()))


def _linked(plan: Plan | None) -> dict[str, str] | None:
    return None if plan is None else {"file": f"{plan.name}.html", "title": plan.title}


def _sides(s: Settings) -> str:
    """Return which sides of the object the four pictures show."""
    if not isinstance(s.scene, Splats) and s.scene.kind != "field":
        return "the scene itself"
    views = [view_word(n * 360.0 / SIDES, 15.0).removesuffix(" view") for n in range(SIDES)]
    return f"{', '.join(views)}"


def shell(plan: Plan) -> str:
    """Return the command that repeats a run."""
    said = [f"python -m sdlab run {plan.preset} --out out/{plan.name}"]
    said += [f'--set {path}="{value}"' for path, value in preset(plan.preset).differences(plan.settings)]
    said += [f'--at {n} {path}="{value}"' for n, patch in plan.changes.items() for path, value in patch.changes]
    return " ".join(said)


# ---- everything ------------------------------------------------------------------------------------------


def build(out: Path, runs: Sequence[Plan], lessons: Sequence[Lesson], command: str, quick: bool) -> int:
    """Record runs and lessons, write the site to the folder `out` and return its size in bytes. ValueError for a folder
    with other files, and for a site that is larger than `LIMIT`, however small its pictures."""
    out.mkdir(parents=True, exist_ok=True)
    clear(out)
    site = Site(out, command, quick, bool(runs), bool(lessons))
    site.readme()
    site.plane()
    with run_bar(len(runs) + len(lessons)) as bar:
        for n, plan in enumerate(runs):
            bar.set_description_str(plan.name)
            found = record(plan.settings, plan.changes, QUICK_FRAMES if quick else FRAMES)
            site.run(plan, found, runs[n - 1] if n else None, runs[n + 1] if n + 1 < len(runs) else None)
            bar.update()
            print_above(f"{plan.name}: {found.shots[-1].step} steps")
        for n, lesson in enumerate(lessons):
            bar.set_description_str(f"lesson {lesson.name}")
            pages = record_lesson(lesson, QUICK_SHOTS if quick else SHOTS)
            site.lesson(lesson, pages, lessons[n + 1] if n + 1 < len(lessons) else None)
            bar.update()
            print_above(f"lesson {lesson.name}: {_outcome(pages)}")
    site.index(runs, lessons)
    return fit(out)


def _outcome(pages: Sequence[PageRecording]) -> str:
    """Return in words whether the pages of a lesson show what they promise."""
    said = [f"{len(pages)} pages"]
    said += [f"page {n} does not reach its reading" for n, one in enumerate(pages, 1) if one.missed]
    return "; ".join(
        [*said, *(f"page {n}: {one.outcome.problem}" for n, one in enumerate(pages, 1) if one.outcome.problem)]
    )


def clear(out: Path) -> None:
    """Remove the site that was built in the folder `out` before. ValueError if there are files that are not of one."""
    files = [file for file in out.iterdir() if not file.name.startswith(".")]
    readme = out / "README.md"
    if not files:
        return
    if not (readme.is_file() and MADE_BY in readme.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(f"--out {out}: it has files that are not of a site, such as {files[0].name}; choose another")
    for file in files:
        if file.suffix in (".html", ".webp"):
            file.unlink()


def fit(out: Path) -> int:
    """Return the bytes of the site in the folder `out`; above `LIMIT`, compress its pictures more strongly first.
    ValueError if that is not enough."""
    for quality in SMALLER:
        if size_of(out) <= LIMIT:
            break
        print_above(f"{size_of(out) / 1e6:.1f} MB are too many: pictures are compressed to quality {quality}")
        for file in out.glob("*.webp"):
            with Image.open(file) as picture:
                picture.load()
            picture.save(file, quality=quality, method=4)
    size = size_of(out)
    if size > LIMIT:
        raise ValueError(
            f"{out} has {size / 1e6:.1f} MB, with its pictures at the lowest quality; a site has at most "
            f"{LIMIT / 1e6:.0f} MB: choose fewer --runs or --lessons"
        )
    return size


def size_of(folder: Path) -> int:
    """Return the bytes of the files in a folder, except hidden ones."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return sum(f.stat().st_size for f in files if not any(p.startswith(".") for p in f.relative_to(folder).parts))
