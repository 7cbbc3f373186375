"""Tensors to images: pushes, heat maps, latents and points of the plane.

A push is -w(t) residual: grey pixels stay as they are, others are pushed towards the colour shown. Latents have no
colours; each channel is assigned one, and the image is only a pattern. Points of the plane are drawn where they are,
all points of a step in one image, with a line to where they would go.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sdlab.lens.numbers import SILENT
from sdlab.pictures import resize, to_uint8
from sdlab.plane import draw_plane
from sdlab.settings import Settings
from sdlab.types import Prior

LEAST, MOST = 128, 256  # side of an image in pixels: smaller images are enlarged by an integer factor, others reduced
WIDTHS = 3.0  # a push is drawn from -3 to 3 times its root mean square
LATENT_REACH = 6.0  # latents are clipped to +-this before decoding: a VAE in half precision would overflow
FAR = 10.0  # coordinates of the plane are clipped to +-this
ARROW = 0.3  # root mean square of the pushes as drawn on the plane


def is_pixels(prior: Prior) -> bool:
    """Return whether the prior's space is pixels, or blocks of pixels, so that decoding is linear."""
    channels, height, width = prior.shape
    block = prior.image_size // max(height, width)
    return channels == 3 * block**2 and block * max(height, width) == prior.image_size


def is_plane(prior: Prior) -> bool:
    """Return whether the prior's space is the plane."""
    return tuple(prior.shape) == (2, 1, 1)


def no_pictures(prior: Prior) -> str:
    """Return why this prior's space cannot be shown, "" if it can."""
    if prior.shape[0] != 3 and prior.name == "mixture" and not is_plane(prior):
        return f"events of {prior.shape[0]} channels are not pictures: prior.channels = 3 makes them so"
    return ""


def arrow(push: Tensor) -> Tensor:
    """Scale a push of the plane's points [B, 2, 1, 1] to the length at which it is drawn."""
    return push * (ARROW / push.square().mean().sqrt().clamp_min(SILENT))


def ways(start: Tensor, end: Tensor, s: Settings, prior: Prior) -> np.ndarray:
    """Draw points of the plane [B, 2, 1, 1], with straight lines to `end`: uint8 [s, s, 3]."""
    way = torch.stack([start, end.clamp(-FAR, FAR)]).flatten(2).float().cpu().numpy()
    return _reduced(draw_plane(prior, prior.embed(s.prompt.text), way))


def decodable(z: Tensor, prior: Prior) -> Tensor:
    return z if is_pixels(prior) else z.clamp(-LATENT_REACH, LATENT_REACH)


def round_up(value: float) -> float:
    """Round up to 1, 2, 5, 10, ..., so that colours keep their meaning from step to step; 1 if not above 0."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))


def heat_map(values: Tensor, colours: str) -> Tensor:
    """Convert [H, W], in [-1, 1] for RdBu_r or in [0, 1] for magma, to rgb [1, 3, H, W]."""
    from matplotlib import colormaps

    at = values.float().cpu().nan_to_num().numpy()
    rgb = colormaps[colours](at / 2 + 0.5 if colours == "RdBu_r" else at)[..., :3]
    return torch.from_numpy(np.ascontiguousarray(rgb)).float().permute(2, 0, 1)[None]


def false_colours(z: Tensor) -> Tensor:
    """Convert [B, C, H, W] to rgb [B, 3, H, W], grey for 0; three cosines give each channel its own colour."""
    channels = z.shape[1]
    waves = torch.tensor([1, channels // 2, channels - 1], device=z.device)
    at = (torch.arange(channels, device=z.device) + 0.5) / channels
    colours = torch.cos(torch.pi * waves[:, None] * at) * (2 / channels) ** 0.5
    return (0.5 + 0.5 * torch.einsum("kc,bchw->bkhw", colours.to(z), z)).clamp(0, 1)


def push_colours(grad: Tensor, prior: Prior) -> Tensor:
    """Draw the negative of a gradient [B, C, H, W] as rgb [B, 3, h, w], each in units of its root mean square."""
    push = -grad / (WIDTHS * grad.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp_min(SILENT)
    return prior.decode(push) if is_pixels(prior) else false_colours(push)


def shown(rgb: Tensor) -> np.ndarray:
    """Resize rgb [K, 3, S, S] to uint8 [K, s, s, 3] with LEAST <= s <= MOST, or slightly more."""
    size = rgb.shape[-1]
    if size > MOST:
        rgb = resize(rgb.float(), (MOST, MOST))
    pictures = to_uint8(rgb)
    times = -(-LEAST // pictures.shape[1])
    return pictures.repeat(times, 1).repeat(times, 2)


def _reduced(picture: np.ndarray) -> np.ndarray:
    """Resize uint8 [S, S, 3] to at most MOST pixels."""
    return shown(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)[0]
