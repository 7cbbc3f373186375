"""What a run leaves behind for other programs: a PLY of the Gaussians, a turntable as a strip and as a film."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sdlab.cameras import CameraSettings, turntable
from sdlab.clouds import SH_C0
from sdlab.pictures import to_uint8
from sdlab.scenes import Scene
from sdlab.types import RawSplats

STRIP_VIEWS = 8
SHOWN = ("turntable.png", "pictures.png", "trajectories.png", "samples.png")  # what a run of any scene may leave


def write_ply(path: Path, s: RawSplats) -> int:
    """Binary PLY in the layout of the 3DGS release (INRIA): x y z, normals, f_dc, opacity logit, log-scales, wxyz.

    World axes are kept (+z up). Gaussians with a value that is not finite are left out; returns how many were
    written. Raises OSError when the file cannot be written.
    """
    n = len(s.means)
    columns: dict[str, np.ndarray] = {}
    columns.update(zip("xyz", s.means.T, strict=True))
    columns.update({name: np.zeros(n) for name in ("nx", "ny", "nz")})
    columns.update({f"f_dc_{i}": (s.rgbs[:, i] - 0.5) / SH_C0 for i in range(3)})
    columns["opacity"] = s.opacity_logits
    columns.update({f"scale_{i}": s.log_scales[:, i] for i in range(3)})
    columns.update({f"rot_{i}": s.quats[:, i] for i in range(4)})
    table = np.empty(n, dtype=[(name, "<f4") for name in columns])
    for name, values in columns.items():
        table[name] = values
    finite = np.all([np.isfinite(table[name]) for name in columns], axis=0)
    table = table[finite]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    path.write_bytes("\n".join(header).encode("ascii") + table.tobytes())
    return len(table)


@torch.no_grad()
def render_turntable(scene: Scene, camera: CameraSettings, n: int, size: int) -> np.ndarray:
    """`n` views once around before white, starting at the front: uint8 [n, size, size, 3]."""
    cams = turntable(n, camera, size)
    pictures = []
    for start in range(0, n, 8):  # a few at a time keeps memory flat for large pictures
        some = cams[start : start + 8]
        pictures.append(to_uint8(scene.render(some, torch.ones(len(some), 3)).rgb))
    return np.concatenate(pictures)


def write_results(folder: Path, scene: Scene, camera: CameraSettings, size: int = 256) -> list[Path]:
    """scene.ply, turntable.png (8 views in a strip) and turntable.mp4 (once around in 3 s) in `folder`.

    `size` in pixels is rounded up to an even number, which H.264 needs.
    """
    import imageio.v3 as iio
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    size += size % 2
    files = []
    splats = scene.splats()
    if splats is not None:
        files.append(folder / "scene.ply")
        write_ply(files[-1], splats)
    strip = render_turntable(scene, camera, STRIP_VIEWS, size)
    files.append(folder / "turntable.png")
    Image.fromarray(np.concatenate(list(strip), axis=1)).save(files[-1])
    film = render_turntable(scene, camera, 72, size)
    files.append(folder / "turntable.mp4")
    iio.imwrite(files[-1], film, plugin="FFMPEG", fps=24, codec="libx264", macro_block_size=2)
    return files


def contact_sheet(runs: Sequence[Path], out: Path) -> None:
    """The turntables, or what scenes of other kinds leave, of several run folders under each other, each with its
    prompt and time, into one PNG.

    Raises ValueError that names the folder that is not a finished run.
    """
    from PIL import Image

    strips, captions = [], []
    for run in runs:
        try:
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            shown = next((run / name for name in SHOWN if (run / name).is_file()), run / SHOWN[0])
            strips.append(Image.open(shown).convert("RGB"))
        except (OSError, ValueError) as e:
            raise ValueError(f"{run} is not the folder of a finished run: {e}") from e
        captions.append(f"{result['prompt']}   {result['loss']}, {result['steps']} steps, {result['seconds']} s")
    stack_strips([np.asarray(strip) for strip in strips], captions, out)


def stack_strips(strips: Sequence[np.ndarray], captions: Sequence[str], out: Path) -> None:
    """Strips, uint8 [H, W, 3] each, under each other, each below its caption, into one PNG."""
    from PIL import Image, ImageDraw, ImageFont

    margin, line = 8, 26
    width = max(strip.shape[1] for strip in strips)
    height = sum(strip.shape[0] + line for strip in strips)
    sheet = Image.new("RGB", (width + 2 * margin, height + margin), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=16)
    y = margin // 2
    for strip, caption in zip(strips, captions, strict=True):
        draw.text((margin, y), caption, fill=(70, 70, 78), font=font)
        sheet.paste(Image.fromarray(strip), (margin, y + line))
        y += strip.shape[0] + line
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
