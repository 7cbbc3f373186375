"""Write Gaussians as PLY and .splat, and turntables as image strips and films.

Slow writers call `progress(done, total)` as they go; an exception raised there cancels the work.
"""

from __future__ import annotations

import itertools
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

from sdlab.arguments import claim_file
from sdlab.cameras import CameraSettings, transforms_of, turntable
from sdlab.files import whole
from sdlab.meshes.colours import SH_C0
from sdlab.pictures import to_uint8
from sdlab.raster import rasteriser_for
from sdlab.raster.harmonics import colours
from sdlab.scenes import AnyScene, Scene, Solid
from sdlab.settings import Settings
from sdlab.starts.own import COLUMNS, COMMENT
from sdlab.types import Cameras, RawSplats, Render, SplatSnapshot

STRIP_VIEWS = 8
FILM_FRAMES = 72
FILM_RATE = 24  # frames per second
SHOWN = (
    "turntable.png",
    "pictures.png",
    "trajectories.png",
    "samples.png",
)  # overview images, depending on the kind of scene
SLUG = 48  # maximum length of a prompt in a file name

Tally = Callable[[int, int], None]  # (parts done, parts in total)
Gaussians = TypeVar("Gaussians", RawSplats, SplatSnapshot)
Film = tuple[tuple[int, SplatSnapshot], ...]


def unwatched(done: int, total: int) -> None:
    """Ignore progress."""


@dataclass(frozen=True, eq=False)
class Material:
    """Everything exportable at one step: copies that any thread may read while the run continues."""

    settings: Settings  # in effect at that step
    step: int
    splats: RawSplats | None = None
    film: Film = ()  # (step, scene) in chronological order
    pictures: np.ndarray | None = None  # uint8 [M, H, W, 3], for 2-D scenes
    solid: Solid | None = None  # for scenes that their Gaussians only approximate

    @property
    def name(self) -> str:
        """File name without suffix: ASCII letters, digits and hyphens."""
        s = self.settings
        return f"{slug(s.prompt.text)}-{slug(s.active)}-seed{s.seed}-step{self.step}"


def material_of(
    scene: AnyScene,
    settings: Settings,
    step: int,
    film: Sequence[tuple[int, SplatSnapshot | np.ndarray]] = (),
    pictures: np.ndarray | None = None,
) -> Material:
    """Copy everything exportable from a session; call it in the thread that owns `scene`. Takes milliseconds.

    `film` holds the snapshots so far (`Timeline.film`), of which those after `step` are dropped; `pictures`, uint8
    [M, H, W, 3], are the current images of a 2-D scene. Neither is copied.
    """
    grown = tuple((at, shot) for at, shot in film if at < step and isinstance(shot, SplatSnapshot))
    splats, now = scene.splats(), scene.snapshot()
    if splats is None:
        return Material(settings, step, pictures=pictures)
    return Material(settings, step, splats, grown if now is None else (*grown, (step, now)), solid=scene.solid())


def slug(text: str) -> str:
    """Convert `text` to a file name: at most `SLUG` of a-z, 0-9 and single hyphens; "untitled" if nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode("ascii").lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:SLUG].rstrip("-") or "untitled"


def finite(s: Gaussians) -> Gaussians:
    """Drop Gaussians with a value that is not finite."""
    columns = [column for column in s if column is not None]
    good = np.all([np.isfinite(column).all(tuple(range(1, column.ndim))) for column in columns], axis=0)
    if isinstance(s, RawSplats):
        return s.rows(good)
    return type(s)(*(column[good] for column in s))


def write_ply(path: Path, s: RawSplats) -> int:
    """Write a binary PLY in the layout of the 3DGS release (INRIA); return the number of Gaussians written.

    Columns: x y z, normals, f_dc, f_rest (all coefficients of red, then of green, of blue; 45 columns at degree 3, none
    at 0), opacity logit, log-scales, wxyz. World axes are kept (+z up). A comment says so, by
    which a scene that starts from the file keeps its frame. Gaussians with a value that is not finite are dropped.
    Raises OSError if the file cannot be written.
    """
    raw, count = ply_bytes(s)
    path.write_bytes(raw)
    return count


def ply_bytes(s: RawSplats) -> tuple[bytes, int]:
    """Return the file that `write_ply` writes, and the number of Gaussians in it."""
    s = finite(s)
    normals = np.zeros_like(s.means)
    rest = np.zeros((len(s.means), 0)) if s.sh is None else s.sh.transpose(0, 2, 1).reshape(len(s.means), -1)
    values = (s.means, normals, (s.rgbs - 0.5) / SH_C0, rest, s.opacity_logits[:, None], s.log_scales, s.quats)
    table = np.concatenate(values, 1).astype("<f4")
    header = ["ply", "format binary_little_endian 1.0", f"comment {COMMENT}", f"element vertex {len(table)}"]
    first = COLUMNS.index("opacity")
    names = [*COLUMNS[:first], *(f"f_rest_{i}" for i in range(rest.shape[1])), *COLUMNS[first:]]
    header += [f"property float {name}" for name in names] + ["end_header", ""]
    return "\n".join(header).encode("ascii") + table.tobytes(), len(table)


def write_splat(path: Path, s: RawSplats) -> int:
    """Write antimatter15's .splat format; return the number of Gaussians written.

    32 bytes per Gaussian: position and scale as 3 float32 each, RGBA and wxyz as 4 bytes each, quantised as its
    converter does. Large opaque Gaussians come first, so that a viewer shows them while the rest is loading. World axes
    are kept (+z up). Colours that depend on the direction of view have no place in it. Gaussians with a value that is
    not finite are dropped. Raises OSError if the file cannot be written.
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
@runtime_checkable
class Viewed(Protocol):
    """Anything that can be rendered: a scene, or static Gaussians."""

    def render(self, cams: Cameras, background: Tensor) -> Render: ...


class Still:
    """Static Gaussians that any thread may render; on the CPU, which leaves the GPU to the run."""

    def __init__(self, s: RawSplats) -> None:
        s = finite(s)
        means, quats, log_scales, logits, rgbs = (torch.from_numpy(np.ascontiguousarray(column)) for column in s[:5])
        self._rasterize = rasteriser_for("cpu")
        self._gaussians = (means, quats, log_scales.exp(), logits.sigmoid())
        self._rgbs, self._sh = rgbs, None if s.sh is None else torch.from_numpy(s.sh)

    @torch.no_grad()
    def render(self, cams: Cameras, background: Tensor) -> Render:
        """Render over `background` [B, 3]."""
        rgbs = self._rgbs if self._sh is None else colours(self._rgbs, self._sh, self._gaussians[0], cams.viewmats)
        return self._rasterize(*self._gaussians, rgbs, cams.viewmats, cams.Ks, cams.width, cams.height, background)


def turntable_pictures(
    scene: Viewed, camera: CameraSettings, n: int, size: int, at_a_time: int = 8
) -> Iterator[np.ndarray]:
    """Yield `n` views on a full circle over white, starting at the front: uint8 [size, size, 3] each.

    Rendered in batches of `at_a_time`, which bounds memory for large images.
    """
    cams = turntable(n, camera, size)
    for start in range(0, n, at_a_time):
        some = cams[start : start + at_a_time]
        with torch.no_grad():
            views = to_uint8(scene.render(some, torch.ones(len(some), 3)).rgb)
        yield from views


def render_turntable(scene: Viewed, camera: CameraSettings, n: int, size: int) -> np.ndarray:
    """Render `n` views on a full circle over white, starting at the front: uint8 [n, size, size, 3]."""
    return np.stack(list(turntable_pictures(scene, camera, n, size)))


def write_film(path: Path, pictures: Iterable[np.ndarray], rate: int = FILM_RATE) -> int:
    """Encode images uint8 [H, W, 3], H and W even, as H.264 in MP4; return the number of frames.

    Raises ValueError if there are no images, OSError if the file cannot be written to its end.
    """
    import av

    stream = iter(pictures)
    first = next(stream, None)
    if first is None:
        raise ValueError(f"{path}: there are no images to encode")
    height, width, _ = first.shape
    frames = 0
    # a file rather than its name, which may look like a protocol or a pattern
    with whole(path) as scratch, scratch.open("wb") as file, av.open(file, "w", format="mp4") as film:
        # without x264's macroblock tree, which reads what it has not written: equal images would give different files
        options = {"crf": "25", "x264-params": "mbtree=0"}
        video = film.add_stream("libx264", rate, width=width, height=height, pix_fmt="yuv420p", options=options)
        video.codec_context.thread_count = 1  # encoding is not the bottleneck, and a run may need the others
        for picture in itertools.chain([first], stream):
            film.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            frames += 1
        film.mux(video.encode())
    return frames


def write_turntable(
    path: Path,
    s: RawSplats | Viewed,
    camera: CameraSettings,
    size: int = 384,
    frames: int = FILM_FRAMES,
    progress: Tally = unwatched,
) -> int:
    """Write a turntable of `frames` images of `size` pixels (rounded up to even) as MP4; return the number of frames.

    Raises OSError if the file cannot be written.
    """
    size += size % 2
    scene = Still(s) if isinstance(s, RawSplats) else s

    def watched() -> Iterator[np.ndarray]:
        for done, picture in enumerate(turntable_pictures(scene, camera, frames, size, at_a_time=1)):
            progress(done, frames)
            yield picture

    written = write_film(path, watched())
    progress(frames, frames)
    return written


def write_results(folder: Path, scene: Scene, camera: CameraSettings, size: int = 256) -> list[Path]:
    """Write scene.ply, turntable.png (a strip of 8 views), turntable.mp4 (a full turn in 3 s) and the cameras of its
    frames, cameras.json, to `folder`.

    `size` in pixels is rounded up to an even number, as H.264 requires.
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
    files.append(folder / "cameras.json")
    files[-1].write_text(json.dumps(transforms_of(turntable(FILM_FRAMES, camera, size)), indent=1), encoding="utf-8")
    return files


def contact_sheet(runs: Sequence[Path], out: Path) -> None:
    """Stack the overview images of several run folders, each under its prompt, loss and time, in one PNG.

    Raises ValueError naming the folder if it is not a finished run, or `out` if it is one of these images.
    """
    from PIL import Image

    strips, captions = [], []
    for run in runs:
        shown = next((run / name for name in SHOWN if (run / name).is_file()), run / SHOWN[0])
        claim_file(out, [shown])
        try:
            result = json.loads((run / "result.json").read_text(encoding="utf-8"))
            strips.append(Image.open(shown).convert("RGB"))
        except (OSError, ValueError) as e:
            raise ValueError(f"{run} is not the folder of a finished run: {e}") from e
        captions.append(f"{result['prompt']}   {result['loss']}, {result['steps']} steps, {result['seconds']} s")
    stack_strips([np.asarray(strip) for strip in strips], captions, out)


def stack_strips(strips: Sequence[np.ndarray], captions: Sequence[str], out: Path) -> None:
    """Stack strips, uint8 [H, W, 3] each, under their captions in one PNG."""
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
    with whole(out) as scratch:
        sheet.save(scratch)
