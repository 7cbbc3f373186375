"""The small film of a run in a hand-in."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from sdlab.cameras import CameraSettings, turntable
from sdlab.export.interchange import of_snapshot
from sdlab.export.writers import Still, Tally
from sdlab.live.timeline import Shot
from sdlab.pictures import grid, to_uint8

SIDE = 160  # pixels
MOST_FRAMES = 24
LASTS, LAST_LASTS = 125, 1500  # ms


def film(shots: Sequence[tuple[int, Shot]], camera: CameraSettings, progress: Tally) -> bytes:
    """Return a run as an animated WebP file: an object turns once while it grows. ValueError without shots."""
    if not shots:
        raise ValueError("this run has no film yet: let it take some steps")
    chosen = [shots[i][1] for i in np.unique(np.linspace(0, len(shots) - 1, MOST_FRAMES).round().astype(int))]
    cams = turntable(len(chosen), camera, SIDE)
    frames = []
    for n, shot in enumerate(chosen):
        progress(n, len(chosen))
        if isinstance(shot, np.ndarray):
            image = Image.fromarray(grid(shot))
            image.thumbnail((2 * SIDE, 2 * SIDE))
        else:
            seen = Still(of_snapshot(shot)).render(cams[n : n + 1], torch.ones(1, 3)).rgb
            image = Image.fromarray(to_uint8(seen)[0])
        frames.append(image)
    file, times = BytesIO(), [LASTS] * (len(frames) - 1) + [LAST_LASTS]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=times, loop=0, quality=60)
    return file.getvalue()
