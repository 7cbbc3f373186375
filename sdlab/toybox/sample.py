"""Sampling from a toybox folder and a grid of pictures with captions.

Two things that otherwise look like a bad network:
- the scaled-linear schedule ends at sqrt(alpha_bar) = 0.068, not at 0, so pure noise is no sample of z_999: its mean
  is that of a gray picture and the background comes out in odd colours. Sampling starts from the noised white picture,
  which under a schedule that ends in noise (squaredcos_cap_v2) makes no difference;
- guidance of 5 and more pushes x0-hat far out of [-1, 1]; it is clipped, and eps recomputed from the clipped x0-hat
  (what diffusers calls `use_clipped_model_output`), or the steps do not fit together and the picture explodes.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from sdlab.rng import StepRng
from sdlab.toybox.model import Toybox, encode_captions

ZOOMED = 128  # pixels a side of an enlarged picture, about
BATCH = 64


def guided_eps(
    box: Toybox, z_t: torch.Tensor, t: int, text: torch.Tensor, empty: torch.Tensor, scale: float
) -> torch.Tensor:
    """eps_u + scale (eps_c - eps_u), the network evaluated once for both halves; eps from v: Salimans & Ho 2022, D."""
    hidden = torch.cat([empty.expand_as(text), text])
    times = torch.full((len(hidden),), t, device=z_t.device)
    unconditional, conditional = box.unet(
        z_t.repeat(2, 1, 1, 1), times, encoder_hidden_states=hidden, return_dict=False
    )[0].chunk(2)
    guided = unconditional + scale * (conditional - unconditional)
    if box.scheduler.config["prediction_type"] == "epsilon":
        return guided
    alpha_bar = box.scheduler.alphas_cumprod[t].to(z_t)
    return alpha_bar.sqrt() * guided + (1 - alpha_bar).sqrt() * z_t


@torch.no_grad()
def sample(box: Toybox, prompts: Sequence[str], *, scale: float = 4.0, steps: int = 30, seed: int = 0) -> np.ndarray:
    """Deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma = 0): float32 [n, S, S, 3] in [0, 1].

    Picture i of a call depends on (seed, i) and its prompt alone, not on the other prompts.
    """
    device = next(box.unet.parameters()).device
    side, channels = int(box.unet.config["sample_size"]), int(box.unet.config["in_channels"])
    alphas_cumprod = box.scheduler.alphas_cumprod.to(device)
    tokens = encode_captions(box.tokenizer, ["", *prompts]).to(device)
    empty, *_ = box.text_encoder(tokens[:1])[0].split(1)
    times = [int(t) for t in torch.linspace(999, 0, steps + 1)[:-1].round()]
    finished = []
    for begin in range(0, len(prompts), BATCH):
        text = box.text_encoder(tokens[1 + begin : 1 + begin + BATCH])[0]
        draws = (StepRng(seed, begin + i)("sample") for i in range(len(text)))
        noise = torch.cat([torch.randn(1, channels, side, side, generator=g) for g in draws]).to(device)
        z = alphas_cumprod[999].sqrt() + (1 - alphas_cumprod[999]).sqrt() * noise  # white is z = 1
        for t, following in zip(times, [*times[1:], -1], strict=True):
            now = alphas_cumprod[t]
            then = alphas_cumprod[following] if following >= 0 else torch.ones((), device=device)
            eps = guided_eps(box, z, t, text, empty, scale)
            x0 = ((z - (1 - now).sqrt() * eps) / now.sqrt()).clamp(-1, 1)
            eps = (z - now.sqrt() * x0) / (1 - now).sqrt()
            z = then.sqrt() * x0 + (1 - then).sqrt() * eps
        finished.append(box.decode(z))
    return torch.cat(finished).permute(0, 2, 3, 1).cpu().numpy()


def save_grid(rgb: np.ndarray, captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Pictures [n, S, S, 3] in [0, 1], enlarged, row by row, each with its caption underneath."""
    columns = min(columns, len(rgb))
    side = rgb.shape[1] * max(ZOOMED // rgb.shape[1], 1)
    font = ImageFont.load_default(size=11)
    lines = [textwrap.wrap(caption, width=side // 6) for caption in captions]
    line_height = 13
    cell_width, cell_height = side + 6, side + 6 + line_height * max(map(len, lines))
    rows = -(-len(rgb) // columns)
    grid = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    pen = ImageDraw.Draw(grid)
    for i, picture in enumerate(rgb):
        left, top = i % columns * cell_width + 3, i // columns * cell_height + 3
        pixels = (np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8)
        grid.paste(Image.fromarray(pixels).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for k, line in enumerate(lines[i]):
            pen.text((left, top + side + k * line_height), line, fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid.save(path)
