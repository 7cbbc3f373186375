"""Classifier-free guidance and its kin: pure functions on noise predictions."""

from __future__ import annotations

from torch import Tensor


def cfg(uncond: Tensor, pos: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in form A (Ho and Salimans 2021): eps_u + s (eps_c - eps_u), any shape.

    DreamFusion's form B, eps_c + s (eps_c - eps_u), is form A at s + 1.
    """
    return uncond + scale * (pos - uncond)
