"""The toybox's judge for a live run: do the images show what the prompt asks for?

It knows only the toybox's objects and colours, so it does not judge other priors or prompts without such an object.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch

from sdlab.priors import PriorConfig
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.gallery import GalleryPrior
from sdlab.toybox import judge
from sdlab.toybox.asked import asked_for

MOST_PICTURES = 4
_loading = threading.Lock()


@functools.cache
def _judge() -> judge.Classifier:
    return judge.load()


def knows(prior: PriorConfig) -> bool:
    """Return whether a prior is of the toybox: its network, or its images as a gallery."""
    if isinstance(prior, GalleryPrior):
        return prior.source == "toybox"
    return isinstance(prior, DiffusersPrior) and prior.path == "toybox"


def chance(pictures: np.ndarray, *prompts: str) -> float | None:
    """Return the mean probability that images, uint8 [B, H, W, 3], show the object that their prompt names, in the
    colour that it names; None when the judge knows no such object. The images take the prompts in turn. Takes about
    10 ms."""
    try:
        asked = [asked_for(prompt) for prompt in prompts]
    except ValueError:
        return None
    with _loading:
        classifier = _judge()
    rgb = torch.from_numpy(pictures[:MOST_PICTURES].copy()).permute(0, 3, 1, 2)
    said = judge.chances(classifier, rgb)
    right = []
    for row in range(len(rgb)):
        name, colour = asked[row % len(asked)]
        right.append(float(said["object"][row, classifier.questions["object"].index(name)]))
        if colour in classifier.questions["colour"]:
            right[-1] *= float(said["colour"][row, classifier.questions["colour"].index(colour)])
    return sum(right) / len(right)
