"""Randomness as a function of (seed, step, stream).

Every draw of a step has its own named stream, so a draw added to one part never shifts another, two losses from
one seed see the same cameras, timesteps and noise, and a resumed run needs no saved generator state.
"""

from __future__ import annotations

import hashlib

import torch


class StepRng:
    """`StepRng(seed, step)("camera")` -> a fresh CPU `torch.Generator`, the same for the same three values."""

    def __init__(self, seed: int, step: int) -> None:
        self.seed = seed
        self.step = step

    def __call__(self, stream: str) -> torch.Generator:
        digest = hashlib.blake2b(f"{self.seed}/{self.step}/{stream}".encode(), digest_size=7).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big"))

    def randn(self, stream: str, like: torch.Tensor) -> torch.Tensor:
        """Standard normal noise with the shape, type and device of `like`: drawn on the CPU in float32, so that every
        device sees the same."""
        return torch.randn(like.shape, generator=self(stream), dtype=torch.float32).to(like)
