"""Evaluation of a prior on the toybox: how well its samples match their prompts, by the judge or by image statistics.

`held_out_captions`  object, colour and view in combinations that no training image shows
`two_objects`        "a red bear on a green box": are both there?
`without_view`       fraction of front views when the prompt names no view, next to the fraction in the data
`descriptors`        effect of each of SBP's ten descriptors on one image statistic, from the same starting noise

Every result on samples is paired with the same measurement on ground-truth images, which shows the limit of what the
judge recognises and what a descriptor means in the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab.metrics.images import saturation, sharpness, softened
from sdlab.toybox import judge, pictures, sample
from sdlab.toybox.judge import Classifier, Share, Truth, read, score, share
from sdlab.toybox.objects import OBJECTS, seconds_of
from sdlab.toybox.progress import Meter
from sdlab.toybox.words import DESCRIPTORS, FRONT, RELATIONS, VIEW_WORDS, Facts
from sdlab.types import Prior

PAIRS = 60  # two-object captions
PARTS = ("true", "held-out", "two-objects", "no-view", "descriptors")


def parse_parts(names: str) -> tuple[str, ...]:
    """Split a list such as "true,descriptors" into parts. Raises ValueError for an unknown part."""
    parts = tuple(name.strip() for name in names.split(","))
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"--only {part}: allowed values are {', '.join(PARTS)}")
    return parts


class Sampling(NamedTuple):
    """Sampling settings; `each` is the number of samples per caption."""

    each: int = 16
    scale: float = sample.SCALE
    steps: int = 30
    seed: int = 0


def caption_of(facts: Facts) -> str:
    """Return the standard wording of `facts`, such as "a red bear on an orange box, side view"."""

    def noun(colour: str, word: str) -> str:
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {word}"

    caption = noun(facts.colour, facts.object)
    if facts.second:
        caption += " " + RELATIONS[facts.second][0].format(noun(facts.second_colour, facts.second))
    return f"{caption}, {facts.view}" if facts.view else caption


def plain_facts(name: str, colour: str, view: str = "", second: str = "", second_colour: str = "") -> Facts:
    """Return facts with no material, pattern, style or corruption."""
    return Facts(name, colour, "", "", second, second_colour, view, "", ())


def asked_by(facts: Facts) -> Truth:
    """Return the correct reading of an image of `facts`; the view is "" for objects that have no front."""
    view = facts.view if OBJECTS[facts.object].front else ""
    return Truth(facts.object, facts.colour, view, facts.second, facts.second_colour)


def draw(prior: Prior, captions: Sequence[str], sampling: Sampling, what: str) -> Tensor:
    """Draw one sample per caption: [n, 3, S, S] in [0, 1]. `what` labels the progress bar."""
    drawn = sample.sample(
        prior,
        captions,
        scale=sampling.scale,
        steps=sampling.steps,
        seed=sampling.seed,
        progress=Meter(what, len(captions)),
    )
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


# ---- read by the judge ------------------------------------------------------------------------------------------


def true_pictures(classifier: Classifier, count: int = 8000) -> dict[str, Any]:
    """Measure the judge's own accuracy on `count` images outside its training range."""
    shares, asked, answered = judge.accuracy(classifier, count)
    return {
        "shares": shares,
        "confused": {q: judge.confusions(asked, answered, q)[:12] for q in judge.QUESTIONS},
    }


def held_out_facts() -> list[Facts]:
    """Return all combinations of object, colour and view word that the training images leave out."""
    return [
        plain_facts(name, colour, view)
        for name in OBJECTS
        for colour in pictures.COLOURS
        for view in VIEW_WORDS
        if pictures.held_out(name, colour, view)
    ]


def held_out_captions(prior: Prior, classifier: Classifier, sampling: Sampling) -> dict[str, Any]:
    """Score samples of the held-out captions, and ground-truth images of the same captions, with the judge."""
    facts = held_out_facts()
    many = [f for f in facts for _ in range(sampling.each)]
    asked = [asked_by(f) for f in many]
    answered = read(classifier, draw(prior, [caption_of(f) for f in many], sampling, "held-out captions"))
    shots = [judge.shot_of(judge.HELD_OUT + i, f) for i, f in enumerate(many)]
    by_object = {}
    for name in OBJECTS:
        which = [i for i, a in enumerate(asked) if a.object == name]
        by_object[name] = score([asked[i] for i in which], [answered[i] for i in which])
    return {
        "captions": len(facts),
        "samples": score(asked, answered),
        "true": score(asked, read(classifier, judge.render(shots))),
        "by_object": by_object,
        "confused": {q: judge.confusions(asked, answered, q)[:12] for q in ("object", "colour", "view")},
    }


def pair_facts(count: int = PAIRS) -> list[Facts]:
    """Return `count` two-object combinations: the same ones on every call, evenly spread over the relations."""
    rng = np.random.default_rng(judge.JUDGE_SEED)
    relations = tuple(RELATIONS)
    found: dict[str, Facts] = {}
    while len(found) < count:
        second = relations[len(found) % len(relations)]
        name = pictures.one_of(rng, [n for n in OBJECTS if second in seconds_of(n)])
        colour = pictures.one_of(rng, tuple(pictures.COLOURS))
        other = pictures.one_of(rng, [c for c in pictures.COLOURS if c != colour])
        facts = plain_facts(name, colour, "", second, other)
        found[caption_of(facts)] = facts
    return list(found.values())


def two_objects(prior: Prior, classifier: Classifier, sampling: Sampling) -> dict[str, Any]:
    """Score whether samples of two-object captions show both objects, and in the right colours."""
    facts = pair_facts()
    many = [f for f in facts for _ in range(max(sampling.each // 4, 1))]
    asked = [asked_by(f) for f in many]
    answered = read(classifier, draw(prior, [caption_of(f) for f in many], sampling, "two objects"))
    true = read(classifier, judge.render([judge.shot_of(judge.HELD_OUT + i, f) for i, f in enumerate(many)]))
    by_second = {}
    for second in RELATIONS:
        which = [i for i, a in enumerate(asked) if a.second == second]
        by_second[second] = pair_score([asked[i] for i in which], [answered[i] for i in which])["both"]
    return {
        "captions": len(facts),
        "samples": pair_score(asked, answered),
        "true": pair_score(asked, true),
        "by_second": by_second,
    }


def pair_score(asked: Sequence[Truth], answered: Sequence[Truth]) -> dict[str, Share]:
    """Return `score` plus how often both objects were read, and how often both with their colours."""
    both = [a.object == b.object and a.second == b.second for a, b in zip(asked, answered, strict=True)]
    in_colour = [a == b._replace(view="") for a, b in zip(asked, answered, strict=True)]
    return {"both": share(both), "both in their colours": share(in_colour), **score(asked, answered)}


def without_view(prior: Prior, classifier: Classifier, sampling: Sampling, count: int = 1000) -> dict[str, Any]:
    """Return the fraction of front views when the caption names no view, for samples and for the data.

    Objects without a front are left out.
    """
    facts = [plain_facts(name, colour) for name in OBJECTS if OBJECTS[name].front for colour in pictures.COLOURS]
    drawn = draw(prior, [caption_of(f) for f in facts], sampling, "without a view word")
    shots: list[pictures.Shot] = []
    index = judge.HELD_OUT
    while len(shots) < count:
        shot = judge.uncorrupted(pictures.describe(judge.JUDGE_SEED, index))
        about = shot.facts
        if OBJECTS[about.object].front and not (about.view or about.second or about.style):
            shots.append(shot)
        index += 1
    return {
        "samples": share(t.view == FRONT for t in read(classifier, drawn)),
        "true": share(t.view == FRONT for t in read(classifier, judge.render(shots))),
    }


# ---- descriptors ------------------------------------------------------------------------------------------------


# Like those of `sdlab.metrics.images`, every statistic takes [n, 3, S, S] and returns [n].


def steepest_edges(x: Tensor) -> Tensor:
    """Return the 98th percentile of the difference between horizontally neighbouring pixels."""
    return torch.quantile((x[..., 1:] - x[..., :-1]).abs().amax(1).flatten(1), 0.98, dim=1)


def blocks(x: Tensor) -> Tensor:
    """Return the fraction of neighbour differences that falls on the lines of a 16 x 16 grid of blocks."""
    step = x.shape[-1] // 16
    across = (x[..., 1:] - x[..., :-1]).abs().sum((1, 2))
    down = (x[..., 1:, :] - x[..., :-1, :]).abs().sum((1, 3))
    on_lines = across[:, step - 1 :: step].sum(1) + down[:, step - 1 :: step].sum(1)
    return on_lines / (across.sum(1) + down.sum(1)).clamp(min=1e-6)


def dark_outlines(x: Tensor) -> Tensor:
    """Return how much darker than their surroundings the darkest 2 % of the pixels are."""
    deficit = (softened(softened(x)) - x).mean(1).flatten(1)
    return torch.quantile(deficit, 0.98, dim=1)


def contrast(x: Tensor) -> Tensor:
    """Return the standard deviation of the brightness."""
    return x.mean(1).flatten(1).std(1)


def warmth(x: Tensor) -> Tensor:
    """Return mean red minus mean blue."""
    return (x[:, 0] - x[:, 2]).mean((1, 2))


def background_noise(x: Tensor) -> Tensor:
    """Return the standard deviation of the fine detail in a corner: the (lower) median over the four corners."""
    n = x.shape[-1] // 8
    rough = x - softened(x)
    corners = [
        rough[..., rows, columns] for rows in (slice(n), slice(-n, None)) for columns in (slice(n), slice(-n, None))
    ]
    return torch.stack([c.flatten(1).std(1) for c in corners]).median(0).values


def asymmetry(x: Tensor) -> Tensor:
    """Return the mean absolute difference between the image and its mirror image."""
    return (x - x.flip(-1)).abs().mean((1, 2, 3))


Statistic = Callable[[Tensor], Tensor]
MEASURES: dict[str, tuple[str, Statistic, int]] = {  # word -> name of the statistic, the statistic, expected sign
    "oversaturated": ("saturation", saturation, 1),
    "smooth": ("fine detail", sharpness, -1),
    "pixelated": ("blocks", blocks, 1),
    "cartoon": ("dark outlines", dark_outlines, 1),
    "foggy": ("contrast", contrast, -1),
    "hazy": ("warmth", warmth, 1),
    "blurry": ("steepest edges", steepest_edges, -1),
    "bad structure": ("asymmetry", asymmetry, 1),
    "noisy": ("background noise", background_noise, 1),
    "malformed": ("asymmetry", asymmetry, 1),
}


class Move(NamedTuple):
    """Means of a statistic without and with a word; mean paired difference and its standard error."""

    without: float
    with_word: float
    change: float
    error: float

    def follows(self, direction: int) -> bool:
        """Return whether the statistic moved in this direction (+1 or -1) by more than twice its standard error."""
        return direction * self.change > 2 * self.error


def moved(before: Tensor, after: Tensor) -> Move:
    """Compare a statistic [n] of paired images before and after a change."""
    change = (after - before).double()
    error = change.std() / math.sqrt(len(change)) if len(change) > 1 else torch.tensor(math.inf)
    return Move(*(round(float(v), 5) for v in (before.mean(), after.mean(), change.mean(), error)))


def descriptor_facts(count: int) -> list[Facts]:
    """Return `count` of the held-out facts, evenly spread over their list (repeated if `count` is larger)."""
    known = held_out_facts()
    return [known[i * len(known) // count % len(known)] for i in range(count)]


def descriptors(prior: Prior, sampling: Sampling) -> dict[str, Any]:
    """Measure the effect of each descriptor on samples from the same starting noise, and on ground-truth images."""
    facts = descriptor_facts(4 * sampling.each)
    captions = [caption_of(f) for f in facts]
    shots = [judge.shot_of(judge.HELD_OUT + i, f) for i, f in enumerate(facts)]
    plain = draw(prior, captions, sampling, "without a descriptor")
    true = judge.render(shots).float() / 255
    rows = {}
    for word in DESCRIPTORS:
        name, statistic, direction = MEASURES[word]
        corrupted = draw(prior, [f"{caption}, {word}" for caption in captions], sampling, word)
        corrupted_shots = [s._replace(facts=s.facts._replace(corruptions=(word,))) for s in shots]
        pairs = {"samples": (plain, corrupted), "true": (true, judge.render(corrupted_shots).float() / 255)}
        moves = {k: moved(statistic(before), statistic(after)) for k, (before, after) in pairs.items()}
        rows[word] = {
            "statistic": name,
            "direction": direction,
            **{k: move._asdict() for k, move in moves.items()},
            "moved": moves["samples"].follows(direction),
        }
    return rows


# ---- everything together ----------------------------------------------------------------------------------------


def measure(prior: Prior, classifier: Classifier, sampling: Sampling, parts: Sequence[str] = PARTS) -> dict[str, Any]:
    """Return the results of the given `parts` (of PARTS) by part; `report` formats them as text."""
    do: dict[str, Callable[[], dict[str, Any]]] = {
        "true": lambda: true_pictures(classifier),
        "held-out": lambda: held_out_captions(prior, classifier, sampling),
        "two-objects": lambda: two_objects(prior, classifier, sampling),
        "no-view": lambda: without_view(prior, classifier, sampling),
        "descriptors": lambda: descriptors(prior, sampling),
    }
    return {part: do[part]() for part in PARTS if part in parts}


def cell(found: Share | None) -> str:
    """Format a share such as " 98.3 % 3460/3520" in 20 columns."""
    return f"{100 * found.value:6.1f} % {found!s:>11}" if found and found.of else f"{'-':>20}"


def confused_lines(confused: dict[str, list[tuple[str, str, int]]], questions: Sequence[str]) -> list[str]:
    return [
        f"{q} misread: " + "; ".join(f"{one} as {other} {n}" for one, other, n in confused[q])
        for q in questions
        if confused[q]
    ]


def report(found: dict[str, Any]) -> str:
    """Format the results of `measure` as text."""
    lines: list[str] = []
    if "true" in found:
        lines += ["The judge on ground-truth images that it was not trained on"]
        lines += [f"  {name:20}{cell(s)}" for name, s in found["true"]["shares"].items()]
        lines += [f"  {line}" for line in confused_lines(found["true"]["confused"], tuple(judge.QUESTIONS))]
    if "held-out" in found:
        part = found["held-out"]
        lines += ["", f"{part['captions']} held-out captions{'samples':>13}{'ground truth':>22}"]
        for name, s in part["samples"].items():
            if name != "second":
                lines += [f"  {name:20}{cell(s)}  {cell(part['true'].get(name))}"]
        worst = sorted(part["by_object"].items(), key=lambda item: worst_of(item[1]))
        lines += [f"  {'worst objects':14}{'object':>20}{'colour':>20}{'view':>20}"]
        for name, shares in worst[:12]:
            lines += [f"  {name:14}{cell(shares.get('object'))}{cell(shares.get('colour'))}{cell(shares.get('view'))}"]
        lines += [f"  {line}" for line in confused_lines(part["confused"], ("object", "colour", "view"))]
    if "two-objects" in found:
        part = found["two-objects"]
        lines += ["", f"{part['captions']} two-object captions {'samples':>12}{'ground truth':>22}"]
        lines += [f"  {name:22}{cell(s)}  {cell(part['true'].get(name))}" for name, s in part["samples"].items()]
        lines += [f"  both, with a {name:9}{cell(s)}" for name, s in part["by_second"].items()]
    if "no-view" in found:
        part = found["no-view"]
        lines += ["", "Front views when the caption names no view"]
        lines += [f"  {'samples':24}{cell(part['samples'])}", f"  {'ground truth':24}{cell(part['true'])}"]
    if "descriptors" in found:
        lines += [
            "",
            f"{'descriptor':15}{'statistic':29}{'without':>8}{'with':>8}{'change':>20}{'in the data':>20}  moved",
        ]
        for word, row in found["descriptors"].items():
            samples, true = (Move(**row[k]) for k in ("samples", "true"))
            name = f"{row['statistic']} {'up' if row['direction'] > 0 else 'down'}"
            changes = "".join(f"{m.change:+11.4f} ± {m.error:.4f}" for m in (samples, true))
            verdict = "yes" if row["moved"] else "no"
            lines += [f"{word:15}{name:29}{samples.without:8.4f}{samples.with_word:8.4f}{changes}  {verdict}"]
    return "\n".join(lines)


def worst_of(shares: dict[str, Share]) -> float:
    values = [shares[q].value for q in ("object", "colour", "view") if q in shares]
    return min(values) if values else math.inf
