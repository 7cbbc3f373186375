"""What a run leaves behind for other programs: the Gaussians as PLY and .splat, a turntable as a strip and as a film.

Writers that may take a while call `progress(done, total)` as they go; what it raises ends the work.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sdlab.cameras import CameraSettings, turntable
from sdlab.pictures import to_uint8
from sdlab.raster import choose
from sdlab.scenes import AnyScene, FlatScene, Scene
from sdlab.settings import Settings
from sdlab.starts.clouds import SH_C0
from sdlab.types import Cameras, RawSplats, Render, SplatSnapshot

STRIP_VIEWS = 8
FILM_FRAMES = 72
FILM_RATE = 24  # frames per second
SHOWN = ("turntable.png", "pictures.png", "trajectories.png", "samples.png")  # what a run of any scene may leave
SLUG = 48  # letters of a prompt in a file's name

Tally = Callable[[int, int], None]  # (parts done, parts in total)
Gaussians = TypeVar("Gaussians", RawSplats, SplatSnapshot)
Film = tuple[tuple[int, SplatSnapshot], ...]


def unwatched(done: int, total: int) -> None:
    """A `progress` that nobody looks at."""


@dataclass(frozen=True, eq=False)
class Material:
    """What there was to export at one step: copies that any thread may read while the run goes on."""

    settings: Settings  # as the steps followed them
    step: int
    splats: RawSplats | None = None
    film: Film = ()  # (step, scene) in the order of growth
    pictures: np.ndarray | None = None  # uint8 [M, H, W, 3], of a scene that has no sides

    @property
    def name(self) -> str:
        """The name of its files without what tells the format: ASCII letters, digits and hyphens."""
        s = self.settings
        return f"{slug(s.prompt.text)}-{slug(s.active)}-seed{s.seed}-step{self.step}"


def material_of(
    scene: AnyScene,
    settings: Settings,
    step: int,
    film: Sequence[tuple[int, SplatSnapshot | np.ndarray]] = (),
    pictures: np.ndarray | None = None,
) -> Material:
    """A copy of what a session has made; to be called in the thread that owns `scene`, takes milliseconds.

    `film` is what the run has shown so far (`Timeline.film`), of which steps after `step` are left out; `pictures`,
    uint8 [M, H, W, 3], what a scene without sides shows now. Neither is copied.
    """
    if isinstance(scene, FlatScene):
        return Material(settings, step, pictures=pictures)
    grown = tuple((at, shot) for at, shot in film if at < step and isinstance(shot, SplatSnapshot))
    now = scene.snapshot()
    return Material(settings, step, scene.splats(), grown if now is None else (*grown, (step, now)))


def slug(text: str) -> str:
    """`text` as a part of a file's name: at most `SLUG` of a-z, 0-9 and single hyphens, "untitled" for nothing."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:SLUG].rstrip("-") or "untitled"


def finite(s: Gaussians) -> Gaussians:
    """Those Gaussians of which every number is finite."""
    good = np.all([np.isfinite(column).all(tuple(range(1, column.ndim))) for column in s], axis=0)
    return type(s)(*(column[good] for column in s))


def write_ply(path: Path, s: RawSplats) -> int:
    """Binary PLY in the layout of the 3DGS release (INRIA): x y z, normals, f_dc, opacity logit, log-scales, wxyz.

    World axes are kept (+z up). Gaussians with a value that is not finite are left out; returns how many were
    written. Raises OSError when the file cannot be written.
    """
    s = finite(s)
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
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    header += [f"property float {name}" for name in columns] + ["end_header", ""]
    path.write_bytes("\n".join(header).encode("ascii") + table.tobytes())
    return len(table)


def write_splat(path: Path, s: RawSplats) -> int:
    """The 32 bytes a Gaussian of antimatter15's viewer: place and size as 3 float32 each, RGBA and wxyz as 4 bytes
    each; the large and opaque first, so that a viewer that is still loading shows what matters. Numbers are cut to
    bytes as its converter does it.

    World axes are kept (+z up). Gaussians with a value that is not finite are left out; returns how many were
    written. Raises OSError when the file cannot be written.
    """
    s = finite(s)
    opacities = 1 / (1 + np.exp(-s.opacity_logits.astype(np.float64)))
    order = np.argsort(-np.exp(s.log_scales.astype(np.float64).sum(1)) * opacities, kind="stable")
    table = np.empty(len(order), dtype=[("at", "<f4", 3), ("size", "<f4", 3), ("rgba", "u1", 4), ("turn", "u1", 4)])
    table["at"] = s.means[order]
    table["size"] = np.exp(s.log_scales[order])
    table["rgba"] = _bytes(255 * np.concatenate([s.rgbs, opacities[:, None]], 1)[order])
    lengths = np.maximum(np.linalg.norm(s.quats, axis=1, keepdims=True), 1e-12)
    table["turn"] = _bytes(128 + 128 * (s.quats / lengths)[order])
    path.write_bytes(table.tobytes())
    return len(table)


def _bytes(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


@runtime_checkable
class Viewed(Protocol):
    """What can be rendered: a scene, or Gaussians at rest."""

    def render(self, cams: Cameras, background: Tensor) -> Render: ...


class Still:
    """Gaussians that no longer change, to be looked at from any thread; on the CPU, because the GPU is the run's."""

    def __init__(self, s: RawSplats) -> None:
        s = finite(s)
        means, quats, log_scales, logits, rgbs = (torch.from_numpy(np.ascontiguousarray(column)) for column in s)
        self._rasterize = choose("cpu")
        self._gaussians = (means, quats, log_scales.exp(), logits.sigmoid(), rgbs)

    @torch.no_grad()
    def render(self, cams: Cameras, background: Tensor) -> Render:
        """Views before `background` [B, 3]."""
        return self._rasterize(*self._gaussians, cams.viewmats, cams.Ks, cams.width, cams.height, background)


def turntable_pictures(
    scene: Viewed, camera: CameraSettings, n: int, size: int, at_a_time: int = 8
) -> Iterator[np.ndarray]:
    """`n` views once around before white, starting at the front: uint8 [size, size, 3] each.

    `at_a_time` are rendered together, which keeps memory flat for large pictures.
    """
    cams = turntable(n, camera, size)
    for start in range(0, n, at_a_time):
        some = cams[start : start + at_a_time]
        with torch.no_grad():
            views = to_uint8(scene.render(some, torch.ones(len(some), 3)).rgb)
        yield from views


def render_turntable(scene: Viewed, camera: CameraSettings, n: int, size: int) -> np.ndarray:
    """`n` views once around before white, starting at the front: uint8 [n, size, size, 3]."""
    return np.stack(list(turntable_pictures(scene, camera, n, size)))


def write_film(path: Path, pictures: Iterable[np.ndarray], rate: int = FILM_RATE) -> int:
    """H.264 in MP4 of pictures uint8 [H, W, 3], H and W even, as they come; returns how many there were.

    Raises OSError when the file cannot be written.
    """
    import imageio_ffmpeg

    film = None
    frames = 0
    try:
        for picture in pictures:
            if film is None:
                height, width, _ = picture.shape
                # one thread: the encoder is not what takes time, and a run may be using the others
                film = imageio_ffmpeg.write_frames(
                    str(path),
                    (width, height),
                    fps=rate,
                    codec="libx264",
                    macro_block_size=2,
                    output_params=["-threads", "1"],
                )
                film.send(None)
            film.send(np.ascontiguousarray(picture))
            frames += 1
    finally:
        if film is not None:
            film.close()
    return frames


def write_turntable(
    path: Path,
    s: RawSplats,
    camera: CameraSettings,
    size: int = 384,
    frames: int = FILM_FRAMES,
    progress: Tally = unwatched,
) -> int:
    """Once around in `frames` pictures of `size` pixels (rounded up to an even number) as MP4; how many were written.

    Raises OSError when the file cannot be written.
    """
    size += size % 2

    def watched() -> Iterator[np.ndarray]:
        for done, picture in enumerate(turntable_pictures(Still(s), camera, frames, size, at_a_time=1)):
            progress(done, frames)
            yield picture

    written = write_film(path, watched())
    progress(frames, frames)
    return written


def write_results(folder: Path, scene: Scene, camera: CameraSettings, size: int = 256) -> list[Path]:
    """scene.ply, turntable.png (8 views in a strip) and turntable.mp4 (once around in 3 s) in `folder`.

    `size` in pixels is rounded up to an even number, which H.264 needs.
    """
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
    files.append(folder / "turntable.mp4")
    write_film(files[-1], turntable_pictures(scene, camera, FILM_FRAMES, size))
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
