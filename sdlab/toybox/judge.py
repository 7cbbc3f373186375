"""Does a toybox draw what its prompt says? A small classifier, trained on true pictures, reads its samples.

The classifier answers three questions about a picture: which object, which colour, which view word. It never sees
the prior; its own score on true pictures that it was not trained on stands beside the prior's, because it bounds
what the figures can mean. Views that an object cannot show apart (a tree looks the same from all sides) count as
the same answer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdlab.toybox import pictures, sample
from sdlab.toybox.model import Toybox
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.words import BACK, COLOURS, FRONT, OVERHEAD, SIDE, VIEW_WORDS

QUESTIONS: dict[str, tuple[str, ...]] = {"object": tuple(OBJECTS), "colour": tuple(COLOURS), "view": VIEW_WORDS}
# Horizontal views that look the same, by object.
ALIKE = {"tree": (FRONT, SIDE, BACK), "mushroom": (FRONT, SIDE, BACK), "cactus": (FRONT, BACK)}
JUDGE_SEED = 1_000_003  # of its pictures: another series than any training seed below it


class Truth(NamedTuple):
    """What a picture shows; `view` is "" where the azimuth lies between two views."""

    object: str
    colour: str
    view: str


def view_of(azimuth: float, elevation: float) -> str:
    """The view word whose band holds this camera, or ""."""
    if elevation >= pictures.OVERHEAD_ELEVATIONS[0]:
        return OVERHEAD
    turn = abs((azimuth + 180) % 360 - 180)
    for word, centre in ((FRONT, 0), (SIDE, 90), (BACK, 180)):
        if abs(turn - centre) <= pictures.HALF_BAND:
            return word
    return ""


def true_pictures(begin: int, count: int) -> tuple[Tensor, list[Truth]]:
    """(float [count, 3, S, S] in [0, 1], their truths), none corrupted."""
    shots = [pictures.describe(JUDGE_SEED, i) for i in range(begin, begin + count)]
    shots = [s._replace(facts=s.facts._replace(corruptions=())) for s in shots]
    rgb = torch.from_numpy(pictures.render_shots(shots)).permute(0, 3, 1, 2)
    return rgb, [Truth(s.facts.object, s.facts.colour, view_of(s.azimuth, s.elevation)) for s in shots]


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = (3, 32, 64, 96, 128)
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(32))
        for i, (before, after) in enumerate(pairwise(widths)):
            self.layers.append(nn.Conv2d(before, after, 3, padding=1, stride=1 if i == 0 else 2))
            self.layers.append(nn.BatchNorm2d(after))
            self.layers.append(nn.ReLU())
        self.heads = nn.ModuleDict(
            {name: nn.Linear(widths[-1] * 16, len(answers)) for name, answers in QUESTIONS.items()}
        )

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """rgb [B, 3, S, S] in [0, 1] -> logits [B, answers] of each question."""
        features = self.layers(2 * rgb - 1).flatten(1)
        return {name: head(features) for name, head in self.heads.items()}


def train_classifier(count: int = 60_000, epochs: int = 3, batch: int = 128) -> Classifier:
    """Trained on `count` true pictures with a little noise, so that a sample's residue of noise does not mislead it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier()
        rgb, truths = true_pictures(0, count)
        answers = {
            name: torch.tensor([known.index(a) if (a := getattr(t, name)) else -100 for t in truths])
            for name, known in QUESTIONS.items()
        }  # -100: what cross_entropy leaves out
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=2e-3)
        steps = epochs * (count // batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(steps, 2))
        for _ in range(epochs):
            order = torch.randperm(count)
            for begin in range(0, count - batch + 1, batch):
                which = order[begin : begin + batch]
                logits = classifier(rgb[which] + 0.04 * torch.randn(len(which), 3, 1, 1) * torch.randn_like(rgb[which]))
                loss = torch.stack([F.cross_entropy(logits[q], answers[q][which]) for q in QUESTIONS]).sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    return classifier.eval()


def kept_classifier(folder: Path) -> Classifier:
    """The trained classifier from `folder`; trained (some minutes) and kept there the first time."""
    path = folder / f"judge-v{pictures.DATA_VERSION}.pt"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".part")
        torch.save(train_classifier().state_dict(), draft)
        os.replace(draft, path)
    classifier = Classifier()
    classifier.load_state_dict(torch.load(path, weights_only=True))
    return classifier.eval()


@torch.no_grad()
def read(classifier: Classifier, rgb: Tensor) -> list[Truth]:
    """The classifier's answers for rgb [n, 3, S, S] in [0, 1]."""
    found: list[Truth] = []
    for part in rgb.split(512):
        best = {name: logits.argmax(1).tolist() for name, logits in classifier(part).items()}
        found += [Truth(*(QUESTIONS[name][best[name][i]] for name in QUESTIONS)) for i in range(len(part))]
    return found


def same_view(name: str, one: str, other: str) -> bool:
    alike = ALIKE.get(name, ())
    return one == other or (one in alike and other in alike)


def score(asked: Sequence[Truth], answered: Sequence[Truth]) -> dict[str, float]:
    """Shares of right answers: object, colour, view, and `view: <word>` for each; views asked as "" are left out."""
    hits: dict[str, list[bool]] = {}
    for a, b in zip(asked, answered, strict=True):
        hits.setdefault("object", []).append(a.object == b.object)
        hits.setdefault("colour", []).append(a.colour == b.colour)
        if a.view:
            right = same_view(a.object, a.view, b.view)
            hits.setdefault("view", []).append(right)
            hits.setdefault(f"view: {a.view}", []).append(right)
    return {name: float(np.mean(values)) for name, values in hits.items()}


class Verdict(NamedTuple):
    """Shares of right answers: on true pictures, on samples, and on the samples of each object."""

    true: dict[str, float]
    samples: dict[str, float]
    by_object: dict[str, dict[str, float]]


def judge(box: Toybox, classifier: Classifier, *, scale: float, steps: int, seed: int) -> Verdict:
    """Sample "a <colour> <object>, <view word>" once for every object, colour and view word, and read the samples."""
    rgb, truths = true_pictures(10_000_000, 4000)
    asked = [Truth(name, colour, view) for name in OBJECTS for colour in COLOURS for view in VIEW_WORDS]
    prompts = [f"a {t.colour} {t.object}, {t.view}" for t in asked]
    drawn = sample.sample(box, prompts, scale=scale, steps=steps, seed=seed)
    answered = read(classifier, torch.from_numpy(drawn).permute(0, 3, 1, 2))
    by_object = {}
    for name in OBJECTS:
        of_it = [i for i, t in enumerate(asked) if t.object == name]
        by_object[name] = score([asked[i] for i in of_it], [answered[i] for i in of_it])
    return Verdict(score(truths, read(classifier, rgb)), score(asked, answered), by_object)
