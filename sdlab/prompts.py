"""Text to conditioning: view-dependent prompts, and the roles that a loss can request.

Roles: pos      the prompt, followed by the view word if view-dependent prompts are on
       plain    the prompt without a view word; the score models of VSD and ESD get it along with the camera
       uncond   the empty text
       neg      the negative prompt
       ref      "pos" of the frozen reference of DDS
       target   the desired image: `prompt.target` with "pos" in place of {prompt}
       source   the current image: `prompt.source` with "pos" in place of {prompt}, so the view word comes before
                the descriptors; in SBP's released code it comes last
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdlab.cameras import VIEW_WORDS, degrees_from_front, view_word
from sdlab.guidance import perp_neg_weights
from sdlab.knobs import knob, shown
from sdlab.types import PERP_ROLES, Cameras, Cond, Prior, cat_conds

MAX_PROMPT = 300  # characters; longer prompts fit no text encoder and are usually an accident
PROMPT = "{prompt}"  # placeholder in the templates
# McAllister et al. 2024: descriptions of SDS artefacts (here) and of the desired quality (QUALITY)
DESCRIPTORS = "oversaturated, smooth, pixelated, cartoon, foggy, hazy, blurry, bad structure, noisy, malformed"
# negative prompt of NFSD, Katzir et al. 2023
NEGATIVE = "unrealistic, blurry, low quality, out of focus, ugly, low contrast, dull, dark, low-resolution, gloomy"
QUALITY = "detailed high resolution, high quality, sharp"


@dataclass(frozen=True)
class PromptSettings:
    """The prompt and the templates derived from it."""

    text: str = knob("a red bear", hi=MAX_PROMPT, help="what to create")
    second: str = knob("a blue teapot", hi=MAX_PROMPT, help="illusions: the prompt of a picture's second view")
    third: str = knob("a green tree", hi=MAX_PROMPT, help="illusions of three or four views: the prompt of the third")
    fourth: str = knob("a yellow duck", hi=MAX_PROMPT, help="illusions of four views: the prompt of the fourth")
    negative: str = knob(NEGATIVE, hi=MAX_PROMPT, help="what to avoid; used by NFSD, CSD and ISM")
    target: str = knob(
        f"{PROMPT}, {QUALITY}", hi=MAX_PROMPT, help="target prompt of SBP; {prompt} is replaced by the prompt"
    )
    source: str = knob(
        f"{PROMPT}, {DESCRIPTORS}",
        hi=MAX_PROMPT,
        help="source prompt of SBP, which describes the current image; {prompt} is replaced by the prompt",
    )
    view_dependent: bool = knob(
        True, help="append 'front view' etc. according to the camera; off shows the Janus problem"
    )
    front_angle: float = knob(45.0, 5.0, 85.0, "half-width of 'front' and of 'back', in degrees")
    overhead_angle: float = knob(55.0, 10.0, 90.0, "elevation in degrees above which a view is 'overhead'")

    def __post_init__(self) -> None:
        for name in ("target", "source"):
            text = getattr(self, name)
            odd = [found for found in re.findall(r"\{[^{}]*\}", text) if found != PROMPT]
            if odd:
                raise ValueError(
                    f"prompt.{name} = {shown(text)}: unknown placeholder {shown(odd[0])}; only {PROMPT} is replaced"
                )

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts by number; `Cameras.prompts` holds the number of each view's."""
        return self.text, self.second, self.third, self.fourth

    def of(self, number: int) -> PromptSettings:
        """Return the same settings with the prompt of this number, 0 to 3, as `text`."""
        return self if number == 0 else replace(self, text=self.texts[number])


ROLES = ("pos", "plain", "uncond", "neg", "ref", "target", "source")


def wording(s: PromptSettings, role: str, view: str) -> str:
    """Return the text of a role for a view word; ValueError for an unknown role."""
    if role == "uncond":
        return ""
    if role == "neg":
        return s.negative
    if role == "plain":
        return s.text
    prompt = f"{s.text}, {view}" if s.view_dependent else s.text
    if role in ("pos", "ref"):
        return prompt
    if role in ("target", "source"):
        return getattr(s, role).replace(PROMPT, prompt)
    raise ValueError(f"unknown prompt role {role!r}: must be one of {', '.join(ROLES)}")


def texts_of(s: PromptSettings, roles: Iterable[str], perp_neg: bool, prompts: int = 1) -> list[str]:
    """Return every text that steps with these roles, or Perp-Neg, can request, whatever the cameras; `prompts` is the
    number of prompts that the scene has."""
    requested = [*roles, *(("pos",) if perp_neg else ())]
    each = [s.of(number) for number in range(prompts)]
    return list(dict.fromkeys(wording(own, role, view) for own in each for role in requested for view in VIEW_WORDS))


class PromptBank:
    """Embeds each text once per prior, and caches it."""

    def __init__(self, prior: Prior) -> None:
        self._prior = prior
        self._cache: dict[str, Cond] = {}

    def _embed(self, text: str) -> Cond:
        if text not in self._cache:
            if len(self._cache) >= 256:  # bound memory while a prompt is being typed
                self._cache.clear()
            self._cache[text] = self._prior.embed(text)
        return self._cache[text]

    def prompt(self, s: PromptSettings) -> Cond:
        """Return the conditioning of the prompt itself, batch 1."""
        return self._embed(s.text)

    def bind(
        self, s: PromptSettings, roles: tuple[str, ...], cams: Cameras, reference: PromptSettings | None = None
    ) -> dict[str, Cond]:
        """Return role -> conditioning of the B views of `cams`; "ref" takes its texts from `reference`."""
        if reference is not None and "ref" in roles:
            rest = tuple(role for role in roles if role != "ref")
            return {**self.bind(s, rest, cams), **self.bind(reference, ("ref",), cams)}
        views = list(zip(prompts_of(s, cams), views_of(s, cams), strict=True))
        return {role: cat_conds([self._embed(wording(own, role, v)) for own, v in views]) for role in roles}

    def perp_neg(self, s: PromptSettings, cams: Cameras) -> tuple[dict[str, Cond], Tensor]:
        """Return the conditioning of `PERP_ROLES` for the B views of `cams`, and the weights [B, 2] of the negatives.

        The first role, "perp pos", interpolates between the prompts of two views.
        """
        bound: dict[str, list[Cond]] = {role: [] for role in PERP_ROLES}
        weights = []
        angles = zip(cams.azimuth.tolist(), cams.elevation.tolist(), strict=True)
        for own, (azimuth, elevation) in zip(prompts_of(s, cams), angles, strict=True):
            front, side, back, above = (self._embed(wording(own, "pos", word)) for word in VIEW_WORDS)
            overhead = elevation > s.overhead_angle
            r, both = perp_neg_weights(azimuth, overhead)
            if overhead:
                nearer, other, avoided = above, above, (front, side)
            elif degrees_from_front(azimuth) < 90.0:
                nearer, other, avoided = front, side, (front, side)
            else:
                nearer, other, avoided = side, back, (side, front)
            for role, cond in zip(PERP_ROLES, (_between(nearer, other, r), *avoided), strict=True):
                bound[role].append(cond)
            weights.append(both)
        return {role: cat_conds(conds) for role, conds in bound.items()}, torch.tensor(weights)


def _between(a: Cond, b: Cond, share: float) -> Cond:
    """Interpolate share a + (1 - share) b, token by token."""
    if share in (0.0, 1.0):  # avoids 0 * infinity
        return a if share == 1.0 else b
    extra = {name: share * a.extra[name] + (1 - share) * b.extra[name] for name in a.extra}
    return Cond(share * a.hidden + (1 - share) * b.hidden, extra)


def views_of(s: PromptSettings, cams: Cameras) -> list[str]:
    """Return the view word of each camera."""
    angles = zip(cams.azimuth.tolist(), cams.elevation.tolist(), strict=True)
    return [view_word(a, e, s.front_angle, s.overhead_angle) for a, e in angles]


def prompts_of(s: PromptSettings, cams: Cameras) -> list[PromptSettings]:
    """Return the settings of each camera, with its own prompt as `text`."""
    return [s.of(number) for number in cams.prompts or (0,) * len(cams)]


def names_of(s: PromptSettings, cams: Cameras) -> tuple[str, ...]:
    """Return what tells the views of a flat scene apart: the prompt of each if they have their own, otherwise ""."""
    return tuple(own.text for own in prompts_of(s, cams)) if cams.prompts else ("",) * len(cams)
