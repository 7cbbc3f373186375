"""The picture that social networks show beside a link to a Space: `python -m sdlab.experiments.card`.

It is made of the recording that plays while the page opens (`sdlab examples` makes that): four moments of a run, from
the ball of Gaussians to the finished object.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageSequence

from sdlab.examples import FOLDER, OPENING

OUT = Path("assets/readme/card.png")
WIDTH, HEIGHT = 1200, 630  # pixels, as social networks want it
SHARES = (0.0, 0.1, 0.2, 0.6)  # of the recording, which shows the growth in its first 36 of 60 frames
SIDE, TOP, OVERLAP = 384, 206, 100  # pixels: of a moment, above it, and by which two share the card
TITLE, LINE = "Score Distillation Lab", "Watch 3D objects being distilled, live. Change the loss mid-run."
GROUND, INK, FAINT = (246, 246, 249), (32, 32, 38), (98, 98, 110)


def make(out: Path = OUT, recording: Path = FOLDER / f"{OPENING}.webp") -> Path:
    """Write the card as PNG; return its path."""
    with Image.open(recording) as film:
        frames = [frame.convert("RGBA") for frame in ImageSequence.Iterator(film)]
    card = Image.new("RGB", (WIDTH, HEIGHT), GROUND)
    draw = ImageDraw.Draw(card)
    draw.text((64, 56), TITLE, INK, ImageFont.load_default(64))
    draw.text((66, 140), LINE, FAINT, ImageFont.load_default(30))
    _paste(card, [frames[round(share * (len(frames) - 1))] for share in SHARES])
    out.parent.mkdir(parents=True, exist_ok=True)
    card.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    return out


def _paste(card: Image.Image, moments: Sequence[Image.Image]) -> None:
    """Put the moments in a row, centred."""
    step = SIDE - OVERLAP
    left = (WIDTH - step * (len(moments) - 1) - SIDE) // 2
    for number, moment in enumerate(moments):
        shown = moment.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        card.paste(shown, (left + number * step, TOP), shown)


if __name__ == "__main__":
    file = make(*map(Path, sys.argv[1:2]))
    print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
