"""The family of score-distillation losses. One file each; the folder is the registry.

A loss is a frozen dataclass whose fields are its knobs and whose verb is `gradient`: it looks at a noised batch,
asks the prior what it needs, and returns the direction in which the picture should not go. Add one by adding
`sdlab/losses/<name>.py` with a final subclass of `Distillation` and a preset; nothing else has to be edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from sdlab.types import Aux, BoundPrior, Guidance, Noised, Prior


@dataclass(frozen=True)
class Distillation(ABC):
    """Abstract or final, never in between."""

    kind: ClassVar[str]  # its name in settings, presets and on the page
    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]  # for people, in the conventions of sdlab.types
    look_for: ClassVar[str]  # what to watch in the picture
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond")

    @abstractmethod
    def gradient(self, x: Noised, model: BoundPrior, aux: Aux | None) -> Guidance:
        """The residual [B, C, H, W] in eps units, before w(t); d loss / d z0 = w(t) * residual."""

    def calls(self) -> tuple[int, ...]:
        """The forwards of one step, by how many roles each holds; their sum is the network evaluations per view."""
        return (len(self.roles),)

    def init_aux(self, prior: Prior) -> Aux | None:
        """The auxiliary model this loss trains beside the scene, if any."""
        return None

    def aux_key(self) -> tuple:
        """The knobs that force the auxiliary to be built anew."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.metadata.get("apply") == "rebuild")
