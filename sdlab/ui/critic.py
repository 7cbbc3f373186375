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


def chance(pictures: np.ndarray, prompt: str) -> float | None:
    """Return the mean probability that images, uint8 [B, H, W, 3], show the object that `prompt` names, in the colour
    that it names; None when the judge knows no such object. Takes about 10 ms."""
    try:
        name, colour = asked_for(prompt)
    except ValueError:
        return None
    with _loading:
        classifier = _judge()
    rgb = torch.from_numpy(pictures[:MOST_PICTURES].copy()).permute(0, 3, 1, 2)
    said = judge.chances(classifier, rgb)
    right = said["object"][:, classifier.questions["object"].index(name)]
    if colour in classifier.questions["colour"]:
        right = right * said["colour"][:, classifier.questions["colour"].index(colour)]
    return float(right.mean())
