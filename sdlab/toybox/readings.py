"""What the judge reads in images of an object, in numbers: against its prompt, and as the metrics of views."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.metrics import entropies, fronts
from sdlab.toybox import judge
from sdlab.toybox.grammar import read
from sdlab.toybox.judge import Classifier
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.words import FRONT

JANUS_VIEWS = 12  # 30 degrees apart: no view lies on the border between the azimuth ranges of two view words
QUESTIONS = ("object", "colour", "second", "second_colour")  # about what a prompt says; views are left to cameras


def facts_of(prompt: str) -> dict[str, str]:
    """Return what a prompt says that the judge can read, by question: {"object": "bear", "colour": "red"}."""
    said = read(prompt)
    return {name: getattr(said, name) for name in QUESTIONS if getattr(said, name)}


def chance_of(rgb: Float[Tensor, "n 3 S S"], facts: dict[str, str], classifier: Classifier) -> Float[Tensor, "n"]:
    """Return the probability that images in [0, 1] show these facts, as if the judge's answers were independent."""
    p = judge.chances(classifier, rgb)
    each = [p[name][:, classifier.questions[name].index(value)] for name, value in facts.items()]
    return torch.stack(each).prod(0)


def merged(rgb: Float[Tensor, "n 3 S S"], classifier: Classifier) -> dict[str, str]:
    """Return the answer to each question that is the most probable on average over images in [0, 1] of one object."""
    p = judge.chances(classifier, rgb)
    return {name: classifier.questions[name][int(each.mean(0).argmax())] for name, each in p.items()}


def readings(rgb: Float[Tensor, "n 3 S S"], prompt: str, classifier: Classifier, sides: bool) -> dict[str, float]:
    """Return the metrics of images in [0, 1]: `object` and `colour`, the shares read as the prompt's; `iq`, `iv`,
    `iq_view` and `iv_view`, the entropies of objects and of view words in nats; with `sides` also `fronts`, of 12, and
    `faces`.

    With `sides`, the images are n views around the object, a multiple of 12. Both are left out if the prompt's object
    has no front; a share, if the prompt does not say it.
    """
    p, facts = judge.chances(classifier, rgb), facts_of(prompt)
    found = {
        "iq": entropies.quality(p["object"]),
        "iv": entropies.variety(p["object"]),
        "iq_view": entropies.quality(p["view"]),
        "iv_view": entropies.variety(p["view"]),
    }
    for name in ("object", "colour"):
        if name in facts:
            right = p[name].argmax(1) == classifier.questions[name].index(facts[name])
            found[name] = float(right.double().mean())
    if sides and ("object" not in facts or OBJECTS[facts["object"]].front):
        twelve = judge.most_likely(classifier, p)[:: len(rgb) // JANUS_VIEWS]
        front = torch.tensor([truth.view == FRONT for truth in twelve])
        found |= {"fronts": fronts.fronts(front), "faces": fronts.faces(front)}
    return found
