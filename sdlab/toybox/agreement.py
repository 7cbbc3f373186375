"""How well images agree with a prompt, as the judge reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from sdlab.toybox import judge
from sdlab.toybox.grammar import read
from sdlab.toybox.objects import OBJECTS
from sdlab.transfer import upload

LEAST_CHANCE = 1e-6  # the judge's float32 probabilities mean nothing below


def agreement(texts: Sequence[str], rgb: Tensor) -> Tensor:
    """Return the log of the judge's probability [n] that image i of rgb [n, 3, S, S], in [0, 1], shows what text i
    says: its object, and its colour and its view (of an object with a front) where it names them.

    Raises ValueError if a text names no object of the toybox.
    """
    chances = judge.chances(_judge(), rgb.float().cpu())
    total = torch.zeros(len(rgb))
    for i, text in enumerate(texts):
        for question, answer in _asked(text).items():
            known = judge.QUESTIONS[question]
            total[i] += chances[question][i, known.index(answer)].clamp_min(LEAST_CHANCE).log()
    return upload(total, rgb.device)


@functools.lru_cache(maxsize=64)
def _asked(text: str) -> dict[str, str]:
    """Return the answers, by question of the judge, that a text asks for."""
    facts = read(text)
    if not facts.object:
        raise ValueError(f"the judge knows no object in {text!r}; it knows {', '.join(OBJECTS)}")
    view = facts.view if OBJECTS[facts.object].front else ""
    return {q: a for q, a in (("object", facts.object), ("colour", facts.colour), ("view", view)) if a}


@functools.cache
def _judge() -> judge.Classifier:
    return judge.load()
