"""The exact prediction beside the network's, where there is one (`sdlab.priors.truth`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from sdlab.lens.numbers import Place, relative_error
from sdlab.losses import Distillation
from sdlab.priors.truth import Truth
from sdlab.prompts import texts_of, wording
from sdlab.settings import Settings

# predictions for one text, named like its role; others have no text ("psi") or an earlier one ("ref")
OF_TEXTS = ("pos", "uncond", "neg", "target", "source")


class Exact(NamedTuple):
    """The exact prediction for one image, and how far others are from it, relative to its eps."""

    x0: Tensor  # [1, C, H, W]
    error: float  # of the network
    floor: float  # of another sample of images
    text: str


def texts_with_truth(s: Settings) -> list[str]:
    """Return the texts whose exact predictions the lens compares under `s`, whatever the cameras."""
    return texts_of(
        s.prompt, [role for role in s.loss.roles if _compared(role, s)], perp_neg=False, prompts=s.scene.prompts
    )


def exact_ones(
    preds: Mapping[str, Tensor], asked_at: Mapping[str, Place], one: slice, view: str, s: Settings, truth: Truth
) -> dict[str, Exact]:
    """Return the exact counterparts of the predictions of image `one`, by name, as far as their images are drawn."""
    found = {}
    for name, place in asked_at.items():
        if not _compared(name, s):
            continue
        text = wording(s.prompt, name, view)
        if not truth.has(text):
            continue
        z_t, alpha, sigma = (part[one] for part in (place.z_t, place.alpha, place.sigma))
        x0, other = (truth.x0(text, z_t, alpha, sigma, sample) for sample in (0, 1))
        eps, other = ((z_t - alpha * x) / sigma for x in (x0, other))
        error, floor = (float(relative_error(guess, eps)[0]) for guess in (preds[name][one], other))
        found[name] = Exact(x0, error, floor, text)
    return found


def said(exact: Mapping[str, Exact], loss: Distillation) -> str:
    """Return the errors as one sentence, "" without any."""
    if not exact:
        return ""
    parts = [f"{loss.term(name).title} {e.error:.0%} ({e.floor:.0%})" for name, e in exact.items()]
    return f"error of eps against the exact one (in brackets, of another sample of images): {', '.join(parts)}"


def _compared(name: str, s: Settings) -> bool:
    """Return whether a prediction is for one text. With Perp-Neg "pos" is for a mixture of two."""
    return name in OF_TEXTS and not (name == "pos" and s.perp_neg)
