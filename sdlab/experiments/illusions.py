"""Illusions: does each view of a picture show what its own prompt asks for?

A run makes pictures of two or four prompts from several seeds. The judge reads every view like any other picture.
`seen` is the chance that it gives to the object asked for there, and a picture counts by its worst view. As the chances
of all objects sum to 1, no view can show two prompts at once.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from sdlab.experiments.objects import Case, Outcome, Runner
from sdlab.pictures import resize, to_uint8
from sdlab.scenes.illusion import IllusionScene
from sdlab.settings import Settings
from sdlab.toybox import judge
from sdlab.toybox.asked import asked_for

PRESET = "illusion"
TURN, FLIP, OVERLAY, FOUR = "turn", "flip", "overlay", "overlay of four"
KINDS: Mapping[str, tuple[tuple[str, Any], ...]] = {
    TURN: (("scene.transform", "turn"), ("scene.views", 2)),
    FLIP: (("scene.transform", "flip"), ("scene.views", 2)),
    OVERLAY: (("scene.transform", "overlay"), ("scene.views", 2)),
    FOUR: (("scene.transform", "overlay"), ("scene.views", 4)),
}
# Objects whose mean of a picture and a turned picture the judge reads as both, found by trying all 496 pairs. Either
# has the same colour, as no picture can be red and blue in one place.
PAIRS = (
    ("a brown cat", "a brown rabbit"),
    ("an orange mug", "an orange pumpkin"),
    ("a yellow duck", "a yellow house"),
    ("a green frog", "a green clock"),
    ("a turquoise person", "a turquoise cactus"),
    ("a gray robot", "a gray lamp"),
    ("a red house", "a red mug"),
    ("a brown dog", "a brown owl"),
)
FOURS = (("a brown cat", "a brown rabbit", "a brown dog", "a brown owl"),)
SEEDS = 4  # pictures of a run
ABOVE = 0.8  # chance from which a view counts as read
SHOWN = 96  # pixels per side of a view in the picture
SETS_SHOWN = 3
GAP = 8  # pixels between the pictures of a run


def trials(s: Settings, quick: bool) -> list[tuple[str, Case]]:
    """Return every pair of prompts with every way of looking, and the four prompts; with `quick` two pairs."""
    found = []
    for kind, changes in KINDS.items():
        for prompts in FOURS if kind == FOUR else PAIRS[:2] if quick else PAIRS:
            named = zip(("text", "second", "third", "fourth"), prompts, strict=False)
            own = s.patch_all([("scene.n", SEEDS), *changes, *((f"prompt.{name}", text) for name, text in named)])
            found.append((kind, Case(*asked_for(prompts[0]), own)))
    return found


def measure(runner: Runner, label: str, outcome: Outcome) -> tuple[dict[str, Any], np.ndarray]:
    """Return what the judge sees in every view of a run's pictures, and the pictures as a strip."""
    scene, s = outcome.scene, outcome.case.settings
    if not isinstance(scene, IllusionScene):
        raise TypeError(f"{type(scene).__name__}: expected illusions")
    views = scene.views().detach()
    seen = [round(p, 4) for p in chances(views, s.prompts)]
    by_picture = [seen[i : i + len(s.prompts)] for i in range(0, len(seen), len(s.prompts))]
    row = {
        "kind": label,
        "prompts": list(s.prompts),
        "seed": s.seed,
        "loss": s.active,
        "steps": outcome.steps,
        "seconds": round(outcome.seconds, 2),
        "note": outcome.note,
        "seen": by_picture,
        "worst": [min(one) for one in by_picture],
    }
    return row, _strip(to_uint8(resize(views, (SHOWN, SHOWN))), len(s.prompts))


@functools.cache
def classifier() -> judge.Classifier:
    return judge.load()


def chances(views: torch.Tensor, prompts: Sequence[str]) -> list[float]:
    """Return the judge's chance of the object that each view's prompt asks for; the views [n, 3, S, S] in [0, 1] take
    the prompts in turn."""
    found = classifier()
    said = judge.chances(found, views.cpu())["object"]
    names = [found.questions["object"].index(asked_for(prompt)[0]) for prompt in prompts]
    return [float(p[names[i % len(names)]]) for i, p in enumerate(said)]


def _strip(views: np.ndarray, each: int) -> np.ndarray:
    """Lay the views side by side, with a gap after each picture."""
    gap = np.full((views.shape[1], GAP, 3), 255, np.uint8)
    parts = [part for i, view in enumerate(views) for part in ([gap] if i and i % each == 0 else []) + [view]]
    return np.concatenate(parts, axis=1)


def line(row: Mapping[str, Any]) -> str:
    """Describe one run."""
    seen = "  ".join(" ".join(f"{p:.2f}" for p in one) for one in row["seen"])
    note = f"; {row['note']}" if row["note"] else ""
    return f"{row['kind']:16}{' / '.join(row['prompts']):36} {seen}, {row['seconds']:.0f} s{note}"


def summary(runner: Runner, found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> dict[str, Any]:
    """Return by way of looking: how many sets of prompts have a picture whose views are all read, and how many
    pictures."""
    table = []
    for kind in KINDS:
        rows = [row for row, _ in found if row["kind"] == kind]
        if rows:
            worst = [p for row in rows for p in row["worst"]]
            table.append(
                {
                    "kind": kind,
                    "sets": len(rows),
                    "sets_read": sum(max(row["worst"]) >= ABOVE for row in rows),
                    "pictures": len(worst),
                    "pictures_read": sum(p >= ABOVE for p in worst),
                    "worst_view": round(statistics.fmean(worst), 3),
                }
            )
    return {"above": ABOVE, "table": table}


def lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the table for the console."""
    head = f"{'':16}{'prompts, all views read':>24}{'pictures':>12}{'worst view, mean':>18}"
    return [
        head,
        *(
            f"{row['kind']:16}{row['sets_read']:>20} of {row['sets']}{row['pictures_read']:>6} of {row['pictures']:<3}"
            f"{row['worst_view']:>16.2f}"
            for row in summary["table"]
        ),
    ]


def shown(found: Sequence[tuple[dict[str, Any], np.ndarray]]) -> list[tuple[str, np.ndarray]]:
    """Return caption and strip of the first `SETS_SHOWN` sets of prompts of each way of looking, with as many pictures
    as fit into the narrowest strip."""
    narrowest = min(strip.shape[1] for _, strip in found)
    rows = []
    for kind in KINDS:
        for row, strip in [one for one in found if one[0]["kind"] == kind][:SETS_SHOWN]:
            each = len(row["prompts"]) * SHOWN + GAP
            fitting = max((narrowest + GAP) // each, 1) * each - GAP
            rows.append((f"{kind}: {' / '.join(row['prompts'])}", strip[:, :fitting]))
    return rows
