"""The toybox's judge for a live run: do the images show what the prompt asks for?

It knows only the toybox's objects and colours, so it does not judge other priors or prompts without such an object.
"""

from __future__ import annotations

import functools
import threading

import numpy as np
import torch

from sdlab.live.session import Session
from sdlab.metrics.images import saturation, sharpness
from sdlab.priors import sides
from sdlab.priors.gallery import GalleryScores
from sdlab.priors.judged import knows as knows
from sdlab.toybox import judge
from sdlab.toybox.readings import chance_of, facts_of, readings

MOST_PICTURES = 4
_loading = threading.Lock()


@functools.cache
def _judge() -> judge.Classifier:
    return judge.load()


def chance(pictures: np.ndarray, *prompts: str) -> float | None:
    """Return the mean probability that images, uint8 [B, H, W, 3], show the object that their prompt names, in the
    colour that it names; None when the judge knows no such object. The images take the prompts in turn. Takes about
    10 ms for each prompt."""
    known = [facts_of(prompt) for prompt in prompts]
    if not all("object" in facts for facts in known):
        return None
    rgb, found = _rgb(pictures[:MOST_PICTURES]), []
    for first, facts in enumerate(known[: len(rgb)]):
        asked = {name: facts[name] for name in ("object", "colour") if name in facts}
        found.append(chance_of(rgb[first :: len(known)], asked, _loaded()))
    return float(torch.cat(found).mean())


def metrics(pictures: np.ndarray, prompt: str, known: bool, sides: bool = True) -> dict[str, float]:
    """Return the metrics that charts show of the views around an object, uint8 [n, S, S, 3] with n a multiple of 12, or
    without `sides` of any images; of a prior that the judge knows with what it reads in them. Takes about 0.1 s."""
    rgb = _rgb(pictures)
    found = {"saturation": float(saturation(rgb).mean()), "sharpness": float(sharpness(rgb).mean())}
    return {**found, **readings(rgb, prompt, _loaded(), sides)} if known else found


def metrics_of_sides(around: np.ndarray, session: Session) -> dict[str, float]:
    """Return `fronts`, `iv` and `iq` of the views around an object, by the posterior of a prior of one object's own
    sides, whose images are too small for the judge; nothing for other priors."""
    if not sides.knows(session.effective.prior) or not isinstance(session.prior, GalleryScores):
        return {}
    z = session.prior.encode(_rgb(around).to(session.prior.device)).cpu()
    found = sides.shown(z, session.prior, session.effective.prompt.text)
    return {"fronts": found.fronts, "iv": found.iv, "iq": found.iq}


def _rgb(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures.copy()).permute(0, 3, 1, 2) / 255


def _loaded() -> judge.Classifier:
    with _loading:
        return _judge()
