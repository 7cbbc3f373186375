"""The judge: a small classifier that reads what a toybox image shows, trained on ground-truth images of the generator.

It predicts object, colour, view, second object and the second object's colour, and never sees a sample of a prior. It
has its own image series (`JUDGE_SEED`), in which colours and cameras are redrawn so that every object appears in every
colour from all sides, including the combinations that the prior's captions hold out.

Views count only for objects that have a front (`Model.front`). Accuracy is measured at least MARGIN degrees inside a
view's band of cameras, because at its edge the word is a convention rather than a visible difference.

A trained judge (`sdlab.training.judge`) is a folder with `judge.safetensors` (float16) and `config.json`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as serialised
from torch import Tensor, nn

from sdlab.cameras import CameraSettings
from sdlab.pictures import resize
from sdlab.toybox import pictures
from sdlab.toybox.objects import OBJECTS, seconds_of
from sdlab.toybox.pictures import Shot
from sdlab.toybox.progress import Meter
from sdlab.toybox.words import BACK, FRONT, OVERHEAD, SIDE, VIEW_WORDS, Facts

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "toybox" / "judge"
WEIGHTS, CONFIG = "judge.safetensors", "config.json"
SIZE = 64  # side of the judge's input in pixels, in training too; smaller images are enlarged
JUDGE_SEED = 1_000_003  # seed of its image series, different from any smaller training seed
HELD_OUT = 10_000_000  # index of the first image that no judge is trained on
SECOND_WEIGHTS = {"hat": 3.0, "scarf": 5.0, "box": 2.0, "ball": 2.0}  # larger if few objects can have it
MARGIN = 10.0  # degrees from the edge of a view's band, for images whose view is scored
SECONDS = ("", "hat", "scarf", "box", "ball")
QUESTIONS: dict[str, tuple[str, ...]] = {
    "object": tuple(OBJECTS),
    "colour": tuple(pictures.COLOURS),
    "view": VIEW_WORDS,
    "second": SECONDS,
    "second_colour": tuple(pictures.COLOURS),
}
WIDTHS = (32, 64, 128, 160)


class Truth(NamedTuple):
    """What an image shows. `view` is "" if the object has no front or the camera is between two views."""

    object: str
    colour: str
    view: str
    second: str = ""
    second_colour: str = ""  # "" where there is no second object


# ---- ground-truth images ----------------------------------------------------------------------------------------


def view_of(azimuth: float, elevation: float, margin: float = 0.0) -> str:
    """Return the view word whose band contains this camera (degrees), at least `margin` degrees inside it, or ""."""
    if elevation >= pictures.OVERHEAD_ELEVATIONS[0] + margin:
        return OVERHEAD
    if elevation > pictures.ELEVATIONS[1] - margin:
        return ""
    turn = abs((azimuth + 180) % 360 - 180)
    for word, centre in ((FRONT, 0), (SIDE, 90), (BACK, 180)):
        if abs(turn - centre) <= pictures.HALF_BAND - margin:
            return word
    return ""


def camera_of(rng: np.random.Generator, view: str, margin: float = 0.0) -> tuple[float, float]:
    """Draw (azimuth, elevation) in degrees within the band of `view`, `margin` degrees inside it; any camera for ""."""
    low, high = pictures.ELEVATIONS
    if view == OVERHEAD:
        low, high = pictures.OVERHEAD_ELEVATIONS
        return rng.uniform(-180, 180), rng.uniform(low + margin, high)
    elevation = (
        rng.uniform(low, high - margin)
        if rng.random() < 0.5
        else float(np.clip(rng.normal(15, 12), low, high - margin))
    )
    if not view:
        return rng.uniform(-180, 180), rng.uniform(low, pictures.OVERHEAD_ELEVATIONS[1])
    centre = {FRONT: 0.0, SIDE: 90.0 if rng.random() < 0.5 else -90.0, BACK: 180.0}[view]
    half = pictures.HALF_BAND - margin
    return centre + rng.uniform(-half, half), elevation


def data_camera(s: CameraSettings) -> CameraSettings:
    """Return `s` with the distance and field of view of the judge's training images."""
    at = pictures.DISTANCE
    return dataclasses.replace(s, distance_min=at, distance_max=at, fovy=pictures.FOV_DEGREES)


def seen_from(shot: Shot, rng: np.random.Generator, azimuth: float, elevation: float) -> Shot:
    """Return the shot from another camera, with the light behind that camera."""
    lamp = math.radians(azimuth + rng.uniform(-60, 60))
    light = np.array((0.6 * math.cos(lamp), 0.6 * math.sin(lamp), 0.8))
    return shot._replace(azimuth=azimuth, elevation=elevation, light=light)


def uncorrupted(shot: Shot) -> Shot:
    """Return the shot without its corruptions."""
    return shot._replace(facts=shot.facts._replace(corruptions=()))


def own_shot(index: int, more_seconds: float = 0.0) -> Shot:
    """Return image `index` of the judge's own series: uncorrupted, any colour, any side, all view words equally often.

    `more_seconds` is the fraction of single-object images that get a second object added.
    """
    shot = uncorrupted(pictures.describe(JUDGE_SEED, index))
    rng = np.random.default_rng((JUDGE_SEED, index, 1))
    facts = shot.facts
    colour = pictures.one_of(rng, [c for c in pictures.COLOURS if c != facts.second_colour])
    view = "" if rng.random() < 0.15 else pictures.one_of(rng, VIEW_WORDS)
    shot = shot._replace(facts=facts._replace(colour=colour, view=view), rgb=pictures.jittered(rng, colour))
    shot = seen_from(shot, rng, *camera_of(rng, view))
    if facts.second or rng.random() >= more_seconds:
        return shot
    known = seconds_of(facts.object)
    second = known[pictures.pick(rng, [SECOND_WEIGHTS[s] for s in known])]
    other = pictures.one_of(rng, [c for c in pictures.COLOURS if c != colour])
    facts = shot.facts._replace(second=second, second_colour=other)
    return shot._replace(facts=facts, second_rgb=pictures.jittered(rng, other))


def shot_of(index: int, facts: Facts) -> Shot:
    """Return a shot of the given facts; everything they leave open is drawn as for any other image.

    The camera lies at least MARGIN degrees inside the band of the view word. Without a view word it is drawn as for a
    training image whose caption names no view.
    """
    rng = np.random.default_rng((JUDGE_SEED, index, 2))
    grounds, slope = pictures.draw_ground(rng, facts.style)
    shot = pictures.describe(JUDGE_SEED, index)._replace(
        facts=facts,
        variant=int(rng.random() * OBJECTS[facts.object].variants),
        rgb=pictures.jittered(rng, facts.colour),
        second_rgb=pictures.jittered(rng, facts.second_colour) if facts.second else (0.0, 0.0, 0.0),
        grounds=grounds,
        slope=slope,
    )
    if facts.view:
        return seen_from(shot, rng, *camera_of(rng, facts.view, MARGIN))
    view, azimuth, elevation = pictures.draw_camera(rng)
    while view:
        view, azimuth, elevation = pictures.draw_camera(rng)
    return seen_from(shot, rng, azimuth, elevation)


def truth_of(shot: Shot, margin: float = 0.0) -> Truth:
    """Return the correct reading of a shot.

    The view is "" if the object has no front or the camera is not `margin` degrees inside a band.
    """
    facts = shot.facts
    view = view_of(shot.azimuth, shot.elevation, margin) if OBJECTS[facts.object].front else ""
    return Truth(facts.object, facts.colour, view, facts.second, facts.second_colour)


def render(shots: Sequence[Shot], size: int = pictures.SIZE) -> Tensor:
    """Render shots to uint8 [n, 3, size, size]."""
    rgb = np.concatenate([(part * 255 + 0.5).astype(np.uint8) for part in pictures.render_parts(shots, size)])
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)))


def true_pictures(
    begin: int,
    count: int,
    margin: float = 0.0,
    more_seconds: float = 0.0,
    progress: Callable[[int], None] = lambda done: None,
    size: int = pictures.SIZE,
) -> tuple[Tensor, list[Truth]]:
    """Return (uint8 [count, 3, size, size], what they show) of the judge's series, starting at image `begin`.

    `progress` is called with the number of finished images; `more_seconds` as in `own_shot`, `margin` as in `truth_of`.
    """
    rgb = torch.empty(count, 3, size, size, dtype=torch.uint8)
    truths: list[Truth] = []
    while len(truths) < count:
        first = begin + len(truths)
        shots = [own_shot(i, more_seconds) for i in range(first, min(first + pictures.CHUNK, begin + count))]
        rgb[len(truths) : len(truths) + len(shots)] = render(shots, size)
        truths += [truth_of(s, margin) for s in shots]
        progress(len(truths))
    return rgb, truths


# ---- network ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Residual block: x + two convolutions (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.one_norm = nn.BatchNorm2d(width)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two_norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.two_norm(self.two(F.relu(self.one_norm(self.one(x))))))


def halved(before: int, after: int, kernel: int) -> list[nn.Module]:
    """Return the layers of a convolution with stride 2."""
    convolution = nn.Conv2d(before, after, kernel, stride=2, padding=(kernel - 1) // 2, bias=False)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


class Classifier(nn.Module):
    """A residual network with one linear head per question.

    The first convolution already halves the resolution; most of the time would otherwise go into the layers before it.
    """

    def __init__(
        self,
        questions: dict[str, tuple[str, ...]] | None = None,
        size: int = SIZE,
        widths: Sequence[int] = WIDTHS,
    ) -> None:
        super().__init__()
        self.questions = QUESTIONS if questions is None else questions
        self.size = size
        self.widths = tuple(widths)
        self.facts: dict[str, Any] = {}  # training settings and accuracy, as in its config.json
        layers = halved(3, self.widths[0], 4)
        for before, after in zip(self.widths, self.widths[1:], strict=False):
            layers += [*halved(before, after, 3), Block(after)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        n_features = self.widths[-1] * math.ceil(size / 2 ** len(self.widths)) ** 2
        self.heads = nn.ModuleDict({name: nn.Linear(n_features, len(a)) for name, a in self.questions.items()})

    def forward(self, rgb: Tensor) -> dict[str, Tensor]:
        """Map rgb [B, 3, size, size] in [0, 1] to logits [B, answers] per question."""
        features = self.layers(2 * rgb - 1)
        return {name: head(features) for name, head in self.heads.items()}


def save(classifier: Classifier, folder: Path) -> None:
    """Write the folder that `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    half = {k: v.half().contiguous() if v.is_floating_point() else v for k, v in classifier.state_dict().items()}
    (folder / WEIGHTS).write_bytes(serialised(half))
    config = {
        "size": classifier.size,
        "widths": classifier.widths,
        "questions": classifier.questions,
        **classifier.facts,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(folder: Path | None = None) -> Classifier:
    """Load the judge from `folder`, or the shipped one if None: float32, frozen, in evaluation mode.

    Raises ValueError if the folder has no judge, if it cannot be read, or if its questions or answers (objects,
    colours) differ from the current toybox.
    """
    folder = folder or SHIPPED
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} is not a judge folder: {' and '.join(missing)} missing; train one with "
            "`python -m sdlab toybox train-judge --out FOLDER`"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        questions = {name: tuple(answers) for name, answers in config.pop("questions").items()}
        classifier = Classifier(questions, config.pop("size"), config.pop("widths"))
        weights = load_file(folder / WEIGHTS)
        classifier.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except Exception as error:
        raise ValueError(f"the judge in {folder} cannot be read ({type(error).__name__}); retrain it") from error
    if questions != QUESTIONS:
        raise ValueError(f"the judge in {folder} was trained on questions that differ from this toybox's; retrain it")
    classifier.facts = config
    return classifier.requires_grad_(False).eval()


# ---- reading ----------------------------------------------------------------------------------------------------


@torch.no_grad()
def chances(classifier: Classifier, rgb: Tensor) -> dict[str, Tensor]:
    """Return the probabilities [n, answers] per question for images rgb [n, 3, S, S] of any size.

    Pixels are in [0, 1], or 0 to 255 for uint8. The result is averaged over the image and its mirror image, for which
    every answer stays the same.
    """
    found: dict[str, list[Tensor]] = {name: [] for name in classifier.questions}
    for x in shown_to(classifier, rgb):
        one, mirrored = classifier(x), classifier(x.flip(-1))
        for name, parts in found.items():
            parts.append((one[name].softmax(1) + mirrored[name].softmax(1)) / 2)
    return {name: torch.cat(parts) for name, parts in found.items()}


def shown_to(classifier: Classifier, rgb: Tensor) -> Iterator[Tensor]:
    """Yield images of any size in batches of 256, as floats in [0, 1] resized to the classifier's input."""
    for part in rgb.split(256):
        x = part.float() / 255 if part.dtype == torch.uint8 else part
        yield resize(x, (classifier.size, classifier.size))


@torch.no_grad()
def features(classifier: Classifier, rgb: Tensor) -> Tensor:
    """Return the features [n, widths[-1]] of images rgb [n, 3, S, S] of any size, in [0, 1] (uint8: 0 to 255).

    They are the input of the heads, averaged over the spatial positions, as FID does with its own network.
    """
    parts = [classifier.layers(2 * x - 1).unflatten(1, (classifier.widths[-1], -1)) for x in shown_to(classifier, rgb)]
    return torch.cat(parts).mean(2)


def read(classifier: Classifier, rgb: Tensor) -> list[Truth]:
    """Return the most likely answers for images rgb [n, 3, S, S] of any size, in [0, 1] (uint8: 0 to 255).

    The view is "" if the predicted object has no front; the second colour is "" if no second object is predicted.
    """
    return most_likely(classifier, chances(classifier, rgb))


def most_likely(classifier: Classifier, chances: dict[str, Tensor]) -> list[Truth]:
    """Return the most likely answers by their probabilities [n, answers] per question, as `read` does."""
    best = {name: p.argmax(1).tolist() for name, p in chances.items()}
    found = []
    for i in range(len(best["object"])):
        truth = Truth(*(classifier.questions[name][best[name][i]] for name in Truth._fields))
        view = truth.view if OBJECTS[truth.object].front else ""
        found.append(truth._replace(view=view, second_colour=truth.second_colour if truth.second else ""))
    return found


class Share(NamedTuple):
    """`right` answers out of `of`."""

    right: int
    of: int

    @property
    def value(self) -> float:
        return self.right / self.of if self.of else math.nan

    def __str__(self) -> str:
        return f"{self.right}/{self.of}"


def share(hits: Iterable[bool]) -> Share:
    """Count the hits and the total."""
    known = list(hits)
    return Share(sum(known), len(known))


def score(asked: Sequence[Truth], answered: Sequence[Truth]) -> dict[str, Share]:
    """Return the share of right answers per question, and per view word as `view: <word>`.

    Views and second colours whose true answer is "" are left out.
    """
    hits: dict[str, list[bool]] = {}
    for a, b in zip(asked, answered, strict=True):
        hits.setdefault("object", []).append(a.object == b.object)
        hits.setdefault("colour", []).append(a.colour == b.colour)
        if a.view:
            hits.setdefault("view", []).append(a.view == b.view)
            hits.setdefault(f"view: {a.view}", []).append(a.view == b.view)
        hits.setdefault("second", []).append(a.second == b.second)
        if a.second:
            hits.setdefault("second_colour", []).append(a.second_colour == b.second_colour)
    return {name: share(values) for name, values in hits.items()}


def confusions(asked: Sequence[Truth], answered: Sequence[Truth], question: str) -> list[tuple[str, str, int]]:
    """Return (asked, answered, count) of the wrong answers to one question, most frequent first.

    For "view", `asked` is "object, view". A second object that was missed counts for "second" but not for
    "second_colour".
    """
    found: Counter[tuple[str, str]] = Counter()
    for a, b in zip(asked, answered, strict=True):
        one, other = getattr(a, question), getattr(b, question)
        if question == "second_colour" and not other:
            continue  # a second object that was missed has no colour to confuse
        if one != other and (one or question == "second"):
            found[(f"{a.object}, {one}" if question == "view" else one or "none", other or "none")] += 1
    return [(one, other, n) for (one, other), n in found.most_common()]


def accuracy(classifier: Classifier, count: int) -> tuple[dict[str, Share], list[Truth], list[Truth]]:
    """Return (shares of right answers, truths, answers) on `count` images outside the training range of every judge."""
    rgb, asked = true_pictures(HELD_OUT, count, MARGIN, progress=Meter("held-out images", count))
    answered = read(classifier, rgb)
    return score(asked, answered), asked, answered
