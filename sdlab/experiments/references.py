"""What a prior itself shows for a prompt: the images that results are compared with."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.priors.gallery import GalleryScores
from sdlab.toybox.sample import SCALE, sample
from sdlab.types import Prior


def prior_images(
    prior: Prior, text: str, count: int, scale: float = SCALE, tick: Callable[[int], object] = lambda done: None
) -> Float[Tensor, "n 3 S S"]:
    """Return `count` images of a text in [0, 1]: a gallery's own, on white, or DDIM samples with guidance `scale`.

    A gallery that has fewer returns all. `tick` receives the number of images just done.
    """
    if isinstance(prior, GalleryScores):
        rgba = prior.source.draw(prior.source.key(text), count, prior.image_size, prior.config.seed)
        tick(count)
        return on_white(rgba)
    before = 0

    def progress(done: int) -> None:
        nonlocal before
        tick(done - before)
        before = done

    return torch.from_numpy(sample(prior, [text] * count, scale=scale, progress=progress)).permute(0, 3, 1, 2)


def on_white(rgba: Tensor) -> Float[Tensor, "n 3 S S"]:
    """Return images in [0, 1] of premultiplied rgb and coverage, uint8 [n, 4, S, S], in front of white."""
    return (rgba[:, :3].float() + 255 - rgba[:, 3:].float()) / 255
