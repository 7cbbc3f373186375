"""The scene as its own rasteriser draws it, from the camera of somebody who looks at it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from sdlab import modes
from sdlab.channel import Latest, Turn
from sdlab.errors import reason
from sdlab.live.state import Run
from sdlab.modes import Shown
from sdlab.scenes import AnyScene, FlatScene
from sdlab.types import Cameras

SMALLEST, LARGEST = 64, 720  # pixels, the longer side of an image
FIRST = 128  # pixels, the side of a square image whose cost is not known yet
QUICK, FINE = 0.08, 0.5  # seconds that an image may take while camera or run move, and when both are still
SHARE = 2.0  # pause between images, as a multiple of the last one's duration, while the run goes on


@dataclass(frozen=True)
class Shot:
    """What somebody wants to see. `seconds` is how long the image may take, which determines its size."""

    viewmat: tuple[tuple[float, ...], ...]  # 4 x 4, world to camera (OpenCV)
    fovy: float  # radians
    aspect: float  # width / height
    mode: str  # one of `sdlab.modes.MODES`
    background: tuple[float, float, float]  # rgb
    seconds: float = QUICK


class Rendered(NamedTuple):
    """The answer to a shot."""

    shot: Shot
    shown: Shown | None  # None if it could not be drawn
    trouble: str = ""  # why


class Rendering:
    """What one session renders for a viewer. `seen` may be read and `ask` called by any thread; the rest is for the
    owner of the run, who is asked by `call` to call `look`."""

    def __init__(self, turn: Turn, call: Callable[[], None]) -> None:
        self.seen: Latest[Rendered] = Latest()
        self._turn = turn
        self._call = call
        self._shot: Shot | None = None  # None while nobody looks
        self._called = False
        self._due = 0.0
        self._per_pixel = math.inf, math.inf  # seconds, of the last two images: one of them may include compiling

    def ask(self, shot: Shot | None) -> None:
        """Have `shot` rendered in place of the one before, and again as the run goes on; None ends it."""
        self._shot = shot
        if not self._called:  # one call answers all shots until then: a camera that is dragged asks for many
            self._called = True
            self._call()

    def answer(self, run: Run, running: bool) -> None:
        """Answer `ask`; while the run goes on, this may wait for a later `look`."""
        self._called = False
        self.look(run, now=not running)

    def look(self, run: Run, now: bool = False) -> None:
        """Render if somebody looks and it is due, or `now`."""
        shot = self._shot
        if shot is None or run.state is None or not (now or time.monotonic() >= self._due):
            return
        took = 0.0
        try:
            with self._turn:  # waiting for it is no time of the render
                started = time.perf_counter()
                seen = self._rendered(run.state.scene, shot if now else replace(shot, seconds=QUICK))
                took = time.perf_counter() - started
        except Exception as e:  # a look must not end a run
            seen = Rendered(shot, None, reason(e))
        if seen.shown is not None:
            height, width, _ = seen.shown.picture.shape
            self._per_pixel = self._per_pixel[1], took / (height * width)
        self.seen.set(seen)
        self._due = time.monotonic() + SHARE * took

    @torch.no_grad()
    def _rendered(self, scene: AnyScene, shot: Shot) -> Rendered:
        if isinstance(scene, FlatScene):
            return Rendered(shot, None, "a flat scene has no other sides")
        cams, behind = camera_of(shot, min(self._per_pixel)), torch.tensor(shot.background)
        return Rendered(shot, modes.show(shot.mode, scene.render(cams, behind[None]), cams, behind))


def camera_of(shot: Shot, per_pixel: float) -> Cameras:
    """Return the camera of a shot, as large as its time allows at `per_pixel` seconds (infinity: not known yet)."""
    aspect = min(max(shot.aspect, 0.1), 10.0)
    pixels = shot.seconds / per_pixel if math.isfinite(per_pixel) else FIRST**2
    longest = min(max(math.sqrt(pixels * max(aspect, 1 / aspect)), SMALLEST), LARGEST)
    width, height = (max(round(longest * min(part, 1.0)), 1) for part in (aspect, 1 / aspect))
    focal = 0.5 * height / math.tan(shot.fovy / 2)
    Ks = torch.tensor([[[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]]])
    viewmat, unknown = torch.tensor(shot.viewmat), torch.zeros(1)
    return Cameras(viewmat[None], Ks, width, height, unknown, unknown, viewmat[:3, 3].norm()[None])
