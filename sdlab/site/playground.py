"""The plane's playground in the browser: what its script has to know, and links that open it with a lesson's
settings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sdlab.knobs import Knob
from sdlab.priors.mixture import PLACES
from sdlab.settings import Settings, losses, preset
from sdlab.ui.formulas import formula
from sdlab.ui.wording import label_of

STATIC = Path(__file__).parent / "static"
PAGE = "plane.html"
PRESET = "playground"
LEAVES_OUT = {"vdm", "asd"}  # they train a network
CLOSED_FORM = {"vsd": ("cfg", "lam"), "esd": ("cfg", "lam")}  # psi needs no training there, and no other knobs
FIELDS = {  # settings of the playground that a link can carry
    "active": "loss",
    "prompt.text": "prompt",
    "prompt.source": "source",
    "prompt.negative": "negative",
    "scene.n": "count",
    "scene.spread": "spread",
    "scene.start_x": "x",
    "scene.start_y": "y",
    "optim.lr_points": "rate",
    "steps": "steps",
    "seed": "seed",
}


def static(name: str) -> str:
    """Return the text of a file of the site."""
    return (STATIC / name).read_text(encoding="utf-8")


def module() -> str:
    """Return the playground's script, with the module that it imports put in front."""
    library = re.sub(r"^export ", "", static("distill.js"), flags=re.M)
    return library + re.sub(r"^import .*;$", "", static("plane.js"), count=1, flags=re.M)


def world() -> dict[str, Any]:
    """Return what the playground has to know: the preset, and the losses with their knobs."""
    s = preset(PRESET)
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


def link_to(s: Settings) -> str:
    """Return the address of the playground with these settings, "" if it cannot have them."""
    begin = preset(PRESET)
    if s.active not in losses() or s.active in LEAVES_OUT or (s.scene.kind, s.prior.kind) != ("points", "mixture"):
        return ""
    told: dict[str, Any] = {}
    for path, value in begin.differences(s):
        group, *rest = path.split(".")
        if path in FIELDS:
            told[FIELDS[path]] = value
        elif group != "losses":
            return ""
        elif rest[0] == s.active and _offered(*rest):
            told[".".join(rest)] = value
        elif rest[0] == s.active:
            return ""
    return f"{PAGE}#{urlencode(told)}" if told else PAGE
