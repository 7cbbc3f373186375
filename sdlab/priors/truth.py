"""The exact prediction where the toybox's network predicts: what a perfect network of the same data would answer.

Images of the toybox that fit a text make a gallery (`sdlab.priors.closed_form`), evaluated at any alpha and sigma, and
thus at the network's own z_t. Two details differ from the gallery prior, because the network learnt from captioned
images as they are:

- backgrounds are near white in 55 % of the data and anything else in the rest; a gallery is evaluated with both;
- the empty text stands for all images, flawed ones and paintings included.

A gallery is a finite sample. Near its own images it is exact; between them, at little noise, it answers with the
nearest image, where a network generalises. `Truth` holds two samples of each text, and the difference between their
predictions shows how far either can be trusted.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.priors import PriorConfig
from sdlab.priors.closed_form import Background, Gallery, posterior_mean
from sdlab.priors.diffusers import DiffusersPrior
from sdlab.priors.galleries import SHARED, Order, drawn
from sdlab.priors.gallery import GalleryPrior
from sdlab.priors.hub import ASSETS
from sdlab.toybox import words
from sdlab.types import Prior

# share of the data and colour, see `sdlab.toybox.pictures.draw_ground`
BACKGROUNDS = ((0.55, Background(0.975, 0.032)), (0.45, Background(0.5, 0.28)))
SAMPLES = 2  # galleries of each text, by seed
IMAGES, NULL_IMAGES = 2048, 4096  # of a gallery: of a text, and of the empty text


class Truth:
    """Exact predictions for texts of the toybox, for z [B, 3, size, size] of pixels; safe to call from any thread.

    `images` and `null_images` are the sizes of one gallery. All of them count, in float32. Galleries are shared by the
    whole process.
    """

    def __init__(self, size: int, device: torch.device, images: int = IMAGES, null_images: int = NULL_IMAGES) -> None:
        from sdlab.priors.sources.training import TrainingImages

        self.images = images
        self.null_images = null_images
        self._size = size
        self._device = device
        self._source = TrainingImages()

    def has(self, text: str) -> bool:
        """Return whether the galleries of `text` are in memory, so that predictions take no time to draw."""
        return all(SHARED.find(order) is not None for seed in range(SAMPLES) for order in self._orders(text, seed))

    def prepare(self, text: str) -> None:
        """Draw the galleries of `text`, unless they are in memory: about 2000 images a second on one core."""
        for seed in range(SAMPLES):
            self._galleries(text, seed)

    def x0(
        self,
        text: str,
        z_t: Float[Tensor, "B 3 S S"],
        alpha: Float[Tensor, "B 1 1 1"],
        sigma: Float[Tensor, "B 1 1 1"],
        sample: int = 0,
    ) -> Float[Tensor, "B 3 S S"]:
        """Return E[x0 | z_t, text] under gallery `sample`, 0 or 1; draw it if it is not in memory."""
        galleries = self._galleries(text, sample)
        shares = torch.tensor([share for share, _ in BACKGROUNDS], device=z_t.device).expand(len(z_t), -1)
        return posterior_mean(galleries, shares, z_t, alpha, sigma, candidates=len(galleries[0]))

    def _orders(self, text: str, seed: int) -> list[Order]:
        key = self._source.key(text)
        count = self.images if key else self.null_images
        place = str(self._device)
        return [Order(self._source.identity, key, count, self._size, seed, ground, place) for _, ground in BACKGROUNDS]

    def _galleries(self, text: str, seed: int) -> list[Gallery]:
        """Return one gallery per background, of the same images."""
        first, *others = self._orders(text, seed)
        found = [SHARED.get(first, lambda: drawn(self._source, first, factor=1))]
        for order in others:
            found.append(SHARED.get(order, lambda o=order: Gallery.of(found[0].rgba, o.background, factor=1)))
        return found


def truth_of(config: PriorConfig, prior: Prior, images: int = IMAGES, null_images: int = NULL_IMAGES) -> Truth:
    """Return the exact predictions that `prior`, loaded from `config`, approximates.

    They exist for networks trained on the toybox's images, in pixel space. Raises ValueError, with the reason, for all
    other priors.
    """
    if isinstance(config, GalleryPrior):
        raise ValueError("the gallery prior's predictions are the exact ones already")
    if not isinstance(config, DiffusersPrior) or not _trained_on_toybox(config.path):
        raise ValueError("there is no exact prediction to compare with: only networks of the toybox's images have one")
    if prior.shape[0] != 3:
        raise ValueError("there is no exact prediction to compare with: this network works on blocks of pixels")
    return Truth(prior.shape[1], prior.device, images, null_images)


def _trained_on_toybox(path: str) -> bool:
    """Return whether `path` is a network whose vocabulary is the toybox's."""
    file = (ASSETS / "toybox" if path == "toybox" else Path(path).expanduser()) / "words.json"
    try:
        return json.loads(file.read_text(encoding="utf-8")) == json.loads(json.dumps(words.word_list()))
    except (OSError, ValueError):
        return False
