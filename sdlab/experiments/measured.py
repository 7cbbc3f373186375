"""What experiments measure on a set of images, in one place.

IQ, IV  quality and variety (Wang et al. 2024, ESD, eq. 10): the mean entropy of the classifier's answer to a view, and
        the entropy of its mean answer over all views, in nats. The paper asks an ImageNet classifier. Here the judge
        answers three questions, object, colour and view, as if they were independent: entropies add up.
FID, KID  distances between the judge's features (`sdlab.experiments.frechet`)
likeness  mean cosine of the features of equal views of two runs (Do and Hua 2025, JSD, table 2, which uses DINO)
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from sdlab.experiments.frechet import fid, kid
from sdlab.experiments.objects import Runner
from sdlab.priors.gallery import GalleryScores
from sdlab.toybox import judge
from sdlab.toybox.sample import sample

__all__ = ["Reader", "entropies", "entropy", "fid", "kid", "likeness", "prior_images"]

QUESTIONS = ("object", "colour", "view")


class Reader:
    """The judge's answers to and features of uint8 images [n, S, S, 3]."""

    def __init__(self) -> None:
        self._judge = judge.load()

    def answers(self, rgb: UInt8[np.ndarray, "n S S 3"]) -> dict[str, Tensor]:
        """Return the probabilities [n, answers] of each question in QUESTIONS."""
        found = judge.chances(self._judge, _channels_first(rgb))
        return {name: found[name] for name in QUESTIONS}

    def features(self, rgb: UInt8[np.ndarray, "n S S 3"]) -> Float[Tensor, "n d"]:
        return judge.features(self._judge, _channels_first(rgb))


def _channels_first(rgb: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(0, 3, 1, 2)))


def entropy(p: Tensor) -> Tensor:
    """Return the entropy in nats over the last dimension."""
    return -torch.special.xlogy(p, p).sum(-1)


def entropies(answers: Mapping[str, Tensor]) -> tuple[float, float]:
    """Return IQ and IV of probabilities [n, answers] per question; IQ <= IV."""
    iq = sum(float(entropy(p).mean()) for p in answers.values())
    iv = sum(float(entropy(p.mean(0))) for p in answers.values())
    return iq, iv


def likeness(runs: Sequence[Float[Tensor, "n d"]]) -> float:
    """Return the mean cosine of the features of equal views over all pairs of runs; 1 for equal runs.

    Raises ValueError for fewer than two runs.
    """
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} runs form no pairs")
    pairs = itertools.combinations(runs, 2)
    return float(torch.stack([F.cosine_similarity(a, b, dim=1).mean() for a, b in pairs]).mean())


def prior_images(runner: Runner, text: str, count: int, scale: float) -> UInt8[np.ndarray, "n S S 3"]:
    """Return `count` images of `text` by the prior itself, on white: a gallery's own, or samples of a network at the
    guidance `scale`."""
    prior = runner.prior
    if isinstance(prior, GalleryScores):
        rgba = prior.source.draw(prior.source.key(text), count, prior.image_size, prior.config.seed)
        return (rgba[:, :3] + 255 - rgba[:, 3:]).permute(0, 2, 3, 1).numpy()
    return (255 * sample(prior, [text] * count, scale=scale) + 0.5).astype(np.uint8)
