"""Images of the toybox as its network saw them: the empty text stands for all of them, flaws and paintings included."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor

from sdlab.priors.sources import Drawn, unheard
from sdlab.priors.sources.toybox import FIRST, PER_SEED, ToyboxSource, read_key, rendered, shot_of
from sdlab.toybox import judge, pictures
from sdlab.toybox.pictures import Shot


class TrainingImages(ToyboxSource):
    """The distribution of the network's training images, for each text."""

    identity = f"{ToyboxSource.identity}, as in training"

    def shots(self, key: str, begin: int, end: int, seed: int) -> list[Shot]:
        """Describe images `begin` to `end` - 1 of a key; other seeds have other images."""
        first, said = FIRST + PER_SEED * seed, read_key(key)
        indices = range(first + begin, first + end)
        return [shot_of(said, i) if key else pictures.describe(judge.JUDGE_SEED, i) for i in indices]

    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        """Render `count` images; see `Source.draw`."""
        parts = []
        for begin in range(0, count, pictures.CHUNK):
            progress(begin, count)
            parts.append(rendered(self.shots(key, begin, min(begin + pictures.CHUNK, count), seed), size))
        progress(count, count)
        return torch.cat(parts)
