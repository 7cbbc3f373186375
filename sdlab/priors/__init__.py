"""Priors: frozen models that predict which noise was added to an image, given that it shows a text.

Each kind of prior is a frozen dataclass of knobs in a file of its own; `load(device)` returns its `Prior` (see
`sdlab.types`). The dataclass is a value: hashable, picklable, comparable. The loaded prior is shared by all sessions of
the process. Importing a kind is cheap, because model libraries are imported only when `load` runs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from sdlab.types import Prior

Progress = Callable[[str], None]  # receives status texts


def silent(text: str) -> None:
    """Ignore progress, for callers that do not show it."""


@dataclass(frozen=True)
class PriorConfig(ABC):
    """The settings of one kind of prior."""

    kind: ClassVar[str]

    @abstractmethod
    def load(self, device: torch.device, progress: Progress = silent) -> Prior:
        """Load the prior on `device`, ready for any thread.

        Raises ValueError for an invalid knob, RuntimeError for problems with files, network or device.
        """
