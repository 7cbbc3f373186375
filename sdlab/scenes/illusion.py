"""Optical illusions: one picture that shows another thing when it is turned, flipped or laid over another.

A picture has two to four views, each with a prompt of its own (`PromptSettings.texts`):

    turn      turned by 0 and 180 degrees; with more than two views by 0, 90, 180, 270 (Geng et al. 2024, "Visual
              anagrams")
    flip      as it is and upside down, mirrored
    overlay   two transparencies on a light table, the upper one turned in quarter turns: the rotation overlays of
              Burgert et al. 2023, "Diffusion illusions", which the SBP thesis (McAllister 2024, appendix) generates
              with four views

The only parameter is `pixels` [n, K, 3, S, S] in [0, 1]: K = 1 picture, or base and upper sheet. Both are printable:
what a view shows is

    turn, flip   view_k = T_k pixels
    overlay      view_k = min(light * base * R_k upper, 1)

and z = encode(view_k), so that a latent prior sees the transformed picture, not its transformed latent. All views of a
picture are in every step, and each pulls at the same pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdlab.cameras import CameraSettings, look_at
from sdlab.knobs import knob
from sdlab.pictures import to_uint8
from sdlab.priors import Progress, silent
from sdlab.prompts import PromptBank, PromptSettings
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene, Preview, SceneConfig
from sdlab.types import Cameras, Cond, Prior, Render

TRANSFORMS = ("turn", "flip", "overlay")
FILM_SIZE = 256  # side of the animation in pixels
FILM_FRAMES = 36  # of a whole turn
HELD, MOVING = 900, 60  # milliseconds that a frame is shown: at a view, and in between


@dataclass(frozen=True)
class Illusion(SceneConfig):
    """A picture with a prompt for each way of looking at it."""

    kind: ClassVar[str] = "illusion"
    parameters: ClassVar[tuple[str, ...]] = ("pixels",)
    wordings: ClassVar[tuple[str, ...]] = ("prompt.second", "prompt.third", "prompt.fourth")

    transform: str = knob(
        "turn",
        help="what makes a picture show something else: turn it, flip it upside down, or turn a transparency over it",
        apply="restart",
        choices=TRANSFORMS,
    )
    views: int = knob(2, 2, 4, "views of a picture, each with its own prompt; flip has 2", apply="restart")
    n: int = knob(2, 1, 64, "number of pictures, each an independent seed", apply="restart")
    brightness: float = knob(0.6, 0.0, 1.0, "brightness at the start", apply="restart")
    noise: float = knob(0.1, 0.0, 1.0, "standard deviation of the noise at the start", apply="restart")
    light: float = knob(1.5, 0.5, 4.0, "overlay: brightness of the light table; at 1 white needs two clear sheets")

    def __post_init__(self) -> None:
        if self.transform == "flip" and self.views != 2:
            raise ValueError(f"scene.views = {self.views}: scene.transform = flip has 2 views")

    @property
    def prompts(self) -> int:
        return self.views

    def batch(self, camera: CameraSettings) -> int:
        return self.n * self.views

    def build(
        self, rng: StepRng, device: torch.device, prior: Prior, prompt: str, progress: Progress = silent
    ) -> IllusionScene:
        """Build the scene. Raises ValueError for a prior without pictures."""
        if prior.image_size < 2:
            raise ValueError(f"scene.kind = illusion needs a prior of pictures, and {prior.name} has none")
        sheets = 2 if self.transform == "overlay" else 1
        noise = torch.randn(self.n, sheets, 3, prior.image_size, prior.image_size, generator=rng("scene"))
        return IllusionScene(self, (self.brightness + self.noise * noise).clamp(0, 1).to(device), prior)


class IllusionScene(FlatScene):
    """The pictures being optimised. `config` keeps the values with which it was built, except `light`."""

    config: Illusion

    def __init__(self, config: Illusion, pixels: Tensor, prior: Prior) -> None:
        front = torch.zeros(config.n * config.views)  # all claim the same camera: only the prompts tell them apart
        cams = look_at(front, front, front + 3.0, 40.0, 1, 1)
        cams = replace(cams, prompts=tuple(range(config.views)) * config.n)
        super().__init__(config, {"pixels": pixels}, prior.shape, cams)

    def adopt(self, config: SceneConfig) -> None:
        built = self.config
        super().adopt(config)
        self.config = replace(built, light=self.config.light)

    def must_fit(self, prior: Prior) -> None:
        """Raise ValueError if `prior` takes pictures of another size."""
        side = self.params["pixels"].shape[-1]
        if prior.image_size != side:
            raise ValueError(
                f"this run's illusions have {side} x {side} pixels, the prior {prior.name} takes {prior.image_size} x "
                f"{prior.image_size}: start a new run with it (prior.path)"
            )

    def views(self) -> Tensor:
        """Return what all views show, picture by picture: [n * views, 3, S, S] in [0, 1], differentiable."""
        c, pixels = self.config, self.params["pixels"]
        seen = [seen_as(c.transform, pixels, turn, c.light) for turn in turns_of(c)]
        return torch.stack(seen, 1).flatten(0, 1)

    def latents(self, rng: StepRng, prior: Prior) -> Tensor:
        return prior.encode(self.views())

    @torch.no_grad()
    def constrain(self) -> None:
        """Keep the pixels in [0, 1]."""
        self.params["pixels"].clamp_(0, 1)

    def preview(
        self,
        prior: Prior,
        bank: PromptBank,
        prompt: PromptSettings,
        camera: CameraSettings,
        drawn: tuple[Cameras, Render] | None,
    ) -> Preview:
        return Preview(to_uint8(self.views()), names_of_views(self.config) * self.config.n)

    def pictures(self, prior: Prior, cond: Cond) -> np.ndarray:
        return to_uint8(self.views())

    def write(self, folder: Path, prior: Prior, cond: Cond) -> list[Path]:
        """Write pictures.png, with a row of views for each picture; every view as picture-00.png and so on, row by row;
        the sheets of overlays as sheet-00.png and so on, base and upper; and turn.gif, the first picture on its way
        from view to view."""
        folder.mkdir(parents=True, exist_ok=True)
        views = self.pictures(prior, cond)
        images = {"pictures.png": table(views, self.config.views)}
        images |= {f"picture-{number:02}.png": view for number, view in enumerate(views)}
        if self.config.transform == "overlay":
            sheets = to_uint8(self.params["pixels"].flatten(0, 1))
            images |= {f"sheet-{number:02}.png": sheet for number, sheet in enumerate(sheets)}
        for name, image in images.items():
            Image.fromarray(image).save(folder / name)
        write_turn(folder / "turn.gif", self.config, to_uint8(self.params["pixels"][0]))
        return [*(folder / name for name in images), folder / "turn.gif"]


def turns_of(c: Illusion) -> tuple[int, ...]:
    """Return the quarter turns, counter-clockwise, at which each view is seen; for a flip whether it is flipped."""
    if c.transform == "flip":
        return 0, 1
    return (0, 2) if c.transform == "turn" and c.views == 2 else tuple(range(c.views))


def seen_as(transform: str, pixels: Tensor, turn: int, light: float) -> Tensor:
    """Return one view of pictures [n, K, 3, S, S]: [n, 3, S, S], see the top of this file."""
    base, upper = pixels[:, 0], pixels[:, -1]
    if transform == "flip":
        return base.flip(-2) if turn else base
    if transform == "turn":
        return torch.rot90(base, turn, (-2, -1))
    exposed = light * base * torch.rot90(upper, turn, (-2, -1))
    return exposed - (exposed - 1).clamp(min=0).detach()  # at most 1, yet overexposed pixels can still be darkened


def names_of_views(c: Illusion) -> tuple[str, ...]:
    """Return what each view of a picture is called."""
    if c.transform == "flip":
        return "as it is", "upside down"
    what = "upper sheet turned" if c.transform == "overlay" else "turned"
    return tuple("as it is" if turn == 0 else f"{what} by {90 * turn}\N{DEGREE SIGN}" for turn in turns_of(c))


def table(views: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Tile views, uint8 [n * columns, S, S, 3], in rows of `columns`, separated by `gap` white pixels."""
    padded = np.pad(views, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    rows = padded.reshape(-1, columns, *padded.shape[1:])
    return np.ascontiguousarray(np.concatenate(list(rows.swapaxes(1, 2).reshape(len(rows), padded.shape[1], -1, 3))))


# ---- the animation -----------------------------------------------------------------------------------------------


def write_turn(path: Path, c: Illusion, sheets: np.ndarray) -> None:
    """Write an endless GIF of one picture, uint8 [K, S, S, 3], that turns or flips and rests at each view."""
    large = [Image.fromarray(sheet).resize((FILM_SIZE, FILM_SIZE), Image.Resampling.BICUBIC) for sheet in sheets]
    angles = [360.0 * i / FILM_FRAMES for i in range(FILM_FRAMES)]
    rests = {180.0 * turn if c.transform == "flip" else 90.0 * turn for turn in turns_of(c)}
    frames = [_on_its_way(c, large, angle) for angle in angles]
    times = [HELD if angle in rests else MOVING for angle in angles]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=times, loop=0)


def _on_its_way(c: Illusion, sheets: list[Image.Image], angle: float) -> Image.Image:
    """Return a frame at an angle in degrees, which for a flip is about the horizontal axis."""
    if c.transform == "flip":
        return _tilted(sheets[0], angle)
    turned = sheets[-1].rotate(angle, Image.Resampling.BICUBIC, fillcolor="white")
    if c.transform == "turn":
        return turned
    base, upper = (np.asarray(sheet, np.float32) / 255 for sheet in (sheets[0], turned))
    return Image.fromarray((255 * np.minimum(c.light * base * upper, 1) + 0.5).astype(np.uint8))


def _tilted(picture: Image.Image, angle: float) -> Image.Image:
    across = math.cos(math.radians(angle))
    height = max(round(abs(across) * picture.height), 1)
    if across < 0:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    frame = Image.new("RGB", picture.size, "white")
    frame.paste(picture.resize((picture.width, height)), (0, (picture.height - height) // 2))
    return frame
