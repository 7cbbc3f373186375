"""Flawed versions of any image: the toybox's descriptors, such as "blurry", applied to images that it did not render.

The descriptors spoil an image as a whole, background included, so the image is composited first, over a random
background of the toybox's data.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sdlab.toybox.filters import FILTERS
from sdlab.toybox.pictures import draw_ground, draw_some, filtered


def flawed(
    rgb: np.ndarray, coverage: np.ndarray, descriptors: Collection[str], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with one to three of `descriptors`, as frequent as in the toybox's data, and its coverage of 1.

    `rgb` [S, S, 3] is premultiplied, `coverage` [S, S], both float32 in [0, 1], as are the returned values. Raises
    ValueError if a descriptor is none of FILTERS ("bad structure" and "malformed" deform an object, not an image), or
    if there is none.
    """
    if not descriptors or not FILTERS.keys() >= set(descriptors):
        raise ValueError(f"descriptors {', '.join(descriptors) or 'missing'}: give some of {', '.join(FILTERS)}")
    x = rgb + (1 - coverage)[..., None] * ground(len(rgb), rng)
    # in the data's order, so that the order in a prompt does not matter
    x = filtered(x, draw_some(rng, tuple(word for word in FILTERS if word in descriptors)), rng)
    return x, np.ones_like(coverage)


def ground(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a background, float32 [size, size, 3] in [0, 1], as behind the toybox's objects."""
    (start, finish), slope = draw_ground(rng, "")
    centres = (np.arange(size) + 0.5) * 2 / size - 1
    along = np.clip(0.5 + 0.5 * (slope[0] * centres[None, :] + slope[1] * centres[:, None]), 0, 1)
    return (start + (finish - start) * along[..., None]).astype(np.float32)
