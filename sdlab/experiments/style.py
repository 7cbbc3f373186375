"""Is it a painting? A linear classifier on textures, because the judge has no such question.

Textures are mean and standard deviation over the image of what the judge's first two layers respond to; its last ones
tell objects apart, painted or not. The classifier is trained on pictures of the judge's series, half of them painted.
Paintings of the toybox have grounds of their own, which would give them away; here either kind has either ground, so
that only strokes count.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sdlab.toybox import judge, pictures
from sdlab.toybox.figures import plain_facts
from sdlab.toybox.objects import OBJECTS
from sdlab.toybox.pictures import Shot
from sdlab.toybox.words import PAINTING

TRAINED, TESTED = 600, 300  # pictures of each kind
FIRST = judge.HELD_OUT + 2_000_000  # in the judge's series, which has not seen them
DECAY = 1e-3
STAGES = (slice(0, 3), slice(3, 7))  # of the judge's layers: 32 channels at half the resolution, 64 at a quarter


class Style(NamedTuple):
    """The classifier: weights [d] of standardised textures, and its accuracy on pictures that it was not trained on."""

    mean: Float[Tensor, " d"]
    std: Float[Tensor, " d"]
    weights: Float[Tensor, " d"]
    bias: Float[Tensor, ""]
    accuracy: float

    def chances(self, textures: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the chance that each picture is a painting, given its textures."""
        return torch.sigmoid((textures - self.mean) / self.std @ self.weights + self.bias)


@torch.no_grad()
def textures(classifier: judge.Classifier, rgb: Tensor) -> Float[Tensor, "n d"]:
    """Return the textures of images [n, 3, S, S] of any size, in [0, 1] (uint8: 0 to 255)."""
    parts = []
    for x in judge.shown_to(classifier, rgb):
        found, x = [], 2 * x - 1
        for stage in STAGES:
            x = classifier.layers[stage](x)
            found += [x.mean((2, 3)), x.std((2, 3))]
        parts.append(torch.cat(found, 1))
    return torch.cat(parts)


@functools.cache
def trained(size: int, count: int = TRAINED, tested: int = TESTED) -> Style:
    """Return the classifier for pictures of `size` pixels; deterministic. Renders 2 (count + tested) pictures."""
    classifier = judge.load()

    def drawn(style: str, first: int) -> Tensor:
        return textures(classifier, judge.render(_shots(style, count + tested, first), size))

    painted, plain = drawn(PAINTING, 0), drawn("", count + tested)
    x = torch.cat([painted[:count], plain[:count]])
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    weights, bias = _fitted((x - mean) / std, torch.arange(2 * count) < count)
    found = Style(mean, std, weights, bias, 0.0)
    right = torch.cat([found.chances(painted[count:]) > 0.5, found.chances(plain[count:]) < 0.5])
    return found._replace(accuracy=float(right.float().mean()))


def _fitted(x: Tensor, painted: Tensor) -> tuple[Tensor, Tensor]:
    """Return weights [d] and bias of a logistic regression."""
    parameters = torch.zeros(x.shape[1] + 1, requires_grad=True)
    optimiser = torch.optim.LBFGS([parameters], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = x @ parameters[:-1] + parameters[-1]
        value = F.binary_cross_entropy_with_logits(logits, painted.float())
        value = value + DECAY * parameters[:-1].square().sum()
        value.backward()
        return value

    optimiser.step(loss)  # pyright: ignore[reportArgumentType]  # a tensor is as good as a float
    found = parameters.detach()
    return found[:-1], found[-1]


def _shots(style: str, n: int, first: int) -> list[Shot]:
    """Return shots in one style, on the grounds of both."""
    rng = np.random.default_rng((judge.JUDGE_SEED, first))
    shots = []
    for i in range(n):
        name, colour = pictures.one_of(rng, tuple(OBJECTS)), pictures.one_of(rng, tuple(pictures.COLOURS))
        shot = judge.shot_of(FIRST + first + i, plain_facts(name, colour)._replace(style=style))
        grounds, slope = pictures.draw_ground(rng, PAINTING if i % 2 else "")
        shots.append(shot._replace(grounds=grounds, slope=slope))
    return shots
