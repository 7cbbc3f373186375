"""Render a run as an animated GIF, the README's moving picture: `python -m sdlab.experiments.readme_picture`.

An object grows from a ball of Gaussians, then loss and prompt change mid-run. Left, the object from an orbiting camera;
right, one view of the step as the lens shows it: render, noised render, the prior's guess, and the update.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdlab.cameras import look_at
from sdlab.export.writers import Viewed
from sdlab.lens import LensPictures
from sdlab.live.messages import Patch
from sdlab.live.session import Session
from sdlab.pictures import to_uint8
from sdlab.scenes import seen_from_all_sides
from sdlab.settings import Settings, preset

OUT = Path("assets/readme/run.gif")
SCRIPT: dict[int, dict[str, str]] = {  # step -> changes
    0: {"prompt.text": "a red bear"},
    480: {"active": "jsd"},
    660: {"active": "sds", "prompt.text": "a blue bear wearing a hat"},
}
STEPS = 960
FRAME_STEPS, FRAME_SECONDS, LAST_SECONDS = 12, 0.1, 2.0
ORBIT, ELEVATION, DISTANCE, FOVY = 360.0, 18.0, 2.95, 40.0  # degrees over the run; degrees; scene units; degrees
WIDTH, SIDE, TILE, MARGIN, HEAD = 480, 300, 84, 6, 36  # pixels: of a frame, the render, a lens picture, gaps, caption
TILES = {"render": "render", "noisy": "noised", "x0": "prior's guess", "push": "update"}  # lens label -> caption
COLOURS = 128
GROUND, INK, FAINT, ACCENT = (255, 255, 255), (40, 40, 46), (130, 130, 140), (200, 60, 40)
NEWS_FRAMES = 12  # for which a change is highlighted


def make(out: Path = OUT, script: dict[int, dict[str, str]] = SCRIPT, steps: int = STEPS) -> int:
    """Run the script and write the GIF; return its size in bytes."""
    frames = list(_frames(script, steps))
    palette = Image.fromarray(np.concatenate([np.asarray(f) for f in frames[:: max(len(frames) // 12, 1)]]))
    palette = palette.quantize(COLOURS, dither=Image.Dither.NONE)  # one for all frames, so that little changes
    shown = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    seconds = [FRAME_SECONDS] * (len(shown) - 1) + [LAST_SECONDS]
    out.parent.mkdir(parents=True, exist_ok=True)
    shown[0].save(out, save_all=True, append_images=shown[1:], duration=[int(1000 * s) for s in seconds], loop=0)
    return out.stat().st_size


def _frames(script: dict[int, dict[str, str]], steps: int) -> Iterator[Image.Image]:
    session = Session(preset("toybox").patch("steps", steps))
    session.watch_lens(True)
    for step, changes in script.items():
        session.plan(step, Patch(tuple(changes.items())))
    news: dict[str, int] = {}  # knob -> frames for which its change is still highlighted
    for number, until in enumerate(range(FRAME_STEPS, steps + 1, FRAME_STEPS)):
        before = session.effective
        session.run(until=until)
        news |= {path: NEWS_FRAMES for path, _ in before.differences(session.effective) if number > 0}
        scene = seen_from_all_sides(session.state.scene)
        seen = session.lens.get() or LensPictures()
        yield _frame(session.effective, until, _view(scene, ORBIT * until / steps + 20.0), seen, set(news))
        news = {path: left - 1 for path, left in news.items() if left > 1}
        print(f"\rstep {until} of {steps}", end="", file=sys.stderr, flush=True)


def _view(scene: Viewed, azimuth: float) -> Image.Image:
    angles = (torch.tensor([value]) for value in (azimuth, ELEVATION, DISTANCE))
    with torch.no_grad():
        rgb = scene.render(look_at(*angles, FOVY, SIDE, SIDE), torch.ones(1, 3)).rgb
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
        x, y = right + (number % 2) * (TILE + MARGIN), HEAD + 50 + (number // 2) * (TILE + 30)
        if found:
            frame.paste(Image.fromarray(seen.pictures[found[0]]).resize((TILE, TILE), Image.Resampling.NEAREST), (x, y))
            draw.text((x, y - 14), caption, fill=FAINT, font=small)
    return frame


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    print(f"\n{target}: {make(target) / 1e6:.1f} MB")
