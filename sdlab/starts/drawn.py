"""Pictures of the toybox as a starting point, such as paintings: drawn for a text, without a file."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.rng import StepRng

BEYOND = 2**20 + 1  # galleries have smaller seeds, so none of them holds these pictures


def seed_of(rng: StepRng) -> int:
    """Return the seed of the pictures that a run with this generator starts from."""
    return BEYOND + int(torch.randint(2**20, (1,), generator=rng("drawn")))


def drawn_pictures(text: str, n: int, size: int, seed: int, knob: str) -> Float[Tensor, "n 3 size size"]:
    """Return `n` pictures in [0, 1] that fit `text`, on white where they do not cover their ground.

    ValueError, starting with `knob`, if the text says nothing that the toybox can draw.
    """
    from sdlab.priors.sources.toybox import ToyboxSource  # imports numba, which takes half a second

    source = ToyboxSource()
    key = source.key(text)
    if not key:
        raise ValueError(f"{knob} = {text!r}: names nothing that the toybox can draw, such as a painting of a red bear")
    rgba = source.draw(key, n, size, seed).float() / 255
    return rgba[:, :3] + (1 - rgba[:, 3:])
