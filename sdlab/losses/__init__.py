"""The family of score-distillation losses. One file each; the folder is the registry.

A loss is a frozen dataclass whose fields are its knobs. Its main method, `gradient`, takes a noised batch, requests
predictions from the prior and returns the gradient for the image, which moves against it. The class states all that the
program needs to know about the loss: titles, formulas, the terms it combines, what it costs. To add a loss, add
`sdlab/losses/<name>.py` with a final subclass of `Distillation`; nothing else has to be edited (CONTRIBUTING.md).
"""

from __future__ import annotations

import importlib
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
REF = Term(
    "ref",
    "eps_ref",
    "reference",
    "the prior's estimate of the reference, given the reference's prompt",
    "away from the reference",
    subtracted=True,
    colour="wine",
    formula="eps(reference; its prompt)",
    noisy="the reference with this step's noise",
)
# of the losses that follow the prior's flow from t = 0, where an exact score grows as 1 / sigma
ON_EXACT_SCORES = ". On a gallery it needs prior.spread = 0.1, as in its own preset: at 0 no object appears"
INVERSION = Term(
    "inversion",
    "kappa",
    "own noise",
    "with the noise that the inversion found: the image itself",
    "minus the noise found by inversion",
    subtracted=True,
    colour="amber",
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
# terms of every loss, besides its predictions
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
    """The base of all losses; its subclasses are final. `A` is the auxiliary that the loss trains, None without one."""

    kind: ClassVar[str]  # its name in settings, presets and on the page
    title: ClassVar[str]
    paper: ClassVar[str]
    formula: ClassVar[str]  # as in papers, in the conventions of sdlab.types
    other_formulas: ClassVar[tuple[str, ...]] = ()  # of other forms and stages
    look_for: ClassVar[str]  # what to watch in the image
    code: ClassVar[str] = ""  # of a loss that is no file of this folder, see `sdlab.own_loss`
    place: ClassVar[int] = 0  # among the page's main buttons, from 1; 0 is under "more"

    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond")  # the prompts it needs, see sdlab.prompts
    needs_reference: ClassVar[bool] = False  # compares with the scene as it was when the loss was first chosen
    fits_guidance: ClassVar[bool] = True  # `fit` reads the result of `gradient`

    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, NEG, TARGET, SOURCE)  # every prediction it may return
    # predictions by their part in the residual; the first of several that a step has counts
    conditional: ClassVar[tuple[str, ...]] = ("pos",)  # given the prompt
    unconditional: ClassVar[tuple[str, ...]] = ("uncond",)  # the baseline that shows what the prompt adds
    control: ClassVar[tuple[str, ...]] = ()  # subtracted in place of the noise
    guidance_knob: ClassVar[str] = "cfg"  # the scale given to `guidance.guide`; "" for a loss that does not call it
    aux_errors: ClassVar[tuple[str, ...]] = ()  # the stats that hold its auxiliary's error

    @abstractmethod
    def gradient(self, x: Noised, model: BoundPrior, aux: A) -> Guidance:
        """Return the residual [B, C, H, W] in eps units, before w(t): d loss / d z0 = w(t) * residual. `aux` is the
        auxiliary that `init_aux` made."""

    def calls(self) -> tuple[int, ...]:
        """Return the number of roles of each of the prior's forward passes in one step, without Perp-Neg."""
        return (len(self.roles),)

    def evaluations(self) -> tuple[int, int]:
        """Return how often `gradient` and `fit` evaluate a network, the prior or the auxiliary, per view."""
        return sum(self.calls()), 0

    def init_aux(self, prior: Prior, rng: StepRng) -> A | None:
        """Return the auxiliary model that this loss trains alongside the scene, on the prior's device, initialised from
        `rng`; None for a loss without one. ValueError if none can be made for this prior."""
        return None

    def trains(self) -> bool:
        """Return whether this loss trains an auxiliary model."""
        return type(self).init_aux is not Distillation.init_aux

    def untrained_aux(self, prior: Prior, rng: StepRng) -> A | None:
        """Return an auxiliary for one look: it predicts what a new one of `init_aux` would, if possible at no cost."""
        return self.init_aux(prior, rng)

    def fit(self, x: Noised, model: BoundPrior, aux: A, guidance: Guidance) -> None:
        """Train the auxiliary with its own optimiser, after `gradient` returned `guidance` for the same batch."""
        return

    def among(self, losses: Mapping[str, Distillation]) -> Distillation:
        """Return the loss as steps follow it, given the losses of the settings by name. A loss that wraps another
        returns itself around that one, with the knobs that it has there."""
        return self

    def one_step_target(self, x: Noised, residual: Tensor) -> Tensor:
        """Return where the residual [B, C, H, W] leads in one full step: z0, shifted by the difference between the
        x0-hats of the residual's two sides. For SDS and SDI this is x0-hat of the guided prediction."""
        return x.z0 - x.sigma / x.alpha * residual

    def stage_at(self, progress: float) -> str:
        """Return the name of the stage at `progress` in [0, 1] of the planned run, "" for a loss without stages. A
        change of stage is treated as a change of loss, because it changes the gradient's scale."""
        return ""

    @property
    def formulas(self) -> tuple[str, ...]:
        """All formulas of the loss, `formula` first."""
        return (self.formula, *self.other_formulas)

    def formula_at(self, progress: float) -> str:
        """Return the formula that applies at `progress` in [0, 1] of the planned run."""
        return self.formula

    @classmethod
    def term(cls, name: str) -> Term:
        """Return the term of a prediction; if the loss describes none, one made from the name."""
        return next(
            (t for t in cls.terms if t.name == name), Term(name, name, name, f"with the prediction {name}", name)
        )

    def guidance_scale(self) -> float | None:
        """Return s of plain classifier-free guidance, None for a loss without it."""
        return getattr(self, self.guidance_knob, None) if self.guidance_knob else None

    def aux_name(self) -> str:
        """Return the auxiliary's name. Losses that train it in the same way return the same name and share it."""
        return self.kind

    def aux_key(self) -> tuple:
        """Return the values of the knobs whose change rebuilds the auxiliary or the reference."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.metadata.get("apply") == "rebuild")

    def warm_up_steps(self) -> int:
        """Return how many training steps a new auxiliary takes before the scene moves: the knob `warm_up`, else 0."""
        return int(getattr(self, "warm_up", 0))


def member(kind: str) -> type[Distillation]:
    """Return the loss in the file `kind`.py of this folder; for losses that wrap one, which import no other."""
    module = importlib.import_module(f"{__name__}.{kind}")
    return next(cls for cls in vars(module).values() if getattr(cls, "kind", "") == kind)


def first_of(names: tuple[str, ...], preds: Mapping[str, Tensor]) -> str:
    """Return the first of `names` that is in `preds`, the predictions of a step; "" if there is none."""
    return next((name for name in names if name in preds), "")


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Return Pearson's correlation of two predictions over all entries; 0-d, 0 where one of them is constant."""
    return cosine(a - a.mean(), b - b.mean())


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine of two predictions as vectors of all entries; 0-d, 0 where one of them is zero."""
    a, b = a.float(), b.float()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-20)
