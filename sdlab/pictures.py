"""Images as arrays: from tensors, from files, resized, and tiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.decoding import MAX_BYTES, picture_of
from sdlab.knobs import read_file
from sdlab.parsing import parsed


def to_uint8(rgb: Tensor) -> np.ndarray:
    """Convert [B, 3, H, W] in [0, 1] to uint8 [B, H, W, 3]."""
    return (rgb.detach().clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def resize(rgb: Tensor, size: tuple[int, int], smooth: bool = True) -> Tensor:
    """Resize images [B, C, H, W] to `size` (height, width); differentiable.

    Bilinear with antialiasing, or nearest neighbour if not `smooth`.
    """
    if tuple(rgb.shape[-2:]) == tuple(size):
        return rgb
    if not smooth:
        return F.interpolate(rgb, size, mode="nearest")
    return F.interpolate(rgb, size, mode="bilinear", align_corners=False, antialias=True)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB of images [B, C, H, W] in [0, 1], for each of the B; inf if equal."""
    return -10 * (a - b).square().mean((1, 2, 3)).log10()


def grid(pictures: np.ndarray, gap: int = 2) -> np.ndarray:
    """Tile uint8 images [B, H, W, 3] into one that is as square as possible, separated by `gap` white pixels."""
    count, height, width, _ = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def read_picture(path: Path, size: int, knob: str) -> Tensor:
    """Return the central square of an image file as [1, 3, size, size] in [0, 1].

    Raises ValueError naming `knob`, the file and the problem.
    """
    given = f"{knob} = {str(path)!r}"
    raw = read_file(path, MAX_BYTES, given)
    square = parsed(picture_of, raw, size, given, given=given)
    return torch.from_numpy(square).permute(2, 0, 1)[None]
