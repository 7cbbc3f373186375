"""Render a run as an animated GIF, the README's moving picture: `python -m sdlab.experiments.readme_picture`.

An object grows from a ball of Gaussians, then loss and prompt change mid-run. Left, the object from an orbiting camera;
right, one view of the step as the lens shows it: render, noised render, the prior's guess, and the update.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from sdlab.cameras import look_at
from sdlab.export.writers import Viewed
from sdlab.lens import LensPictures
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.options import DEFAULT_PRESET
from sdlab.pictures import to_uint8
from sdlab.scenes import require_camera_scene
from sdlab.settings import Settings, preset

OUT = Path("assets/readme/run.gif")
PLANNED, STEPS = 330, 750  # planned length, over which schedules and learning rates change; steps in all
SCRIPT: dict[int, dict[str, Any]] = {  # step -> changes
    0: {"prompt.text": "a red bear", "steps": PLANNED},
    330: {"active": "vdm"},
    405: {"active": "sds", "prompt.text": "a blue bear", "schedule.start": 405},
}
FRAME_STEPS, FRAME_SECONDS, LAST_SECONDS = 15, 0.12, 2.0
SWAY, SWAY_FRAMES = 65.0, 34  # camera swing: degrees to either side of the front, frames per period
ELEVATION, DISTANCE, FOVY = 15.0, 3.15, 40.0  # degrees; scene units; degrees
WIDTH, SIDE, TILE, MARGIN, HEAD = 480, 256, 102, 8, 36  # pixels: of a frame, the render, a lens picture, gaps, caption
TILES = {"render": "render", "noisy": "noised", "x0": "prior's guess", "push": "update"}  # lens label -> caption
GROUND, INK, FAINT, ACCENT = (255, 255, 255), (40, 40, 46), (130, 130, 140), (200, 60, 40)
NEWS_FRAMES = 12  # frames for which a change is highlighted


def make(out: Path = OUT, script: dict[int, dict[str, Any]] = SCRIPT, steps: int = STEPS) -> int:
    """Run the script and write the GIF; return its size in bytes."""
    shown = [frame.quantize(256, dither=Image.Dither.NONE) for frame in _frames(script, steps)]
    seconds = [FRAME_SECONDS] * (len(shown) - 1) + [LAST_SECONDS]
    out.parent.mkdir(parents=True, exist_ok=True)
    shown[0].save(out, save_all=True, append_images=shown[1:], duration=[int(1000 * s) for s in seconds], loop=0)
    return out.stat().st_size


def _frames(script: dict[int, dict[str, Any]], steps: int) -> Iterator[Image.Image]:
    session = Session(preset(DEFAULT_PRESET))
    session.watch_lens(True)
    for step, changes in script.items():
        session.plan(step, Patch(tuple(changes.items())))
    news: dict[str, int] = {}  # knob -> frames for which its change is still highlighted
    for number, until in enumerate(range(FRAME_STEPS, steps + 1, FRAME_STEPS)):
        before = session.effective
        session.run(until=until)
        news |= {path: NEWS_FRAMES for path, _ in before.differences(session.effective) if number > 0}
        scene = require_camera_scene(session.state.scene)
        seen = session.lens.get() or LensPictures()
        yield _frame(
            session.effective, until, _view(scene, SWAY * math.sin(2 * math.pi * number / SWAY_FRAMES)), seen, set(news)
        )
        news = {path: left - 1 for path, left in news.items() if left > 1}
        print(f"\rstep {until} of {steps}", end="", file=sys.stderr, flush=True)


def _view(scene: Viewed, azimuth: float) -> Image.Image:
    at = torch.tensor([[azimuth], [ELEVATION], [DISTANCE]])
    with torch.no_grad():
        rgb = scene.render(look_at(at[0], at[1], at[2], FOVY, SIDE, SIDE), torch.ones(1, 3)).rgb
    return Image.fromarray(to_uint8(rgb)[0])


def _frame(s: Settings, step: int, view: Image.Image, seen: LensPictures, news: set[str]) -> Image.Image:
    """Compose one frame; what `news` names is highlighted in the caption."""
    frame = Image.new("RGB", (WIDTH, HEAD + SIDE), GROUND)
    frame.paste(view, (0, HEAD))
    draw = ImageDraw.Draw(frame)
    large, small = ImageFont.load_default(size=17), ImageFont.load_default(size=11)
    draw.text((10, 9), f'"{s.prompt.text}"', fill=ACCENT if "prompt.text" in news else INK, font=large)
    right = SIDE + MARGIN
    draw.text((right, 9), s.loss.title, fill=ACCENT if "active" in news else INK, font=large)
    draw.text((WIDTH - 10, 12), f"step {step}", fill=FAINT, font=ImageFont.load_default(size=13), anchor="ra")
    for number, (label, caption) in enumerate(TILES.items()):
        found = [k for k, name in enumerate(seen.labels) if name.startswith(label)]
        x, y = right + (number % 2) * (TILE + MARGIN), HEAD + 18 + (number // 2) * (TILE + 26)
        if found:
            frame.paste(Image.fromarray(seen.pictures[found[0]]).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            draw.text((x, y - 14), caption, fill=FAINT, font=small)
    return frame


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    print(f"\n{target}: {make(target) / 1e6:.1f} MB")
