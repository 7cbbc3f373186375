"""Procedural images with captions: the training data of the toybox prior.

Image `index` of `seed` is always the same, regardless of the process or order that renders it: its generator is seeded
with (seed, index). `describe` draws everything random about it into a `Shot`; `render_shots` turns shots into pixels.
World, azimuth and elevation as in `sdlab.types`: +x front, +z up, azimuth 0 in front.

Constants that a live run must match, because its cameras must lie within the data:
- vertical field of view 40 degrees, distance 2.95: a ball of radius 1 then just fits into the image;
- the distance varies by -7 to +10 %, the aim by about 0.03, so that a slightly small or off-centre scene is in range;
- elevation -20 to 50 degrees, and 55 to 88 for "overhead view".

View words are worded as in view-dependent prompts ("a red bear, front view"). Their azimuth bands leave gaps of 10
degrees, so that each word has one distinct look. Images without a view word are biased towards the front, as
photographs are; this brings the Janus problem of prompts without view words into the toybox. Of those images 80 % have
an azimuth of N(0, 28 degrees), the rest a uniform one: 72 % lie within the band of "front view".

Shares: 18 % show a second object, 12 % a pattern, 30 % a named material, 65 % a named view, 6 % are paintings; 20 % of
the rest are corrupted by one to three of the descriptors, which their caption names. One in seven combinations of
object, colour and view word is never drawn (`held_out`); the judge tests those.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import accumulate, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdlab.toybox import raytrace
from sdlab.toybox.filters import FILTERS, painted
from sdlab.toybox.objects import OBJECTS, seconds_of, table
from sdlab.toybox.words import BACK, DESCRIPTORS, FRONT, OVERHEAD, SIDE, Facts, write_caption

SIZE = 32  # side in pixels of the prior's training images
FOV_DEGREES = 40.0
DISTANCE = 2.95
DATA_VERSION = 2  # raise it when images or captions change: a cached pool of another version is not reused

COLOURS = {
    "red": (0.85, 0.12, 0.1),
    "orange": (0.95, 0.5, 0.08),
    "yellow": (0.95, 0.83, 0.12),
    "green": (0.15, 0.62, 0.2),
    "blue": (0.13, 0.3, 0.85),
    "purple": (0.5, 0.18, 0.65),
    "pink": (0.96, 0.5, 0.66),
    "brown": (0.48, 0.29, 0.15),
    "white": (0.95, 0.95, 0.93),
    "gray": (0.5, 0.5, 0.52),
    "black": (0.1, 0.1, 0.11),
    "turquoise": (0.2, 0.78, 0.76),
}
SECOND_SHARE = 0.18
LOPSIDED_SECONDS = frozenset({"ball"})  # it lies on the left

MATERIALS = {"": 0.12, "shiny": 0.7, "matte": 0.0}  # word -> strength of the highlight
MATERIAL_WEIGHTS = (0.7, 0.15, 0.15)

PATTERNS = {"": raytrace.PLAIN, "striped": raytrace.STRIPED, "spotted": raytrace.SPOTTED}
PATTERN_WEIGHTS = (0.88, 0.06, 0.06)
DARK_MARKED = frozenset({"white", "yellow", "gray"})  # colours with dark stripes and spots; all others have white ones
DARK_MARK, WHITE_MARK, MARK_STRENGTH = 0.12, 1.0, 0.85

VIEW_SHARE = 0.65  # fraction of images whose caption names the view
FRONT_BIAS = 0.72  # fraction of the others that lie within the band of "front view"
VIEW_WEIGHTS = {FRONT: 0.26, SIDE: 0.30, BACK: 0.24, OVERHEAD: 0.20}
HALF_BAND = 40.0  # degrees of azimuth on either side of a view word's centre
ELEVATIONS = (-20.0, 50.0)
OVERHEAD_ELEVATIONS = (55.0, 88.0)

PAINTING_SHARE = 0.06
WASHES = ((0.72, 0.56, 0.34), (0.42, 0.47, 0.36), (0.36, 0.44, 0.55), (0.62, 0.42, 0.36), (0.78, 0.72, 0.58))
CORRUPTED_SHARE = 0.2
STRUCTURAL = frozenset({"bad structure", "malformed"})  # deform the object; the others filter the image

CHUNK = 256  # images rendered together


class Shot(NamedTuple):
    """Everything random about one image."""

    facts: Facts
    caption: str
    may_mirror: bool  # the mirrored image is valid for the same caption
    variant: int
    rgb: tuple[float, float, float]
    second_rgb: tuple[float, float, float]
    azimuth: float  # degrees
    elevation: float
    distance: float
    aim: np.ndarray  # [3] look-at point
    stretch: np.ndarray  # [3] scale of the whole object along its axes
    ambient: float
    light: np.ndarray  # [3] unit vector towards the light
    grounds: np.ndarray  # [2, 3]
    slope: np.ndarray  # [2]
    noise_seed: int  # seeds the random draws of corruptions and brush strokes


def pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """Draw an index with these weights; much faster than `rng.choice(p=...)`."""
    steps = list(accumulate(weights))
    return min(bisect_right(steps, rng.random() * steps[-1]), len(steps) - 1)


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    """Draw one word, uniformly."""
    return words[int(rng.random() * len(words))]


def draw_elevation(rng: np.random.Generator) -> float:
    """Draw the elevation of a camera that is not overhead, in degrees."""
    low, high = ELEVATIONS
    return rng.uniform(low, high) if rng.random() < 0.3 else min(max(rng.normal(15, 12), low), high)


def draw_camera(rng: np.random.Generator) -> tuple[str, float, float]:
    """Draw (view word or "", azimuth, elevation); angles in degrees."""
    elevation = draw_elevation(rng)
    if rng.random() >= VIEW_SHARE:
        return "", rng.normal(0, 28) if rng.random() < 0.8 else rng.uniform(-180, 180), elevation
    view = tuple(VIEW_WEIGHTS)[pick(rng, tuple(VIEW_WEIGHTS.values()))]
    if view == OVERHEAD:
        return view, rng.uniform(-180, 180), rng.uniform(*OVERHEAD_ELEVATIONS)
    centre = {FRONT: 0.0, SIDE: 90.0 if rng.random() < 0.5 else -90.0, BACK: 180.0}[view]
    return view, centre + rng.uniform(-HALF_BAND, HALF_BAND), elevation


def draw_slope(rng: np.random.Generator) -> np.ndarray:
    """Draw the direction [2] of a background gradient."""
    angle = rng.uniform(0, 2 * math.pi)
    return 0.8 * np.array([math.cos(angle), math.sin(angle)])


def draw_ground(rng: np.random.Generator, style: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw background colours [2, 3] and the gradient between them [2].

    White-ish 55 %, gray 15 %, a colour 15 %, a gradient 15 %; an earthy gradient behind a painting.
    """
    if style == "painting":
        wash = np.array(WASHES[int(rng.random() * len(WASHES))]) + rng.normal(0, 0.04, 3)
        return np.clip(np.stack([wash * 0.75, wash * 1.15]) + rng.normal(0, 0.03, (2, 3)), 0, 1), draw_slope(rng)
    kind = rng.random()
    if kind < 0.55:
        return np.full((2, 3), 1.0 if rng.random() < 0.5 else rng.uniform(0.9, 1.0)), np.zeros(2)
    if kind < 0.70:
        return np.full((2, 3), rng.uniform(0.0, 0.9)), np.zeros(2)
    if kind < 0.85:
        return np.tile(rng.uniform(0.0, 1.0, 3), (2, 1)), np.zeros(2)
    start = rng.uniform(0.1, 1.0, 3)
    return np.stack([start, np.clip(start + rng.normal(0, 0.2, 3), 0, 1)]), draw_slope(rng)


def draw_some(rng: np.random.Generator, descriptors: tuple[str, ...]) -> tuple[str, ...]:
    """Draw one to three different ones of `descriptors`, if there are as many, in random order."""
    count = 1 + pick(rng, (0.6, 0.28, 0.12))
    return tuple(descriptors[i] for i in rng.permutation(len(descriptors))[:count])


def draw_corruptions(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw none (80 %), or one to three different descriptors in random order."""
    return draw_some(rng, tuple(DESCRIPTORS)) if rng.random() < CORRUPTED_SHARE else ()


@cache
def held_out(name: str, colour: str, view: str) -> bool:
    """Return whether this combination is left out of the training images for the judge: one in seven, by hash.

    Combinations without a view word are never left out.
    """
    return bool(view) and hashlib.blake2b(f"{name}/{colour}/{view}".encode()).digest()[0] % 7 == 0


@cache
def training_colours(name: str, view: str) -> tuple[str, ...]:
    """Return the colours in which training images show this object under this view word."""
    return tuple(c for c in COLOURS if not held_out(name, c, view))


def draw_facts(rng: np.random.Generator, view: str) -> Facts:
    """Draw what the image shows, given its view word."""
    name = one_of(rng, tuple(OBJECTS))
    colour = one_of(rng, training_colours(name, view))
    second = one_of(rng, seconds_of(name)) if rng.random() < SECOND_SHARE else ""
    style = "painting" if rng.random() < PAINTING_SHARE else ""
    return Facts(
        object=name,
        colour=colour,
        material=tuple(MATERIALS)[pick(rng, MATERIAL_WEIGHTS)],
        pattern=tuple(PATTERNS)[pick(rng, PATTERN_WEIGHTS)],
        second=second,
        second_colour=one_of(rng, [c for c in COLOURS if c != colour]) if second else "",
        view=view,
        style=style,
        corruptions=() if style else draw_corruptions(rng),
    )


def jittered(rng: np.random.Generator, colour: str) -> tuple[float, float, float]:
    """Return the RGB of a colour word with a little noise, clipped to [0, 1]."""
    red, green, blue = (min(max(c + rng.normal(0, 0.03), 0.0), 1.0) for c in COLOURS[colour])
    return red, green, blue


def describe(seed: int, index: int) -> Shot:
    """Return the description of image `index` of `seed`; nothing is rendered."""
    rng = np.random.default_rng((seed, index))
    view, azimuth, elevation = draw_camera(rng)
    facts = draw_facts(rng, view)
    model = OBJECTS[facts.object]
    grounds, slope = draw_ground(rng, facts.style)
    lamp = math.radians(azimuth + rng.uniform(-60, 60))  # the light comes from behind the camera
    return Shot(
        facts=facts,
        caption=write_caption(rng, facts),
        may_mirror=not model.lopsided and facts.second not in LOPSIDED_SECONDS,
        variant=int(rng.random() * model.variants),
        rgb=jittered(rng, facts.colour),
        second_rgb=jittered(rng, facts.second_colour) if facts.second else (0.0, 0.0, 0.0),
        azimuth=azimuth,
        elevation=elevation,
        distance=DISTANCE * rng.uniform(0.93, 1.1),
        aim=rng.normal(0, 0.03, 3),
        stretch=np.exp(rng.normal(0, 0.04, 3) + rng.normal(0, 0.04)),
        ambient=rng.uniform(0.5, 0.65),
        light=np.array((0.6 * math.cos(lamp), 0.6 * math.sin(lamp), 0.8)),
        grounds=grounds,
        slope=slope,
        noise_seed=int(rng.integers(2**62)),
    )


def camera_axes(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the camera's direction and axes; angles in degrees, |elevation| < 90.

    The direction [3] is a unit vector from the object to the camera; the rows of the axes [3, 3] are right, down,
    forward.
    """
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = np.array((math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)))
    right = np.array((-math.sin(a), math.cos(a), 0.0))
    down = np.array((math.sin(e) * math.cos(a), math.sin(e) * math.sin(a), -math.cos(e)))
    return outward, np.stack([right, down, -outward])


def wobble(rng: np.random.Generator, at: np.ndarray) -> np.ndarray:
    """Evaluate a smooth random vector field of unit variance at points [K, 3]: neighbouring parts move together."""
    waves, phases = rng.normal(0, 2.2, (3, 3)), rng.uniform(0, 2 * math.pi, 3)
    return np.sin(at @ waves.T + phases) @ rng.normal(0, math.sqrt(2 / 3), (3, 3))


def deform(shot: Shot, at: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the centres and sizes [K, 3] of a corrupted object.

    "bad structure" bends it and moves two clusters of parts out of place; "malformed" swells some parts and shrinks
    others.
    """
    rng = np.random.default_rng(shot.noise_seed)
    if "bad structure" in shot.facts.corruptions:
        for _ in range(2):
            middle = at[int(rng.random() * len(at))]
            way = rng.normal(0, 1, 3)
            moved = np.linalg.norm(at - middle, axis=1) < 0.3
            at = at + moved[:, None] * way * (rng.uniform(0.28, 0.42) / np.linalg.norm(way))
        at = at + 0.16 * wobble(rng, at)
    if "malformed" in shot.facts.corruptions:
        growth = 0.38 * wobble(rng, at)
        swelling = np.exp(growth - growth.mean(0))
        sizes, at = sizes * swelling, at * np.sqrt(swelling)
    return at, sizes


def mark_of(shot: Shot) -> tuple[float, float, float]:
    """Return the colour of the stripes or spots: white or dark gray, with a little of the object's colour."""
    mark = DARK_MARK if shot.facts.colour in DARK_MARKED else WHITE_MARK
    red, green, blue = (c + MARK_STRENGTH * (mark - c) for c in shot.rgb)
    return red, green, blue


def pack(shots: Sequence[Shot]) -> raytrace.Batch:
    """Pack solids, cameras, lights and backgrounds of the shots for the renderer."""
    tables = [table(s.facts.object, s.variant, s.facts.second) for s in shots]
    centres, sizes = [t.centres for t in tables], [t.sizes for t in tables]
    eyes, axes = np.empty((len(shots), 3)), np.empty((len(shots), 3, 3))
    for i, shot in enumerate(shots):
        if shot.facts.corruptions and not STRUCTURAL.isdisjoint(shot.facts.corruptions):
            centres[i], sizes[i] = deform(shot, centres[i], sizes[i])
        outward, axes[i] = camera_axes(shot.azimuth, shot.elevation)
        eyes[i] = shot.aim + shot.distance * outward
    counts = [len(t.kinds) for t in tables]
    of = np.repeat(np.arange(len(shots)), counts)  # image index of each part
    stretches = np.array([s.stretch for s in shots])
    extents, turns = np.concatenate(sizes), np.concatenate([t.turns for t in tables])
    shares = np.concatenate([t.shares for t in tables])
    own, second = np.array([s.rgb for s in shots])[of], np.array([s.second_rgb for s in shots])[of]
    patterns = np.array([PATTERNS[s.facts.pattern] for s in shots])[of]
    return raytrace.Batch(
        first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        kinds=np.concatenate([t.kinds for t in tables]),
        # world = stretch * (turn @ (size * local) + centre); to_local inverts it factor by factor
        to_world=stretches[of][:, :, None] * turns * extents[:, None, :],
        to_local=np.swapaxes(turns, 1, 2) / extents[:, :, None] / stretches[of][:, None, :],
        centres=np.concatenate(centres) * stretches[of],
        colours=shares[:, :1] * own + shares[:, 1:] * second + np.concatenate([t.rests for t in tables]),
        patterns=np.where(shares[:, 0] > 0.5, patterns, raytrace.PLAIN),
        marks=np.array([mark_of(s) for s in shots]),
        stretches=stretches,
        eyes=eyes,
        axes=axes,
        lights=np.array([s.light for s in shots]),
        shading=np.array([(s.ambient, MATERIALS[s.facts.material]) for s in shots]),
        grounds=np.array([s.grounds for s in shots]),
        slopes=np.array([s.slope for s in shots]),
    )


def finished(x: np.ndarray, shot: Shot) -> np.ndarray:
    """Return x [H, W, 3] as a painting or with the shot's image filters applied in caption order, in [0, 1]."""
    rng = np.random.default_rng((shot.noise_seed, 1))
    if shot.facts.style == "painting":
        x = painted(x, rng)
    return filtered(x, [word for word in shot.facts.corruptions if word in FILTERS], rng)


def filtered(x: np.ndarray, descriptors: Sequence[str], rng: np.random.Generator) -> np.ndarray:
    """Return x [S, S, 3] with the filters of `descriptors` applied in order, in [0, 1]."""
    for word in descriptors:
        x = np.clip(FILTERS[word](x, rng), 0, 1).astype(np.float32)
    return x


def render_shots(shots: Sequence[Shot], size: int = SIZE) -> np.ndarray:
    """Render shots to float32 [n, size, size, 3] in [0, 1]."""
    rgb, _ = raytrace.render(pack(shots), size, math.tan(math.radians(FOV_DEGREES / 2)))
    for i, shot in enumerate(shots):
        if shot.facts.style or shot.facts.corruptions:
            rgb[i] = finished(rgb[i], shot)
    return rgb


def render_parts(shots: Sequence[Shot], size: int = SIZE) -> Iterator[np.ndarray]:
    """Yield `render_shots` of many shots, CHUNK at a time."""
    return (render_shots(shots[i : i + CHUNK], size) for i in range(0, len(shots), CHUNK))


class Pool(NamedTuple):
    """N captioned images; image i is `describe(seed, begin + i)`."""

    rgb: np.ndarray  # [N, 3, SIZE, SIZE] uint8, memory-mapped if it comes from a file
    captions: list[str]
    may_mirror: np.ndarray  # [N] bool

    def __len__(self) -> int:
        return len(self.captions)


def render_range(seed: int, begin: int, end: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return (uint8 [n, 3, SIZE, SIZE], captions, may_mirror [n]) of images begin to end - 1."""
    shots = [describe(seed, i) for i in range(begin, end)]
    rgb = (render_shots(shots) * 255 + 0.5).astype(np.uint8).transpose(0, 3, 1, 2)
    return rgb, [s.caption for s in shots], np.array([s.may_mirror for s in shots])


def rendered(seed: int, begin: int, end: int, workers: int) -> Iterator[tuple[np.ndarray, list[str], np.ndarray]]:
    """Yield `render_range` of consecutive chunks in order; the number of worker processes does not affect the result.

    Processes rather than threads, because descriptions and captions are pure Python. They are spawned, not forked, so a
    calling script needs the usual `if __name__ == "__main__"`. One worker runs in the current process.
    """
    begins = range(begin, end, CHUNK)
    ends = [min(b + CHUNK, end) for b in begins]
    workers = min(workers, len(begins) // 4)  # starting a process takes seconds
    if workers <= 1:
        yield from map(render_range, repeat(seed), begins, ends)
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as processes:
        yield from processes.map(render_range, repeat(seed), begins, ends)


def fill(
    out: np.ndarray, seed: int, begin: int, workers: int, progress: Callable[[int], None]
) -> tuple[list[str], np.ndarray]:
    """Render images begin to begin + len(out) - 1 into `out` and return (captions, may_mirror).

    `progress` is called with the number of finished images.
    """
    captions: list[str] = []
    mirrors: list[np.ndarray] = []
    for rgb, words, mirror in rendered(seed, begin, begin + len(out), workers):
        out[len(captions) : len(captions) + len(rgb)] = rgb
        captions += words
        mirrors.append(mirror)
        progress(len(captions))
    return captions, np.concatenate(mirrors)


def make_pool(seed: int, count: int, workers: int = 1, begin: int = 0) -> Pool:
    """Return a pool held in memory."""
    rgb = np.empty((count, 3, SIZE, SIZE), np.uint8)
    captions, may_mirror = fill(rgb, seed, begin, workers, lambda done: None)
    return Pool(rgb, captions, may_mirror)


def kept_pool(
    folder: Path, seed: int, count: int, workers: int, progress: Callable[[int], None], begin: int = 0
) -> Pool:
    """Return images begin to begin + count - 1 of a seed from `folder`; render them there first if they are incomplete.

    An image takes 3 kB. The file is memory-mapped, so a pool may exceed the RAM. The index with the captions is written
    last and atomically: its presence means that the images are complete.
    """
    stem = folder / f"pictures-v{DATA_VERSION}-{SIZE}-{seed}-{begin}-{count}"
    pixels, index = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not (pixels.exists() and index.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        rgb = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(count, 3, SIZE, SIZE))
        try:
            captions, may_mirror = fill(rgb, seed, begin, workers, progress)
        except BaseException:
            del rgb
            pixels.unlink()  # incomplete, and useless without its index
            raise
        rgb.flush()
        draft = index.with_suffix(".part")
        draft.write_text(json.dumps({"captions": captions, "may_mirror": may_mirror.tolist()}))
        os.replace(draft, index)
    known = json.loads(index.read_text())
    return Pool(np.load(pixels, mmap_mode="r"), known["captions"], np.array(known["may_mirror"]))
