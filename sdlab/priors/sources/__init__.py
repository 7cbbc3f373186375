"""Where the images of a gallery come from, and which images a text stands for.

A source turns a text into a `key`, which names a set of images: texts that mean the same have the same key and share
one gallery. `draw` makes the images of a key. Both are deterministic, so a gallery can be dropped and drawn again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdlab.decoding import rgba_bytes
from sdlab.types import Cameras

Drawn = Callable[[int, int], None]  # receives the number of images drawn so far, and the number to draw


def unheard(done: int, total: int) -> None:
    """Ignore progress, for callers that do not show it."""


class Source(ABC):
    """A supply of images. Methods may be called from any thread."""

    name: str  # for messages, such as "toybox" or "folder pets"
    identity: str  # names content and version, so that cached images are reused only for the same source

    @property
    def note(self) -> str:
        """What the user should know about the source itself, such as files that were skipped, or ""."""
        return ""

    @abstractmethod
    def key(self, text: str) -> str:
        """Return the key of the images that `text` stands for; "" is the key of the empty text, which is all images."""

    @abstractmethod
    def remark(self, text: str) -> str:
        """Return what the user should know about how `text` was read, such as words without meaning here, or ""."""

    def available(self, key: str) -> int | None:
        """Return how many different images `key` has, None if there is no limit."""
        return None

    def truth(self, cams: Cameras) -> Float[Tensor, "B 3 H W"] | None:
        """Return what a perfect result looks like from `cams`, on white, if the source knows; else None."""
        return None

    @abstractmethod
    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        """Return images of `key` as premultiplied rgb and coverage in 0 .. 255.

        N is `count`, or `available(key)` if that is less. Another `seed` gives other images, where there are more.
        """


def as_bytes(rgb: np.ndarray, coverage: np.ndarray) -> UInt8[Tensor, "N 4 S S"]:
    """Convert premultiplied rgb [N, S, S, 3] and coverage [N, S, S], both in [0, 1], to bytes.

    Rounding cannot make a colour brighter than its coverage allows.
    """
    return torch.from_numpy(rgba_bytes(rgb, coverage))
