"""Pictures of the page's first minute: a thumbnail of each example, and the recording that plays while a page opens.

`python -m sdlab examples` makes them from the examples (assets/examples/examples.toml) and the default preset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdlab.cameras import look_at
from sdlab.examples import OPENING, OPENING_END, Example, load
from sdlab.export.writers import Viewed
from sdlab.live.session import Session
from sdlab.options import DEFAULT_PRESET
from sdlab.pictures import to_uint8
from sdlab.scenes import FlatScene
from sdlab.settings import Settings, preset, preset_names
from sdlab.types import Cameras

WIDTH, HEIGHT = 224, 168  # pixels of a thumbnail, which the page shows at half this size
QUALITY = 78  # of WebP, 0 to 100
GAP = 2  # pixels between the two halves of a thumbnail
AZIMUTH, ELEVATION, DISTANCE, FOVY = 25.0, 15.0, 3.3, 34.0  # camera of thumbnails; degrees and scene units
CHANGED_START = ("sketch", "drawn")  # values of scene.start for which a thumbnail shows what the run began with, too

SIDE = 320  # pixels of the recording
GROWTH, TURN = 36, 24  # its frames: while the object grows, and while it is turned once
EARLY = 1.6  # exponent; above 1 there are more frames of the first steps, in which most happens
FRAME_MS, LAST_MS = 120, 1500
OPENING_QUALITY, ALPHA_QUALITY = 45, 60  # with less alpha, soft edges become contours


def make(names: Sequence[str], out: Path, device: torch.device | str = "cpu") -> Iterator[Path]:
    """Write the pictures of these examples, or of all if none is named, into `out`; yield each file. ValueError for an
    unknown name."""
    found = load({name: preset(name) for name in preset_names()})
    if odd := [name for name in names if name not in (*found, OPENING)]:
        raise ValueError(f"there is no example {odd[0]}; there are {', '.join((*found, OPENING))}")
    out.mkdir(parents=True, exist_ok=True)
    for name in names or (*found, OPENING):
        if name == OPENING:
            yield from record(out, preset(DEFAULT_PRESET), device)
        else:
            yield picture_of(found[name], out, device)


# ---- thumbnails --------------------------------------------------------------------------------------------------


def picture_of(example: Example, out: Path, device: torch.device | str = "cpu") -> Path:
    """Run an example to its end and write its thumbnail: one picture, or two halves for two lanes, for a start that
    the run changes, and for two prompts."""
    parts = [part for settings in example.lanes for part in _parts(settings, device)][:2]
    file = out / example.thumbnail
    joined(parts).save(file, quality=QUALITY, method=6)
    return file


def _parts(settings: Settings, device: torch.device | str) -> list[Image.Image]:
    """Return the pictures of a run that a thumbnail shows."""
    session = Session(settings, device)
    shown: list[Image.Image] = []
    if getattr(settings.scene, "start", "") in CHANGED_START:
        session.prepare()
        shown.append(_picture(session))
    session.run(until=settings.planned_end)
    if settings.scene.prompts > 1:
        frame = session.latest.get()
        assert frame is not None, "a run publishes its last frame"
        return [Image.fromarray(view) for view in frame.preview[: settings.scene.prompts]]
    return [*shown, _picture(session)]


def _picture(session: Session) -> Image.Image:
    """Return the present scene: one image of a flat scene, otherwise a render."""
    scene, s = session.state.scene, session.effective
    if isinstance(scene, FlatScene):
        return Image.fromarray(scene.pictures(session.prior, session.bank.prompt(s.prompt))[0])
    return _render(scene, WIDTH, HEIGHT)


def _render(scene: Viewed, width: int, height: int) -> Image.Image:
    cams = _camera(AZIMUTH, ELEVATION, DISTANCE, FOVY, width, height)
    with torch.no_grad():
        return Image.fromarray(to_uint8(scene.render(cams, torch.ones(1, 3)).rgb)[0])


def _camera(azimuth: float, elevation: float, distance: float, fovy: float, width: int, height: int) -> Cameras:
    a, e, r = torch.tensor([[azimuth], [elevation], [distance]])
    return look_at(a, e, r, fovy, width, height)


def joined(parts: Sequence[Image.Image]) -> Image.Image:
    """Return a thumbnail of one picture, or of two side by side, each cropped to fit."""
    width = (WIDTH - GAP * (len(parts) - 1)) // len(parts)
    thumbnail = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    for number, part in enumerate(parts):
        thumbnail.paste(_cropped(part, width, HEIGHT), (number * (width + GAP), 0))
    return thumbnail


def _cropped(picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return the centre of a picture at this size."""
    scale = max(width / picture.width, height / picture.height)
    w, h = width / scale, height / scale
    left, top = (picture.width - w) / 2, (picture.height - h) / 2
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + w, top + h))


# ---- the recording -----------------------------------------------------------------------------------------------


def record(out: Path, settings: Settings, device: torch.device | str = "cpu") -> list[Path]:
    """Write a run as an animated WebP with transparency, and its last picture, which stands in for it; return both.

    The camera is that of the page's 3D view, so that the live view takes the place of the recording without a jump.
    """
    frames = list(_frames(Session(settings, device), settings.planned_end))
    film, still = out / f"{OPENING}.webp", out / f"{OPENING_END}.webp"
    lasting = [FRAME_MS] * (len(frames) - 1) + [LAST_MS]
    options: dict[str, Any] = {"quality": OPENING_QUALITY, "method": 6, "alpha_quality": ALPHA_QUALITY}
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=lasting, loop=0, **options)
    frames[-1].save(still, **options)
    return [film, still]


def _frames(session: Session, steps: int) -> Iterator[Image.Image]:
    """Yield the pictures of a run while it takes its steps, then of one turn around the object."""
    for number in range(GROWTH):
        session.run(until=round(steps * (number / (GROWTH - 1)) ** EARLY))
        yield _seen(session, 0.0)
    for number in range(1, TURN + 1):
        yield _seen(session, 360.0 * number / TURN)


def _seen(session: Session, turned: float) -> Image.Image:
    """Return the object as the page's 3D view shows it, turned by this many degrees, over nothing."""
    scene = session.state.scene
    assert not isinstance(scene, FlatScene), "the default preset makes an object"
    with torch.no_grad():
        render = scene.render(_eye(turned), torch.zeros(1, 3))
    rgb = render.rgb / render.alpha.clamp_min(1e-3)  # straight, not premultiplied
    rgba = to_uint8(torch.cat([rgb, render.alpha], 1).clamp(0, 1))
    return Image.fromarray(np.asarray(rgba[0]), "RGBA")


def _eye(turned: float) -> Cameras:
    """Return the initial camera of the page's 3D view."""
    from sdlab.viewport.splat_view import EYE, FOVY

    x, y, z = EYE
    distance = math.hypot(x, y, z)
    azimuth, elevation = math.degrees(math.atan2(y, x)), math.degrees(math.asin(z / distance))
    return _camera(azimuth + turned, elevation, distance, math.degrees(FOVY), SIDE, SIDE)
