"""How far the results of several seeds are apart. 0 for equal results."""

from __future__ import annotations

import itertools
import statistics

import torch
from jaxtyping import Float
from torch import Tensor


def of_features(x: Float[Tensor, "R N d"]) -> float:
    """Return the mean over pairs of R results of 1 - cos, in [0, 2], between the features of the same of N views.

    0 where two features are equal, also both 0. Raises ValueError for fewer than two results.
    """
    x = torch.nn.functional.normalize(_two(x).double(), dim=-1)
    # |a - b|^2 / 2 = 1 - a . b of unit vectors, and exactly 0 for equal ones
    return statistics.fmean(float((a - b).square().sum(-1).mean()) / 2 for a, b in itertools.combinations(x, 2))


def of_pixels(x: Float[Tensor, "R N 3 H W"]) -> float:
    """Return the mean over pairs of R results of the root mean square difference, in [0, 1], between the same of N
    views. Raises ValueError for fewer than two results."""
    pairs = itertools.combinations(_two(x), 2)
    return statistics.fmean(float((a - b).square().mean((1, 2, 3)).sqrt().mean()) for a, b in pairs)


def _two(x: Tensor) -> Tensor:
    if len(x) < 2:
        raise ValueError(f"diversity of {len(x)} result{'s' * (len(x) != 1)}: at least 2 are needed")
    return x
