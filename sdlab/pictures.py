"""Pictures as arrays: from tensors, from files, and several in one."""

from __future__ import annotations

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
    from PIL import Image, UnidentifiedImageError

    given = f"{knob} = {str(path)!r}"
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"{given} has {path.stat().st_size:,} bytes; allowed are {MAX_BYTES:,}")
        with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{given} has {picture.width} x {picture.height} pixels; allowed are {MAX_PIXELS:,}")
            whole = picture.convert("RGB")
    except UnidentifiedImageError as e:
        raise ValueError(f"{given} is not a picture: PNG, JPEG and WebP can be read") from e
    except (OSError, Image.DecompressionBombError) as e:
        raise ValueError(f"{given} cannot be read: {e}") from e
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return torch.from_numpy(np.asarray(square, dtype=np.float32) / 255).permute(2, 0, 1)[None]
