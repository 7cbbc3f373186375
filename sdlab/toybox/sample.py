"""DDIM samples of a prior, and a grid of images with captions.

The network runs in the prior's own engine, as in a live run. Two details that otherwise look like a bad network:
- the scaled-linear schedule ends at sqrt(alpha_bar) = 0.068, not at 0, so pure noise is not a sample of z_999: it has
  the mean of a gray image, and backgrounds come out in odd colours. Sampling therefore starts from a noised white
  image, which makes no difference for a schedule that ends in pure noise (squaredcos_cap_v2);
- a guidance scale of 5 or more pushes x0-hat far out of [-1, 1]. It is clipped, and eps is recomputed from the clipped
  x0-hat (`use_clipped_model_output` in diffusers); otherwise the steps are inconsistent and the image diverges.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sdlab.rng import StepRng
from sdlab.toybox import SCALE
from sdlab.types import Cond, Prior, cat_conds

ZOOMED = 128  # approximate side in pixels of an enlarged image
CAPTION_LINES = 5  # maximum under an image
BATCH = 32  # images per batch, each evaluated with and without its prompt


def sample(
    prior: Prior,
    prompts: Sequence[str],
    *,
    scale: float = SCALE,
    steps: int = 30,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Sample by deterministic DDIM (arXiv 2010.02502, eq. 12 with sigma = 0): float32 [n, S, S, 3] in [0, 1].

    Image i of a call depends only on (seed, i) and its prompt, not on the other prompts, up to the engine's rounding.
    `scale` is the guidance scale (form A in `sdlab.guidance`); `progress` is called with the number of finished images.
    """
    batch = min(BATCH, len(prompts))
    prior.prepare([2 * batch])
    embedded = {text: prior.embed(text) for text in ["", *dict.fromkeys(prompts)]}
    white = prior.encode(torch.ones(1, 3, prior.image_size, prior.image_size, device=prior.device))
    finished: list[Tensor] = []
    for begin in range(0, len(prompts), batch):
        texts = list(prompts[begin : begin + batch])
        count = len(texts)
        texts += [""] * (batch - count)  # pad: engines compile for one batch size
        draws = (StepRng(seed, begin + i)("sample") for i in range(batch))
        noise = torch.cat([torch.randn(1, *prior.shape, generator=g) for g in draws]).to(prior.device)
        cond = cat_conds([embedded[text] for text in [*[""] * batch, *texts]])
        finished.append(prior.decode(denoised(prior, white, noise, cond, scale, steps))[:count].cpu())
        progress(begin + count)
    return torch.cat(finished).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def denoised(prior: Prior, white: Tensor, noise: Tensor, cond: Cond, scale: float, steps: int) -> Tensor:
    """Return z0 [B, C, H, W] from noise of that shape; `cond` holds B empty prompts followed by the B prompts."""
    times = [int(t) for t in torch.linspace(999, 0, steps + 1)[:-1].round()]
    schedule = [prior.marginal(torch.tensor([t], device=prior.device)) for t in times]
    alpha, sigma = schedule[0]
    z = alpha * white + sigma * noise
    for t, (alpha, sigma), following in zip(times, schedule, [*schedule[1:], None], strict=True):
        both = torch.full((2 * len(z),), t, device=prior.device)
        unconditional, conditional = prior.eps(z.repeat(2, 1, 1, 1), both, cond).chunk(2)
        eps = unconditional + scale * (conditional - unconditional)
        x0 = ((z - sigma * eps) / alpha).clamp(-1, 1)
        if following is None:
            return x0
        eps = (z - alpha * x0) / sigma
        z = following[0] * x0 + following[1] * eps
    return z


def save_grid(rgb: np.ndarray, captions: Sequence[str], path: Path, columns: int = 8) -> None:
    """Save images [n, S, S, 3] in [0, 1] as a grid, row by row, enlarged, each with its caption below.

    Captions longer than CAPTION_LINES are truncated.
    """
    columns = min(columns, len(rgb))
    side = rgb.shape[1] * max(ZOOMED // rgb.shape[1], 1)
    font = ImageFont.load_default(size=11)
    lines = [textwrap.wrap(caption, side // 6, max_lines=CAPTION_LINES, placeholder=" ...") for caption in captions]
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
