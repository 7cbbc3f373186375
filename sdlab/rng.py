"""Random numbers as a function of (seed, step, stream name).

Every draw of a step has its own named stream. A new draw in one place therefore never shifts another, two losses with
the same seed see the same cameras, timesteps and noise, and resuming a run needs no saved generator state.
"""

from __future__ import annotations

import hashlib

import torch

from sdlab.transfer import upload


class StepRng:
    """`StepRng(seed, step)("camera")` returns a new CPU `torch.Generator` that depends on these three values only."""

    def __init__(self, seed: int, step: int, prefix: str = "") -> None:
        self.seed = seed
        self.step = step
        self._prefix = prefix

    def __call__(self, stream: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{self._prefix}{stream}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def branch(self, prefix: str) -> StepRng:
        """Return other streams of the same step: their names begin with `prefix`."""
        return StepRng(self.seed, self.step, self._prefix + prefix)

    def randn(self, stream: str, like: torch.Tensor) -> torch.Tensor:
        """Draw standard normal noise with the shape, dtype and device of `like`; drawn on the CPU in float32, so that
        it is the same on every device."""
        return upload(torch.randn(like.shape, generator=self(stream), dtype=torch.float32), like.device).to(like.dtype)
