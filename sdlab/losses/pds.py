"""Posterior distillation sampling (Koo et al., "Posterior distillation sampling", 2023): editing with a tie to the
original.

The stochastic latent of an image under a prompt is the noise that one step of DDPM has to draw to stay with the image,

    zeta = (x_s - mu(x_t, eps)) / spread,    mu = c_0 x0-hat + c_1 x_t,

with x_t and x_s the image with one pair of noises at t and at a level s below it, and mu and spread the mean and
standard deviation of DDPM's posterior (Ho et al. 2020, eq. 7). PDS matches the zeta of the scene, under the prompt, to
the zeta of a frozen reference, under its own prompt, with the same noises. These cancel in the difference, and of
x0-hat = z + sigma / alpha (noise - eps) remains

    zeta - zeta_ref = [ (alpha_s - c_0 - c_1 alpha) (z - z_ref) + c_0 sigma / alpha (eps - eps_ref) ] / spread,

the paper's psi(t) (z - z_ref) + chi(t) (eps - eps_ref). Divided by chi(t), this is the gradient of DDS with a pull back
to the reference:

    residual = eps - eps_ref + gamma_t (z - z_ref),    gamma_t = psi(t) / chi(t)

The weight chi(t) is left to w(t). If mu is the posterior's mean at s, then c_0 + c_1 alpha = alpha_s, gamma_t is 0,
and PDS is DDS. In the released code it is not: x_s lies two timesteps below x_t, because it visits 500 of the 1000,
while c_0 and c_1 contain the beta of one timestep. Therefore `stride` tells how many timesteps s is below t, and beta
stays that of one: at 1 there is no pull, at 2 that of the released code, and beyond it grows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from sdlab.guidance import edit
from sdlab.knobs import knob
from sdlab.losses import POS, REF, UNCOND, Distillation
from sdlab.types import BoundPrior, Guidance, Noised, Term


@dataclass(frozen=True)
class PDS(Distillation[None]):
    """DDS with a pull back to the original, which keeps what the prompt does not ask to change."""

    kind: ClassVar[str] = "pds"
    title: ClassVar[str] = "PDS"
    paper: ClassVar[str] = "Posterior Distillation Sampling, Koo et al., 2023"
    formula: ClassVar[str] = "w(t) [ eps(z; prompt) - eps(reference; its prompt) + gamma_t (z - reference) ]"
    look_for: ClassVar[str] = (
        "choose it once the object is there, then change the prompt: it edits as DDS does, and stays closer to the "
        "original the larger the stride"
    )
    roles: ClassVar[tuple[str, ...]] = ("pos", "uncond", "ref")
    needs_reference: ClassVar[bool] = True
    terms: ClassVar[tuple[Term, ...]] = (replace(POS, formula="eps(z; prompt)"), UNCOND, REF)
    control: ClassVar[tuple[str, ...]] = ("ref",)
    guidance_knob: ClassVar[str] = ""

    cfg: float = knob(7.5, 0.0, 200.0, "s, the guidance scale of both (released code: 100)")
    stride: int = knob(
        2, 1, 100, "timesteps between the two levels: more pull back harder; 1: not at all, DDS (released code: 2)"
    )
    reference: int = knob(
        0, 0, 1_000_000, "another number freezes the scene and prompt again, as they are now", apply="rebuild"
    )

    def calls(self) -> tuple[int, ...]:
        return (2, 2)

    def gradient(self, x: Noised, model: BoundPrior, aux: None) -> Guidance:
        assert x.ref is not None, "the step renders the reference of a loss that needs one"
        moved, preds, asked = edit(x, model, self.cfg)
        back = gamma(model, x.t, self.stride) * (x.z0 - x.ref)
        stats = {"edit_rms": moved.square().mean().sqrt(), "pull_rms": back.square().mean().sqrt()}
        return Guidance(moved + back, preds, stats, asked)


def gamma(model: BoundPrior, t: Tensor, stride: int) -> Tensor:
    """Return gamma_t [B, 1, 1, 1] = psi(t) / chi(t) = (alpha_s - c_0 - c_1 alpha) alpha / (c_0 sigma), with

        c_0 = alpha_s beta / sigma^2,    c_1 = sqrt(1 - beta) sigma_s^2 / sigma^2,    s = t - stride,

    and beta that of timestep t; at t = 0 that of 1. 0 for a stride of 1.
    """
    t = t.clamp_min(1)
    alpha, sigma = model.marginal(t)
    alpha_s, sigma_s = model.marginal((t - stride).clamp_min(0))
    kept = (alpha / model.marginal(t - 1)[0]) ** 2  # 1 - beta
    c_0 = alpha_s * (1 - kept) / sigma**2
    c_1 = kept.sqrt() * sigma_s**2 / sigma**2
    return (alpha_s - c_0 - c_1 * alpha) * alpha / (c_0 * sigma)
