"""Renders in place of viser's own drawing: the session's rasteriser draws the scene from the browser's camera, and the
image hangs behind viser's empty scene."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from viser.transforms import SO3

from sdlab.channel import Latest
from sdlab.live.rendering import FINE, QUICK, Rendered, Shot
from sdlab.types import Cameras

STILL = 0.35  # seconds after the last move of the camera from which it counts as still
FINE_IMAGES = 2  # in a still view: the first also finds out how large an image may be
WAIT = 0.25  # seconds between checks for that


@runtime_checkable
class Renders(Protocol):
    """What a session offers: `sdlab.live.rendering.Rendering`."""

    seen: Latest[Rendered]

    def ask(self, shot: Shot | None) -> None: ...


class RenderedView:
    """Shows renders in one of `sdlab.modes.MODES` while `mode` is not None, in a thread of its own.

    `hang` puts an image (uint8 [H, W, 3], or None for nothing) behind the scene of every browser. A camera is viser's
    handle; the one that moved last counts.
    """

    legend = ""  # what the colours of the present mode mean, or why there is no image

    def __init__(self, renders: Renders, hang: Callable[[np.ndarray | None], None]) -> None:
        self.mode: str | None = None
        self._renders = renders
        self._hang = hang
        self._background = (1.0, 1.0, 1.0)
        self._camera: Any = None
        self._moved_at = 0.0
        self._left = 0  # fine images still to be asked for
        self._waits = False  # for an answer to a fine shot
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, mode: str | None) -> None:
        """Show renders in `mode`, or none."""
        self.mode, self.legend = mode, ""
        if mode is None:
            self._renders.ask(None)
            self._hang(None)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._follow, name="sdlab-render", daemon=True)
            self._thread.start()
        self._look()

    def dress(self, background: tuple[float, float, float]) -> None:
        """Take another colour (rgb in [0, 1]) for what is empty."""
        self._background = background
        self._look()

    def moved(self, camera: Any) -> None:
        """Take note that a browser's camera is elsewhere."""
        self._camera, self._moved_at = camera, time.monotonic()
        self._look()

    def close(self) -> None:
        """End the thread without waiting."""
        self._over.set()
        if self.mode is not None:
            self._renders.ask(None)

    def _look(self) -> None:
        """Ask for a quick image now, and for fine ones once the camera is still."""
        self._left, self._waits = FINE_IMAGES, False
        self._ask(QUICK)

    def _ask(self, seconds: float) -> None:
        if self.mode is None or self._camera is None or self._over.is_set():
            return
        shot = shot_of(self._camera, self.mode, self._background, seconds)
        if shot is not None:
            self._renders.ask(shot)

    def _follow(self) -> None:
        version = self._renders.seen.version
        while not self._over.is_set():
            came = self._renders.seen.wait(version, WAIT)
            if came:
                version = self._renders.seen.version  # read before the image: one in between is shown next time
                self._take(self._renders.seen.get())
            if self._left and not self._waits and time.monotonic() - self._moved_at > STILL:
                self._left, self._waits = self._left - 1, True
                self._ask(FINE)

    def _take(self, seen: Rendered | None) -> None:
        if seen is None or seen.shot.mode != self.mode:
            return  # an answer to an earlier mode
        self._waits = False
        self.legend = seen.trouble if seen.shown is None else seen.shown.legend
        self._hang(None if seen.shown is None else seen.shown.picture)


def shot_of(camera: Any, mode: str, background: tuple[float, float, float], seconds: float) -> Shot | None:
    """Return the shot of viser's camera; None before the browser has reported it, and for numbers that are none."""
    read = _reading(camera)
    if read is None:
        return None
    rows, fov, width, height = read
    return Shot(tuple(map(tuple, rows.tolist())), fov, width / height, mode, background, seconds)


def cameras_of(camera: Any) -> Cameras | None:
    """Return viser's camera as ours, in the size of the browser's view; None as `shot_of` does."""
    read = _reading(camera)
    if read is None:
        return None
    rows, fov, width, height = read
    x, y, z = (-rows[:3, :3].T @ rows[:3, 3]).tolist()
    focal = 0.5 * height / math.tan(fov / 2)
    return Cameras(
        viewmats=torch.tensor(rows[None], dtype=torch.float32),
        Ks=torch.tensor([[[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]]),
        width=round(width),
        height=round(height),
        azimuth=torch.tensor([math.degrees(math.atan2(y, x))]),
        elevation=torch.tensor([math.degrees(math.atan2(z, math.hypot(x, y)))]),
        distance=torch.tensor([math.hypot(x, y, z)]),
    )


def _reading(camera: Any) -> tuple[np.ndarray, float, float, float] | None:
    """Return the world-to-camera matrix [4, 4] (OpenCV), the vertical field of view in radians, width and height."""
    try:
        wxyz, position = np.asarray(camera.wxyz, float), np.asarray(camera.position, float)
        fov, width, height = float(camera.fov), float(camera.image_width), float(camera.image_height)
    except (AssertionError, TypeError, ValueError):
        return None
    numbers = np.concatenate([wxyz, position, [fov, width, height]])
    if not np.isfinite(numbers).all() or not 0.01 < fov < 3.1 or min(width, height) < 1 or not wxyz.any():
        return None
    rotation = SO3(wxyz / np.linalg.norm(wxyz)).as_matrix().T  # world to camera
    return np.vstack([np.column_stack([rotation, -rotation @ position]), [0, 0, 0, 1]]), fov, width, height
