"""Images in the prior's own space: text-to-2D, which shows a loss's behaviour without a 3D object in between.

The only parameter is `latents` [B, C, H, W]: pixels in [-1, 1] for a pixel prior, the scaled VAE latent otherwise
(Poole et al. 2022, DreamFusion, section 3; Wang et al. 2023, ProlificDreamer, section 5; McAllister 2024, section 4).
Images share only prompt and settings: each is an independent seed, except with a loss that trains its own network,
which learns from all images (the particles of ProlificDreamer).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from sdlab.cameras import CameraSettings, look_at
from sdlab.knobs import knob
from sdlab.pictures import grid, read_picture, to_uint8
from sdlab.priors import Progress, silent
from sdlab.prompts import MAX_PROMPT, PROMPT
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene, SceneConfig
from sdlab.starts.drawn import drawn_pictures, seed_of
from sdlab.types import Cond, Prior

STARTS = ("noise", "grey", "picture", "drawn")
INIT_SPREAD = 0.1  # standard deviation around a common start, so that several images do not stay identical


@dataclass(frozen=True)
class Images(SceneConfig):
    """Images that are optimised directly."""

    kind: ClassVar[str] = "image"
    parameters: ClassVar[tuple[str, ...]] = ("latents",)

    n: int = knob(4, 1, 256, "number of images, each an independent seed", apply="restart")
    start: str = knob(
        "noise",
        help="starting point: noise (as in papers), uniform grey, an image file, or drawn by the toybox, each anew",
        apply="restart",
        choices=STARTS,
    )
    picture: str = knob(
        "",
        hi=500,
        help="path of the starting image, for start = picture (painting to photo); white shows through",
        apply="restart",
    )

    drawn: str = knob(
        f"{PROMPT}, painting",
        hi=MAX_PROMPT,
        help="what the toybox draws, for start = drawn; {prompt} is replaced by the prompt",
        apply="restart",
    )

    def __post_init__(self) -> None:
        if self.start == "picture" and not self.picture:
            raise ValueError("scene.start = picture: scene.picture must be the path of a PNG or JPEG")

    def batch(self, camera: CameraSettings) -> int:
        return self.n

    def bare(self) -> Images:
        return replace(self, start="noise")

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> ImageScene:
        """Build the scene. Raises ValueError if the starting image cannot be read or drawn."""
        noise = torch.randn(self.n, *prior.shape, generator=rng("scene")).to(device)
        if self.start == "noise":
            return ImageScene(self, noise)
        rgb = self._started(rng, prior.image_size, prompt)
        with torch.no_grad():
            latents = prior.encode(rgb.to(device))
        if self.n > 1 and self.start != "drawn":  # a common start
            latents = latents + INIT_SPREAD * noise
        return ImageScene(self, latents.expand(self.n, *prior.shape).clone())

    def _started(self, rng: StepRng, size: int, prompt: str) -> Tensor:
        """Return the starting images, [1, 3, size, size] or one for each."""
        if self.start == "picture":
            return read_picture(Path(self.picture), size, "scene.picture")
        if self.start == "drawn":
            return drawn_pictures(self.drawn.replace(PROMPT, prompt), self.n, size, seed_of(rng), "scene.drawn")
        return torch.full((1, 3, size, size), 0.5)


class ImageScene(FlatScene):
    """The images being optimised."""

    def __init__(self, config: Images, latents: Tensor) -> None:
        channels, height, width = latents.shape[1:]
        front = torch.zeros(len(latents))  # all claim the same view, so that nothing distinguishes them
        cams = look_at(front, front, front + 3.0, 40.0, 1, 1)
        super().__init__(config, {"latents": latents}, (channels, height, width), cams)

    def latents(self, rng: StepRng, prior: Prior) -> Tensor:
        # a view, not the parameter itself: the gradient must reach a leaf through a graph, as with any other scene
        return self.params["latents"].view_as(self.params["latents"])

    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        return to_uint8(prior.decode(self.params["latents"].detach()))

    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Write pictures.png, a grid of all images, and each image as picture-00.png and so on."""
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        pictures = self.pictures(prior, cond)
        files = [folder / "pictures.png"]
        Image.fromarray(grid(pictures)).save(files[0])
        for number, picture in enumerate(pictures):
            files.append(folder / f"picture-{number:02}.png")
            Image.fromarray(picture).save(files[-1])
        return files
