"""Priors: frozen teachers that answer "which noise was added to this picture, if it shows that text?".

A member of the family is a frozen dataclass of knobs, in one file, with one verb: `load(device)` gives a `Prior`
(see `sdlab.types`). The configuration is a value (hashable, picklable, comparable); what it loads is shared by all
sessions of the process. Importing a member stays light: model libraries are imported when `load` runs.

Beyond the protocol, every loaded prior says how it runs:
  engine_name         what evaluates the network, "exact" where there is none;
  engine_note         why it is not the engine one would expect, "" where it is;
  n_parameters        of all its networks;
  prediction_type     what the network predicts natively;
  prepare(sizes)      gets ready for batches of these sizes, so that the first step does not have to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from sdlab.types import Prior

Progress = Callable[[str], None]


def silent(text: str) -> None:
    """A `Progress` for callers that show none."""


@dataclass(frozen=True)
class PriorConfig(ABC):
    """The settings of one kind of prior."""

    kind: ClassVar[str]

    @abstractmethod
    def load(self, device: torch.device, progress: Progress = silent) -> Prior:
        """The prior on `device`, ready for any thread; `progress` is told what is being done, in words.

        Raises ValueError where a knob is at fault, RuntimeError where the files, the network or the device are.
        """
