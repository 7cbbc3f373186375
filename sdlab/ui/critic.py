"""The toybox's judge beside a live run: does the picture show what the prompt asks for?

It knows the objects and colours of the toybox, so that it says nothing of other priors and of prompts without one.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch

from sdlab.live.session import Session
from sdlab.toybox import judge
from sdlab.toybox.asked import asked_for

MOST_PICTURES = 4
_loading = threading.Lock()


@functools.cache
def _judge() -> judge.Classifier:
    return judge.load()


def is_competent(session: Session) -> bool:
    """Whether the run's prior is the toybox."""
    try:
        return session.prior.name == "toybox"
    except RuntimeError:
        return False  # still loading


def chance(pictures: np.ndarray, prompt: str) -> float | None:
    """The mean chance that uint8 [B, H, W, 3] show the object that `prompt` names, and in the colour that it names;
    None where it names no object that the judge knows. Takes some 10 ms."""
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
