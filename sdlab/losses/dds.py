"""Delta denoising score (Hertz et al., "Delta denoising score", 2023): editing instead of creating.

SDS blurs because its gradient is not zero for an image that matches the prompt. DDS subtracts the gradient for a
reference that matches its own prompt, at the same t and noise:

    residual = eps^(z_t; prompt) - eps^(z_t^ref; reference's prompt),    eps^ = eps_u + s (eps_c - eps_u)

The reference is a frozen copy of the scene and the prompt, made when this loss is first chosen and rendered by the
same cameras. Nothing moves until the prompt changes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from sdlab.guidance import edit
from sdlab.knobs import knob
from sdlab.losses import POS, REF, UNCOND, Distillation
from sdlab.types import BoundPrior, Guidance, Noised, Term


@dataclass(frozen=True)
class DDS(Distillation[None]):
    """Edits the scene from the prompt it was made with to the prompt you type now."""

    kind: ClassVar[str] = "dds"
    title: ClassVar[str] = "DDS"
    paper: ClassVar[str] = "Delta Denoising Score, Hertz et al., 2023"
    formula: ClassVar[str] = "w(t) [ eps(z; prompt) - eps(reference; its prompt) ]"
    look_for: ClassVar[str] = (
        "choose it once the object is there, then change the prompt: what both prompts share stays as it is"
    )
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", "ref")
    needs_reference: ClassVar[bool] = True
    terms: ClassVar[tuple[Term, ...]] = (replace(POS, formula="eps(z; prompt)"), UNCOND, REF)
    control: ClassVar[tuple[str, ...]] = ("ref",)
    guidance_knob: ClassVar[str] = ""

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale of both (paper: 7.5)")
    reference: int = knob(
        0, 0, 1_000_000, "another number freezes the scene and prompt again, as they are now", apply="rebuild"
    )

    def calls(self) -> tuple[int, ...]:
        return (2, 2)

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        residual, preds, asked = edit(x, model, self.cfg)
        return Guidance(residual, preds, asked=asked)
