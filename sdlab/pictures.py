"""Pictures as arrays: from tensors, from files, and several in one."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MAX_BYTES = 50_000_000  # of a picture file
MAX_PIXELS = 100_000_000  # of a picture that is opened


def to_uint8(rgb: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [0, 1] -> uint8 [B, H, W, 3]."""
    return (rgb.detach().clamp(0, 1) * 255 + 0.5).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid(pictures: np.ndarray, gap: int = 2) -> np.ndarray:
    """uint8 [B, H, W, 3] -> one picture, as square as can be, white in between."""
    count, height, width, _ = pictures.shape
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = (number // columns) * (height + gap), (number % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def read_picture(path: Path, size: int, knob: str) -> Tensor:
    """[1, 3, size, size] in [0, 1]: the middle square. ValueError names `knob` and what is wrong with the file."""
    given = f"{knob} = {str(path)!r}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{given} has {path.stat().st_size:,} bytes; allowed are {MAX_BYTES:,}")
        raw = path.read_bytes()
    except OSError as e:
        raise ValueError(f"{given} cannot be read: {e}") from e
    return picture_of(raw, size, given)


def picture_of(raw: bytes, size: int, given: str) -> Tensor:
    """[1, 3, size, size] in [0, 1]: the middle square of a file's bytes. ValueError, which begins with `given`, says
    what is wrong with it."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(raw), formats=("PNG", "JPEG", "WEBP")) as picture:
            allowed = picture.width * picture.height <= MAX_PIXELS
            pixels = f"{picture.width} x {picture.height} pixels"
            whole = picture.convert("RGB") if allowed else picture
    except UnidentifiedImageError as e:
        raise ValueError(f"{given} is not a picture: PNG, JPEG and WebP can be read") from e
    except Exception as e:  # decoders of a stranger's bytes fail in many ways
        raise ValueError(f"{given} cannot be read: {e or type(e).__name__}") from e
    if not allowed:
        raise ValueError(f"{given} has {pixels}; allowed are {MAX_PIXELS:,}")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)[None]
