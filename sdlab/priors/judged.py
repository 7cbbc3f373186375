"""Which priors show the toybox's world, whose images its judge can read."""

from __future__ import annotations

from sdlab.priors import PriorConfig
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.gallery import GalleryPrior


def knows(prior: PriorConfig) -> bool:
    """Return whether a prior is of the toybox: its network, or its images as a gallery."""
    if isinstance(prior, GalleryPrior):
        return prior.source == "toybox"
    return isinstance(prior, DiffusersPrior) and prior.path == "toybox"
