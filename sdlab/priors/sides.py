"""What views of an object show, by the posterior over the images of a gallery of one object's own sides.

The toybox's judge cannot read images as small as these, and need not: all that they can show is known. A render x
belongs to the prior's images X_i in proportion to exp(-|x - X_i|^2 / (2 s^2)), with s the prior's spread. That gives,
for the views around the object,

    fronts   the expected number of views that show an image from within the band of "front view"
    IV       variety: entropy in nats of the mean over all views, by azimuth of the image; at most ln 12
    IQ       mean entropy of single views: how undecided they are

as in section 5 of the ESD paper (Wang et al. 2024), whose classifier is replaced by the prior's own posterior.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.metrics.entropies import quality, variety
from sdlab.priors import PriorConfig
from sdlab.priors.closed_form import Background, unpacked
from sdlab.priors.gallery import GalleryPrior, GalleryScores
from sdlab.priors.sources import Source
from sdlab.priors.sources.toybox import circle
from sdlab.toybox.pictures import HALF_BAND

SHARP = 0.1  # smallest standard deviation of the posterior, for a prior without spread
KEPT = 8  # texts whose images are kept


class Sides(NamedTuple):
    """What the views around an object show; `per_view` is the chance of each view to show the front."""

    fronts: float
    iv: float
    iq: float
    per_view: list[float]


def knows(prior: PriorConfig) -> bool:
    """Return whether a prior is of one object's own sides."""
    return isinstance(prior, GalleryPrior) and prior.one_object


def shown(z: Float[Tensor, "N C S S"], prior: GalleryScores, text: str) -> Sides:
    """Return what views z of an object show, by the posterior over the prior's images of `text`."""
    x, azimuths = _images(prior.config, prior.source, prior.source.key(text))
    return read(z.flatten(2).double(), x, azimuths, max(prior.config.spread, SHARP))


@functools.lru_cache(KEPT)
def _images(config: GalleryPrior, source: Source, key: str) -> tuple[Tensor, Tensor]:
    """Return the images [I, C, P] of a text, and the azimuths [I] in degrees that they were taken from."""
    rgba = source.draw(key, config.images, config.size, config.seed)
    x, _ = unpacked(rgba, Background(config.background, config.background_std), torch.float64)
    return x, torch.tensor(circle(len(rgba), config.front_share))


def read(views: Float[Tensor, "N C P"], x: Float[Tensor, "I C P"], azimuths: Tensor, std: float) -> Sides:
    """Return what `views` show of the images `x`, which were taken from `azimuths` [I] in degrees."""
    squares = torch.cdist(views.flatten(1), x.flatten(1)).square()
    posterior = torch.softmax(-squares / (2 * std**2), 1)
    per_view = posterior[:, azimuths.abs() <= HALF_BAND].sum(1)
    sides, side = torch.unique(azimuths, return_inverse=True)
    of_sides = torch.zeros(len(views), len(sides), dtype=posterior.dtype).index_add_(1, side, posterior)
    return Sides(
        round(float(per_view.sum()), 2),
        round(variety(of_sides), 3),
        round(quality(of_sides), 3),
        [round(p, 3) for p in per_view.tolist()],
    )
