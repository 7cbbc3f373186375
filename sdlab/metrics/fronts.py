"""The Janus problem in numbers: which views around an object show its front.

Both functions take N views in their order around the object, 360 / N degrees apart. An object with one front shows it
in the views within the band of "front view"; a Janus object shows it elsewhere, too.
"""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor


def fronts(front: Bool[Tensor, "N"]) -> int:
    """Return how many of N views show a front: 3 of 12 for one front of +-45 degrees, the Janus count."""
    return int(front.sum())


def faces(front: Bool[Tensor, "N"]) -> int:
    """Return on how many sides there is a front: the runs of neighbouring views that show one, around the circle.

    1 for an object with one front, also if every view shows it, and 0 if none does.
    """
    if bool(front.all()):
        return int(len(front) > 0)
    return int((front & ~front.roll(1)).sum())
