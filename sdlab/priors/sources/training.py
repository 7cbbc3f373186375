"""Images of the toybox as its network saw them: the empty text stands for all of them, flaws and paintings included."""

from __future__ import annotations

from jaxtyping import UInt8
from torch import Tensor

from sdlab.priors.sources import Drawn, unheard
from sdlab.priors.sources.toybox import FIRST, PER_SEED, ToyboxSource, read_key, shot_of
from sdlab.toybox import judge, pictures
from sdlab.toybox.pictures import Shot


class TrainingImages(ToyboxSource):
    """The distribution of the network's training images, for each text."""

    def __init__(self) -> None:
        super().__init__()
        self.identity += ", as in training"

    def shot(self, key: str, seed: int, index: int) -> Shot:
        """Describe image `index` of a key; other seeds have other images."""
        index += FIRST + PER_SEED * seed
        return shot_of(read_key(key), index) if key else pictures.describe(judge.JUDGE_SEED, index)

    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        """Render `count` images; see `Source.draw`."""
        return self._drawn(lambda i: self.shot(key, seed, i), count, size, progress)
