"""Images as arrays: from tensors, from files, resized, and tiled."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.knobs import read_file

MAX_BYTES = 50_000_000  # of an image file
MAX_PIXELS = 100_000_000  # of an image that is decoded


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
    return picture_of(read_file(path, MAX_BYTES, given), size, given)


def picture_of(raw: bytes, size: int, given: str) -> Tensor:
    """Return the central square of an encoded image as [1, 3, size, size] in [0, 1].

    It is turned upright as its EXIF data say; where it is transparent, it is white. Raises ValueError that starts with
    `given` and says what is wrong.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(raw), formats=("PNG", "JPEG", "WEBP")) as picture:
            allowed = picture.width * picture.height <= MAX_PIXELS
            pixels = f"{picture.width} x {picture.height} pixels"
            whole = _opaque(in_8_bits(picture)) if allowed else picture
            turn = turn_of(picture) if allowed else None
    except UnidentifiedImageError as e:
        raise ValueError(f"{given} is not an image: use PNG, JPEG or WebP") from e
    except Exception as e:  # decoders raise all kinds of errors on malformed input
        raise ValueError(f"{given} cannot be read: {e or type(e).__name__}") from e
    if not allowed:
        raise ValueError(f"{given} has {pixels}; the limit is {MAX_PIXELS:,}")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    upright = square if turn is None else square.transpose(turn)
    return torch.from_numpy(np.asarray(upright, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def in_8_bits(picture: Any) -> Any:
    """Return a PIL image with 8 bits a channel; Pillow would cut 16 bits off at 255 when it converts them."""
    from PIL import Image

    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    return Image.fromarray((values.clip(0, 65535).astype(np.uint16) >> 8).astype(np.uint8))


def turn_of(picture: Any) -> Any:
    """Return the PIL transposition that turns an image upright, None if it is or if its EXIF data cannot be read."""
    from PIL import ExifTags, Image

    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    try:
        return turns.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsers raise all kinds of errors on malformed input, and the pixels are fine without
        return None


def _opaque(picture: Any) -> Any:
    """Return a PIL image as RGB, over white where it is transparent: the colour below is arbitrary, often black."""
    from PIL import Image

    if not picture.has_transparency_data:
        return picture.convert("RGB")
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
