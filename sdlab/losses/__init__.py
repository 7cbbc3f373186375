"""The family of score-distillation losses. One file each; the folder is the registry.

A loss is a frozen dataclass whose fields are its knobs and whose verb is `gradient`: given a noised batch, it asks the
prior for predictions and returns the direction in which the image should not go. What the program needs to know of a
loss stands on its class: titles, formulas, the terms it combines, what it costs. To add one, add
`sdlab/losses/<name>.py` with a final subclass of `Distillation`; nothing else has to be edited (CONTRIBUTING.md).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from sdlab.rng import StepRng
from sdlab.types import Aux, BoundPrior, Guidance, Noised, Prior, Term

POS = Term("pos", "eps_c", "prompt", "the prior's estimate, given the prompt", "towards the prompt", colour="blue")
UNCOND = Term(
    "uncond",
    "eps_u",
    "no prompt",
    "the prior's estimate, given no prompt",
    "towards anything likely",
    colour="slate",
    broad=True,
)
NEG = Term(
    "neg",
    "eps_n",
    "negative prompt",
    "the prior's estimate, given the negative prompt",
    "towards the negative prompt",
    colour="wine",
)
TARGET = Term(
    "target",
    "eps_tgt",
    "target prompt",
    "the prior's estimate, given the target prompt",
    "towards the target prompt",
    colour="blue",
    formula="eps(target prompt)",
)
SOURCE = Term(
    "source",
    "eps_src",
    "source prompt",
    "the prior's estimate, given the source prompt",
    "away from the source prompt",
    subtracted=True,
    colour="wine",
    formula="eps(source prompt)",
)
# of every loss, beside its predictions
NOISE = Term(
    "noise",
    "eps",
    "noise",
    "the added noise",
    "minus the added noise",
    subtracted=True,
    colour="amber",
    formula="noise",
)
GUIDED = Term("guided", "eps^", "guided", "the guided prediction", "guided", colour="violet")
RESIDUAL = Term("residual", "\u0394", "residual", "the residual", "the step: all together", colour="strong")


A = TypeVar("A", bound=Aux | None)


@dataclass(frozen=True)
class Distillation(ABC, Generic[A]):
    """A loss, abstract or final, never in between. `A` is the auxiliary that it trains; None for a loss without one."""

    kind: ClassVar[str]  # its name in settings, presets and on the page
    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]  # as people write it, in the conventions of sdlab.types
    other_formulas: ClassVar[tuple[str, ...]] = ()  # of other forms and stages
    look_for: ClassVar[str]  # what to watch in the image
    place: ClassVar[int] = 0  # among the page's main buttons, from 1; 0 is under "more"

    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond")  # the texts it asks the prior about, see sdlab.prompts
    needs_reference: ClassVar[bool] = False  # compares with the scene as it was when the loss was chosen
    fits_guidance: ClassVar[bool] = True  # `fit` reads what `gradient` answered

    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, NEG, TARGET, SOURCE)  # every prediction it may answer
    # predictions by their part in the residual; of several, the first that a step has
    conditional: ClassVar[tuple[str, ...]] = ("pos",)  # told the prompt
    unconditional: ClassVar[tuple[str, ...]] = ("uncond",)  # what that is compared with to see what the prompt adds
    control: ClassVar[tuple[str, ...]] = ()  # subtracted in place of the noise
    guidance_knob: ClassVar[str] = "cfg"  # the scale given to `guidance.guide`; "" for a loss that does not call it
    aux_errors: ClassVar[tuple[str, ...]] = ()  # the stats that hold its auxiliary's error

    @abstractmethod
    def gradient(self, x: Noised, model: BoundPrior, aux: A) -> Guidance:
        """The residual [B, C, H, W] in eps units, before w(t); d loss / d z0 = w(t) * residual. `aux` is what
        `init_aux` made."""

    def calls(self) -> tuple[int, ...]:
        """The prior's forward passes in one step, each as its number of roles."""
        return (len(self.roles),)

    def evaluations(self) -> tuple[int, int]:
        """Network evaluations per view, the prior's and the auxiliary's, of `gradient` and of `fit`."""
        return sum(self.calls()), 0

    def init_aux(self, prior: Prior, rng: StepRng) -> A | None:
        """The auxiliary model that this loss trains beside the scene, if any, on the prior's device; its
        initialisation is drawn from `rng`. ValueError when there is none for this prior."""
        return None

    def untrained_aux(self, prior: Prior, rng: StepRng) -> A | None:
        """A new auxiliary for a single look: one that answers as that of `init_aux`, if possible without its cost."""
        return self.init_aux(prior, rng)

    def fit(self, x: Noised, model: BoundPrior, aux: A, guidance: Guidance) -> None:
        """One step of the auxiliary's own optimiser, after `gradient` answered `guidance` for the same batch."""
        return

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        """Where the residual [B, C, H, W] points, all the way in one step: z0 moved as far as the x0-hat of the
        residual's two sides lie apart. For SDS and SDI this is x0-hat of the guided prediction."""
        return x.z0 - x.sigma / x.alpha * residual

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

    @classmethod
    def term(cls, name: str) -> Term:
        """The term of a prediction; one made of its name for a prediction that the loss does not describe."""
        return next(
            (t for t in cls.terms if t.name == name), Term(name, name, name, f"with the prediction {name}", name)
        )

    def guidance_scale(self) -> float | None:
        """s of plain classifier-free guidance, None for a loss without it."""
        return getattr(self, self.guidance_knob, None) if self.guidance_knob else None

    def aux_name(self) -> str:
        """Losses that train their auxiliary in the same way give it one name, and go on with each other's."""
        return self.kind

    def aux_key(self) -> tuple:
        """The knobs that force the auxiliary to be built anew."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.metadata.get("apply") == "rebuild")

    def warm_up_steps(self) -> int:
        """How many steps a new auxiliary learns before the scene follows it: the knob `warm_up`, if there is one."""
        return int(getattr(self, "warm_up", 0))


def first_of(names: tuple[str, ...], preds: Mapping[str, Tensor]) -> str:
    """The first of `names` that a step has a prediction of; "" if there is none."""
    return next((name for name in names if name in preds), "")


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of two predictions over all entries; 0-d, 0 where one of them is constant."""
    return cosine(a - a.mean(), b - b.mean())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of two predictions as vectors of all entries; 0-d, 0 where one of them is zero."""
    a, b = a.float(), b.float()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-20)
