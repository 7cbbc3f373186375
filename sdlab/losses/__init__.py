"""The family of score-distillation losses. One file each; the folder is the registry.

A loss is a frozen dataclass whose fields are its knobs and whose verb is `gradient`: it looks at a noised batch,
asks the prior what it needs, and returns the direction in which the picture should not go. Add one by adding
`sdlab/losses/<name>.py` with a final subclass of `Distillation` and a preset; nothing else has to be edited.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor

from sdlab.rng import StepRng
from sdlab.types import Aux, BoundPrior, Guidance, Noised, Prior


@dataclass(frozen=True)
class Distillation(ABC):
    """Abstract or final, never in between."""

    kind: ClassVar[str]  # its name in settings, presets and on the page
    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]  # for people, in the conventions of sdlab.types
    other_formulas: ClassVar[tuple[str, ...]] = ()  # of other forms and stages
    look_for: ClassVar[str]  # what to watch in the picture
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond")
    needs_reference: ClassVar[bool] = False  # whether it compares with the scene as it was when the loss was chosen
    fits_guidance: ClassVar[bool] = True  # whether `fit` looks at what `gradient` answered

    @abstractmethod
    def gradient(self, x: Noised, model: BoundPrior, aux: Any) -> Guidance:
        """The residual [B, C, H, W] in eps units, before w(t); d loss / d z0 = w(t) * residual. `aux` is what
        `init_aux` made."""

    def calls(self) -> tuple[int, ...]:
        """The forwards of one step, by how many roles each holds; their sum is the network evaluations per view."""
        return (len(self.roles),)

    def init_aux(self, prior: Prior, rng: StepRng) -> Aux | None:
        """The auxiliary model that this loss trains beside the scene, if any, on the prior's device; its
        initialisation is drawn from `rng`. ValueError when there is none for this prior."""
        return None

    def fit(self, x: Noised, model: BoundPrior, aux: Any, guidance: Guidance) -> None:
        """One step of the auxiliary's own optimiser, after `gradient` answered `guidance` for the same batch."""
        return

    def stage_at(self, progress: float) -> str:
        """What the loss does at `progress` in [0, 1] of the planned run, if that changes: a change of stage is treated
        as one of loss, for it changes the gradient's scale."""
        return ""

    @property
    def formulas(self) -> tuple[str, ...]:
        """All there are, `formula` first."""
        return (self.formula, *self.other_formulas)

    def formula_at(self, progress: float) -> str:
        """The one of `formulas` that holds at `progress` in [0, 1] of the planned run."""
        return self.formula

    def aux_name(self) -> str:
        """Losses that train their auxiliary in the same way give it one name, and go on with each other's."""
        return self.kind

    def aux_key(self) -> tuple:
        """The knobs that force the auxiliary to be built anew."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.metadata.get("apply") == "rebuild")

    def warm_up_steps(self) -> int:
        """How many steps a new auxiliary learns before the scene follows it: the knob `warm_up`, if there is one."""
        return int(getattr(self, "warm_up", 0))


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two predictions over all entries; 0-d, 0 where one of them is constant."""
    return cosine(a - a.mean(), b - b.mean())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two predictions as vectors of all entries; 0-d, 0 where one of them is zero."""
    a, b = a.float(), b.float()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-20)
