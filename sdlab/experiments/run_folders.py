"""Runs as their folders hold them: the scene of the newest checkpoint, seen from all sides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.errors import reason
from sdlab.export.writers import render_turntable
from sdlab.headless import CHECKPOINT
from sdlab.live import checkpoint
from sdlab.priors import PriorConfig
from sdlab.priors.judged import knows
from sdlab.priors.mixture import MixturePrior
from sdlab.prompts import PromptBank
from sdlab.rng import StepRng
from sdlab.scenes import AnyScene, FlatScene
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP
from sdlab.toybox.judge import data_camera
from sdlab.types import Cameras, Prior

ENOUGH = 64  # pixels per side of a view where the prior, which has a size of its own, cannot be loaded

PLANE = ("points", "gaussian")  # kinds of scenes without images

LoadPrior = Callable[[PriorConfig], Prior]


class Made(NamedTuple):
    """What a run has made. `prior` is None, and `note` says why, where it cannot be loaded and is not needed."""

    folder: Path
    settings: Settings
    step: int
    scene: AnyScene
    prior: Prior | None
    note: str

    @property
    def flat(self) -> bool:
        """Whether its scene are images, which have no sides."""
        return isinstance(self.scene, FlatScene)

    @property
    def judged(self) -> bool:
        """Whether the toybox's judge can read its images."""
        return knows(self.settings.prior)

    @property
    def size(self) -> int:
        """Pixels per side of its images."""
        return ENOUGH if self.prior is None else self.prior.image_size


def load(folder: Path, device: torch.device, prior_of: LoadPrior) -> Made:
    """Load the run in `folder`. Raises ValueError that names the folder if there is none to measure."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; give folders written by `run --out`")
    if not (folder / CHECKPOINT).is_dir():
        raise ValueError(f"{folder} is not the folder of a run: it has no {CHECKPOINT}/, which `run --out` writes")
    try:
        (step, s, parts), _ = checkpoint.newest(
            folder / CHECKPOINT, lambda saved: (saved.step, checkpoint.settings_of(saved), saved.parts)
        )
    except (ValueError, OSError) as e:
        raise ValueError(f"{folder} holds no usable run: {reason(e)}") from e
    if s.scene.kind in PLANE:
        raise ValueError(f"{folder} is a run of {s.scene.kind} in the plane: it has no images to measure")
    if len(s.prompts) > 1:
        raise ValueError(f"{folder} is a run of an illusion, whose views have prompts of their own: see `bench tasks`")
    prior, note, flat = None, "", "latents" in s.scene.parameters
    try:
        prior = prior_of(s.prior)
    except (ValueError, OSError, RuntimeError) as e:
        if flat:
            raise ValueError(f"{folder}: its images need its prior, which cannot be loaded: {reason(e)}") from e
        note = f"{folder}: measured without its prior, which cannot be loaded: {reason(e)}"
    return Made(folder, s, step, _scene(s, parts, device, prior, folder), prior, note)


def _scene(s: Settings, parts: dict[str, Any], device: torch.device, prior: Prior | None, folder: Path) -> AnyScene:
    """Return the scene of a checkpoint. ValueError if it does not fit its settings."""
    try:
        # scenes seen through cameras build alike for every prior, also for one that loads nothing
        fits = MixturePrior().load(device) if prior is None else prior
        scene = s.scene.bare().build(StepRng(s.seed, BUILD_STEP), device, fits, s.prompt.text)
        scene.adopt(s.scene)
        scene.load_state_dict(parts["scene"])
    except (ValueError, KeyError, RuntimeError) as e:
        raise ValueError(f"{folder} holds no usable run: its scene cannot be restored ({reason(e)})") from e
    return scene


def images_of(made: Made, views: int) -> Float[Tensor, "n 3 S S"]:
    """Return `views` images around the object on white, in [0, 1], the first of its front; of an image scene its own
    images.

    What the judge reads is seen from the distance of its training images, anything else from the run's cameras.
    """
    scene = made.scene
    if isinstance(scene, FlatScene):
        assert made.prior is not None
        shown = scene.pictures(made.prior, PromptBank(made.prior).prompt(made.settings.prompt))
    else:
        camera = made.settings.camera
        shown = render_turntable(scene, data_camera(camera) if made.judged else camera, views, made.size)
    return torch.from_numpy(shown).permute(0, 3, 1, 2) / 255


@torch.no_grad()
def images_from(made: Made, cams: Cameras) -> Float[Tensor, "n 3 S S"]:
    """Return images from the given cameras on white, in [0, 1]. ValueError for an image scene."""
    if isinstance(made.scene, FlatScene):
        raise ValueError(f"{made.folder} is a run of images, which have no sides")
    white = torch.ones(len(cams), 3)
    return made.scene.render(cams, white).rgb.clamp(0, 1).cpu()
