"""Build the static edition: an index, a page per recorded run, the playground, and a README for a static Space."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2

import sdlab
from sdlab.cameras import view_word
from sdlab.experiments.gallery_losses import OBJECTS, entries, preset_for
from sdlab.knobs import Knob
from sdlab.live.messages import Patch
from sdlab.priors.mixture import PLACES
from sdlab.progress import print_above, run_bar
from sdlab.scenes.splats import Splats
from sdlab.settings import Settings, about, losses, preset, to_toml
from sdlab.site.recording import FRAMES, SIDES, Recording, record, write
from sdlab.ui.formulas import formula
from sdlab.ui.wording import TITLE, label_of, sentence

HERE = Path(__file__).parent
PLANE_PRESET = "playground"
LEAVES_OUT = {"vdm", "asd"}  # of the playground: they train a network
CLOSED_FORM = {"vsd": ("cfg", "lam"), "esd": ("cfg", "lam")}  # psi needs no training there, and no other knobs
MORE = {  # recorded besides the losses: name -> preset, changes, object in the picture
    "janus": ("janus", {}),
    "network": ("toybox", {}),
    "esd-views": ("gallery-esd-views", {"losses.esd.lam": 1.0}),
    "field": ("gallery-field", {}),
    "illusion": ("illusion", {}),
    "painting": ("painting-to-real", {}),
}
QUICK_SHARE, QUICK_FRAMES = 0.25, 16  # of the steps and frames
LIMIT = 50_000_000  # bytes of the whole site
FRONT_MATTER = """---
title: {title}
emoji: \N{BEAR FACE}
colorFrom: red
colorTo: yellow
sdk: static
app_file: index.html
short_description: Recorded runs of every loss, and a live playground
license: mit
tags: [score-distillation, text-to-3d, education]
---

Made by `{command}`. Open index.html: it needs no server and no network.
"""


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


def static(name: str) -> str:
    """Return the text of a file of the site."""
    return (HERE / "static" / name).read_text(encoding="utf-8")


def as_script_data(told: Any) -> str:
    """Return JSON that may stand in a <script> element."""
    return json.dumps(told, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


class Site:
    """Writes pages to `out`; `command` made them."""

    def __init__(self, out: Path, command: str, quick: bool) -> None:
        self._out = out
        self._common = {
            "command": command,
            "version": sdlab.__version__,
            "quick": quick,
            "style": static("site.css"),
            "up": "",
            "has_lessons": False,
        }

    def page(self, file: str, template: str, **told: Any) -> None:
        """Write one page."""
        text = _templates().get_template(template).render(**{**self._common, **told})
        (self._out / file).write_text(text, encoding="utf-8")

    def index(self, done: Sequence[Plan]) -> None:
        """Write the index and the README of a Space."""
        cards = [
            {
                "href": f"{plan.name}.html",
                "poster": f"{plan.name}.webp",
                "title": plan.title,
                "summary": plan.summary,
                "alt": f"what the run with {plan.title} made",
            }
            for plan in done
        ]
        self.page("index.html", "index.html", title="Score distillation, recorded", runs=cards)
        text = FRONT_MATTER.format(title=TITLE, command=self._common["command"])
        (self._out / "README.md").write_text(text, encoding="utf-8")

    def run(self, plan: Plan, found: Recording, before: Plan | None, after: Plan | None) -> None:
        """Write the page of a recorded run."""
        s = plan.settings
        told = write(found, self._out, plan.name)
        loss = losses().get(plan.name, s.loss)
        links = {
            name: other and {"file": f"{other.name}.html", "title": other.title}
            for name, other in (("before", before), ("after", after))
        }
        self.page(
            f"{plan.name}.html",
            "run.html",
            title=plan.title,
            formula=formula(loss.formula),
            paper=loss.paper,
            text=plan.summary,
            alt=f"the object of this run from {SIDES} sides",
            sides=_sides(s),
            shell=shell(plan),
            toml=to_toml(s),
            data=as_script_data(told),
            script=static("player.js"),
            **links,
        )

    def plane(self) -> None:
        """Write the playground."""
        self.page("plane.html", "plane.html", title="Playground", data=as_script_data(world()), script=module())


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


def module() -> str:
    """Return the playground's script, with the module that it imports put in front."""
    library = re.sub(r"^export ", "", static("distill.js"), flags=re.M)
    return library + re.sub(r"^import .*;$", "", static("plane.js"), count=1, flags=re.M)


def world() -> dict[str, Any]:
    """Return what the playground has to know: the preset, and the losses with their knobs."""
    s = preset(PLANE_PRESET)
    knobs = s.knobs()
    scene: Any = s.scene
    prior: Any = s.prior
    return {
        "active": s.active,
        "steps": s.steps,
        "seed": s.seed,
        "prompt": s.prompt.text,
        "source": s.prompt.source,
        "target": s.prompt.target,
        "negative": s.prompt.negative,
        "start": [scene.start_x, scene.start_y],
        "count": scene.n,
        "std": prior.std,
        "noise_schedule": prior.schedule,
        "layouts": PLACES,
        "schedule": {"t_min": s.schedule.t_min, "t_max": s.schedule.t_max, "weight": s.schedule.weight},
        "optim": {"lr": s.optim.lr_points} | {n: getattr(s.optim, n) for n in ("beta1", "beta2", "decay", "ramp")},
        "losses": [
            {
                "name": name,
                "title": loss.title,
                "formula": formula(loss.formula),
                "look": f"{loss.title} follows {loss.paper}",
                "all": {path.rpartition(".")[2]: k.value for path, k in _own(knobs, name)},
                "knobs": [_told(k) for path, k in _own(knobs, name) if _offered(name, path.rpartition(".")[2])],
            }
            for name, loss in losses().items()
            if name not in LEAVES_OUT
        ],
    }


def _own(knobs: Mapping[str, Knob], loss: str) -> list[tuple[str, Knob]]:
    return [(path, k) for path, k in knobs.items() if path.startswith(f"losses.{loss}.")]


def _offered(loss: str, name: str) -> bool:
    return name not in ("reference", "reward") and name in CLOSED_FORM.get(loss, (name,))


def _told(k: Knob) -> dict[str, Any]:
    return {
        "name": k.path.rpartition(".")[2],
        "label": label_of(k.path),
        "help": k.help,
        "value": k.value,
        "lo": k.lo,
        "hi": k.hi,
        "choices": list(k.choices or ()),
    }


# ---- everything ------------------------------------------------------------------------------------------


def build(out: Path, todo: Sequence[Plan], command: str, quick: bool) -> int:
    """Record the runs and write the site to the folder `out`; return its size in bytes. ValueError when it grows beyond
    `LIMIT`."""
    out.mkdir(parents=True, exist_ok=True)
    site = Site(out, command, quick)
    site.plane()
    with run_bar(len(todo)) as bar:
        for n, plan in enumerate(todo):
            bar.set_description_str(plan.name)
            found = record(plan.settings, plan.changes, QUICK_FRAMES if quick else FRAMES)
            site.run(plan, found, todo[n - 1] if n else None, todo[n + 1] if n + 1 < len(todo) else None)
            bar.update()
            print_above(f"{plan.name}: {found.steps[-1]} steps")
    site.index(todo)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    if size > LIMIT:
        raise ValueError(f"{out} has {size / 1e6:.0f} MB; a site has at most {LIMIT / 1e6:.0f}: record fewer --runs")
    return size
