"""What experiments measure on the views of objects: the judge's answers and features in, `sdlab.metrics` out.

IQ, IV    quality and variety (`sdlab.metrics.entropies`). The ESD paper asks an ImageNet classifier. Here the judge
          answers three questions, object, colour and view, as if they were independent: entropies add up
likeness  1 less the diversity of `sdlab.metrics.diversity`: the mean cosine of the features of equal views of two runs
          (Do and Hua 2025, JSD, table 2, which uses DINO)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdlab.metrics.diversity import of_features
from sdlab.metrics.entropies import quality, variety
from sdlab.toybox import judge

QUESTIONS = ("object", "colour", "view")


class Reader:
    """The judge's answers to and features of uint8 images [n, S, S, 3]."""

    def __init__(self) -> None:
        self._judge = judge.load()

    def answers(self, rgb: UInt8[np.ndarray, "n S S 3"]) -> dict[str, Tensor]:
        """Return the probabilities [n, answers] of each question in QUESTIONS."""
        found = judge.chances(self._judge, channels_first(rgb))
        return {name: found[name] for name in QUESTIONS}

    def features(self, rgb: UInt8[np.ndarray, "n S S 3"]) -> Float[Tensor, "n d"]:
        return judge.features(self._judge, channels_first(rgb))


def channels_first(rgb: UInt8[np.ndarray, "n S S 3"]) -> UInt8[Tensor, "n 3 S S"]:
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)))


def entropies(answers: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return IQ and IV of probabilities [n, answers] per question; IQ <= IV."""
    return sum(quality(p) for p in answers.values()), sum(variety(p) for p in answers.values())


def likeness(runs: Sequence[Float[Tensor, "n d"]]) -> float:
    """Return the mean cosine of the features of equal views over all pairs of runs; 1 for equal runs.

    Raises ValueError for fewer than two runs.
    """
    return 1 - of_features(torch.stack(list(runs)))
