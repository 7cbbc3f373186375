"""Procedural pictures with captions: what the toybox prior is trained on.

Picture `index` of `seed` is always the same, whoever renders it and in whatever order: its generator is seeded
with (seed, index). `describe` draws everything that is random about it into a `Shot`; `render_shots` turns shots
into pixels. World, azimuth and elevation are those of `sdlab.types`: +x front, +z up, azimuth 0 in front.

Constants that a live run has to agree with (its cameras must lie inside the data):
- vertical field of view 40 degrees, distance 2.95: an object of radius 1 then fills the picture to 5 %;
- distance varies by -7 .. +10 %, the aim by about 0.03, so that a slightly small or off-centre scene is not foreign;
- elevation -20 .. 50, and 55 .. 88 for "overhead view".
View words are written as view-dependent prompts write them ("a red bear, front view"). Their azimuth bands leave
gaps of 10 degrees, so that each word means one distinct look. Without a view word the pictures are biased to the
front, as photographs are: the Janus problem of a prompt without view words is then part of the toy, too.
"""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdlab.toybox import raytrace
from sdlab.toybox.objects import OBJECTS, table

SIZE = 32
FOV_DEGREES = 40.0
DISTANCE = 2.95
DATA_VERSION = 1  # of everything in this file and objects.py: a kept pool of another version is not reused

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
}
MATERIALS = {"": 0.12, "shiny": 0.7, "matte": 0.0}  # word -> strength of the highlight
MATERIAL_WEIGHTS = (0.7, 0.15, 0.15)

FRONT, SIDE, BACK, OVERHEAD = VIEW_WORDS = ("front view", "side view", "back view", "overhead view")
VIEW_SHARE = 0.65  # of captions that carry a view word
VIEW_WEIGHTS = (0.26, 0.30, 0.24, 0.20)
HALF_BAND = 40.0  # degrees of azimuth to either side of a view word's centre
ELEVATIONS = (-20.0, 50.0)
OVERHEAD_ELEVATIONS = (55.0, 88.0)

# The source prompt of SBP (arXiv 2406.09417, section 4.2) in its order; each word here has pictures that show it.
DESCRIPTORS = (
    "oversaturated",
    "smooth",
    "pixelated",
    "cartoon",
    "foggy",
    "hazy",
    "blurry",
    "bad structure",
    "noisy",
    "malformed",
)
STRUCTURAL = frozenset({"bad structure", "malformed"})  # change the object, not the picture
QUALITIES = ("high quality", "detailed", "sharp")
CORRUPTED_SHARE, QUALITY_SHARE = 0.2, 0.15
PREFIXES = ("a photo of", "a picture of", "a 3d render of", "an image of")
# Words outside the vocabulary, so that <unk> is trained to mean "never mind": a visitor's "a fluffy red bear"
# must not fall apart on the word the toybox has never heard.
FILLERS = ("lovely", "fluffy", "funny", "wonderful", "unusual")


class Shot(NamedTuple):
    """Everything random about one picture."""

    name: str
    variant: int
    colour: str
    rgb: tuple[float, float, float]
    gloss: float
    azimuth: float  # degrees
    elevation: float
    distance: float
    aim: np.ndarray  # [3] the point looked at
    stretch: np.ndarray  # [3] scale of the whole object along its axes
    ambient: float
    light: np.ndarray  # [3] unit vector
    grounds: np.ndarray  # [2, 3]
    slope: np.ndarray  # [2]
    view: str  # one of VIEW_WORDS or ""
    corruptions: tuple[str, ...]
    noise_seed: int  # of what the corruptions draw
    caption: str
    may_mirror: bool  # the mirrored picture is a true picture of the same object


def pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    """Index drawn with these weights; far cheaper than `rng.choice(p=...)`."""
    steps = list(accumulate(weights))
    return min(bisect_right(steps, rng.random() * steps[-1]), len(steps) - 1)


def one_of(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.random() * len(words))]


def draw_camera(rng: np.random.Generator) -> tuple[str, float, float]:
    """(view word or "", azimuth, elevation), degrees."""
    low, high = ELEVATIONS
    elevation = rng.uniform(low, high) if rng.random() < 0.3 else min(max(rng.normal(15, 12), low), high)
    if rng.random() >= VIEW_SHARE:
        return "", rng.normal(0, 28) if rng.random() < 0.8 else rng.uniform(-180, 180), elevation
    view = VIEW_WORDS[pick(rng, VIEW_WEIGHTS)]
    if view == OVERHEAD:
        return view, rng.uniform(-180, 180), rng.uniform(*OVERHEAD_ELEVATIONS)
    centre = {FRONT: 0.0, SIDE: 90.0 if rng.random() < 0.5 else -90.0, BACK: 180.0}[view]
    return view, centre + rng.uniform(-HALF_BAND, HALF_BAND), elevation


def draw_ground(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Background colours [2, 3] and their slope [2]: white-ish 55 %, gray 15 %, a colour 15 %, a gradient 15 %."""
    kind = rng.random()
    if kind < 0.55:
        return np.full((2, 3), 1.0 if rng.random() < 0.5 else rng.uniform(0.9, 1.0)), np.zeros(2)
    if kind < 0.70:
        return np.full((2, 3), rng.uniform(0.0, 0.9)), np.zeros(2)
    if kind < 0.85:
        return np.tile(rng.uniform(0.0, 1.0, 3), (2, 1)), np.zeros(2)
    start = rng.uniform(0.1, 1.0, 3)
    angle = rng.uniform(0, 2 * math.pi)
    finish = np.clip(start + rng.normal(0, 0.2, 3), 0, 1)
    return np.stack([start, finish]), 0.8 * np.array([math.cos(angle), math.sin(angle)])


def draw_corruptions(rng: np.random.Generator) -> tuple[str, ...]:
    """Mostly none; else one to three different descriptors in random order."""
    if rng.random() >= CORRUPTED_SHARE:
        return ()
    count = 1 + pick(rng, (0.6, 0.28, 0.12))
    return tuple(DESCRIPTORS[i] for i in rng.permutation(len(DESCRIPTORS))[:count])


def write_caption(
    rng: np.random.Generator, name: str, colour: str, material: str, view: str, corruptions: tuple[str, ...]
) -> str:
    """ "[prefix] a [filler] [material] [colour] object[, view word][, descriptors or quality words]"."""
    if corruptions and rng.random() < 0.1:
        return ", ".join(corruptions)
    words = [material, colour if rng.random() < 0.9 else "", name]
    if rng.random() < 0.06:
        words.insert(0, one_of(rng, FILLERS))
    words = [w for w in words if w]
    caption = ("an " if words[0][0] in "aeiou" and rng.random() < 0.7 else "a ") + " ".join(words)
    if rng.random() < 0.2:
        caption = f"{one_of(rng, PREFIXES)} {caption}"
    if view:
        caption += f", {view}"
    if corruptions:
        marks = ", ".join(corruptions)
        return f"{caption}, {marks}" if rng.random() < 0.6 else f"{marks}, {caption}"
    if rng.random() < QUALITY_SHARE:
        first = int(rng.random() * len(QUALITIES))
        marks = QUALITIES[first] if rng.random() < 0.6 else f"{QUALITIES[first]}, {QUALITIES[first - 1]}"
        caption += f", {marks}"
    return caption


def describe(seed: int, index: int) -> Shot:
    """Picture `index` of `seed`, before any pixel is drawn."""
    rng = np.random.default_rng((seed, index))
    name = one_of(rng, tuple(OBJECTS))
    colour = one_of(rng, tuple(COLOURS))
    material = tuple(MATERIALS)[pick(rng, MATERIAL_WEIGHTS)]
    view, azimuth, elevation = draw_camera(rng)
    corruptions = draw_corruptions(rng)
    red, green, blue = (min(max(c + rng.normal(0, 0.03), 0.0), 1.0) for c in COLOURS[colour])
    grounds, slope = draw_ground(rng)
    lamp = math.radians(azimuth + rng.uniform(-60, 60))  # the light comes from behind the camera
    return Shot(
        name=name,
        variant=int(rng.random() * OBJECTS[name].variants),
        colour=colour,
        rgb=(red, green, blue),
        gloss=MATERIALS[material],
        azimuth=azimuth,
        elevation=elevation,
        distance=DISTANCE * rng.uniform(0.93, 1.1),
        aim=rng.normal(0, 0.03, 3),
        stretch=np.exp(rng.normal(0, 0.04, 3) + rng.normal(0, 0.04)),
        ambient=rng.uniform(0.5, 0.65),
        light=np.array((0.6 * math.cos(lamp), 0.6 * math.sin(lamp), 0.8)),
        grounds=grounds,
        slope=slope,
        view=view,
        corruptions=corruptions,
        noise_seed=int(rng.integers(2**62)),
        caption=write_caption(rng, name, colour, material, view, corruptions),
        may_mirror=not OBJECTS[name].lopsided,
    )


def camera_axes(azimuth: float, elevation: float) -> tuple[np.ndarray, np.ndarray]:
    """(unit vector from the object to the camera, rows right, down, forward [3, 3]); degrees, |elevation| < 90."""
    a, e = math.radians(azimuth), math.radians(elevation)
    outward = np.array((math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)))
    right = np.array((-math.sin(a), math.cos(a), 0.0))
    down = np.array((math.sin(e) * math.cos(a), math.sin(e) * math.sin(a), -math.cos(e)))
    return outward, np.stack([right, down, -outward])


def pack(shots: Sequence[Shot]) -> raytrace.Batch:
    """Solids, cameras, lights and backgrounds of the shots as the renderer wants them."""
    kinds, to_local, shifts, centres, reaches, colours = [], [], [], [], [], []
    eyes, axes = np.empty((len(shots), 3)), np.empty((len(shots), 3, 3))
    for i, shot in enumerate(shots):
        parts = table(shot.name, shot.variant)
        at, sizes = parts.centres, parts.sizes
        if shot.corruptions and not STRUCTURAL.isdisjoint(shot.corruptions):
            at, sizes = deform(shot, at, sizes)
        # world = stretch * (turn @ (size * local) + at), undone from the left
        undo = np.swapaxes(parts.turns, 1, 2) / sizes[:, :, None]
        kinds.append(parts.kinds)
        to_local.append(undo / shot.stretch)
        shifts.append(-(undo @ at[:, :, None])[:, :, 0])
        centres.append(at * shot.stretch)
        corner = np.where(parts.kinds == raytrace.BALL, sizes.max(1), np.sqrt((sizes**2).sum(1)))
        reaches.append(corner * shot.stretch.max())
        colours.append(parts.shares[:, :1] * np.array(shot.rgb) + parts.rests)
        outward, axes[i] = camera_axes(shot.azimuth, shot.elevation)
        eyes[i] = shot.aim + shot.distance * outward
    return raytrace.Batch(
        first=np.concatenate([[0], np.cumsum([len(k) for k in kinds])]).astype(np.int64),
        kinds=np.concatenate(kinds),
        to_local=np.concatenate(to_local),
        shift=np.concatenate(shifts),
        centres=np.concatenate(centres),
        reaches=np.concatenate(reaches),
        colours=np.concatenate(colours),
        eyes=eyes,
        axes=axes,
        lights=np.stack([s.light for s in shots]),
        shading=np.array([(s.ambient, s.gloss) for s in shots]),
        grounds=np.stack([s.grounds for s in shots]),
        slopes=np.stack([s.slope for s in shots]),
    )


def deform(shot: Shot, at: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres and sizes [K, 3] of a spoilt object: parts out of place ("bad structure"), misshapen ("malformed")."""
    rng = np.random.default_rng(shot.noise_seed)
    if "bad structure" in shot.corruptions:
        at = at + rng.normal(0, 0.6, at.shape) * sizes.max(1, keepdims=True)
    if "malformed" in shot.corruptions:
        sizes = sizes * np.exp(rng.normal(0, 0.4, sizes.shape))
        at = at + rng.normal(0, 0.15, at.shape) * sizes.max(1, keepdims=True)
    return at, sizes


def blurred(x: np.ndarray, passes: int) -> np.ndarray:
    """Binomial (1 2 1) blur of [H, W, 3], edge pixels repeated."""
    for _ in range(passes):
        p = np.pad(x, ((1, 1), (1, 1), (0, 0)), "edge")
        p = (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
        x = (p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) / 4
    return x


def oversaturated(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gray = x.mean(-1, keepdims=True)
    return gray + (x - gray) * rng.uniform(1.6, 2.6) + (gray - 0.5) * rng.uniform(0.1, 0.4)


def smooth(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return blurred(x, int(rng.integers(1, 3)))


def pixelated(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    step = 2 if rng.random() < 0.4 else 4
    n = x.shape[0] // step
    return x.reshape(n, step, n, step, 3).mean((1, 3)).repeat(step, 0).repeat(step, 1)


def cartoon(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Few tones and softly darkened outlines."""
    tones = int(rng.integers(3, 6))
    outline = np.clip(np.abs(x - blurred(x, 1)).max(-1, keepdims=True) * 6 - 0.3, 0, 1)
    return np.round(x * tones) / tones * (1 - rng.uniform(0.4, 0.8) * outline)


def foggy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + (np.array((0.8, 0.82, 0.85)) - x) * rng.uniform(0.35, 0.65)


def hazy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + (np.array((0.86, 0.8, 0.68)) - x) * rng.uniform(0.25, 0.5)


def blurry(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return blurred(x, int(rng.integers(3, 8)))


def noisy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(0, rng.uniform(0.06, 0.18), x.shape)


FILTERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "oversaturated": oversaturated,
    "smooth": smooth,
    "pixelated": pixelated,
    "cartoon": cartoon,
    "foggy": foggy,
    "hazy": hazy,
    "blurry": blurry,
    "noisy": noisy,
}


def corrupted(x: np.ndarray, shot: Shot) -> np.ndarray:
    """[H, W, 3] with the shot's picture corruptions applied in the order of its caption, in [0, 1]."""
    rng = np.random.default_rng((shot.noise_seed, 1))
    for word in shot.corruptions:
        if word in FILTERS:
            x = np.clip(FILTERS[word](x, rng), 0, 1)
    return x


def render_shots(shots: Sequence[Shot], size: int = SIZE) -> np.ndarray:
    """float32 [n, size, size, 3] in [0, 1]."""
    rgb, _ = raytrace.render(pack(shots), size, math.tan(math.radians(FOV_DEGREES / 2)))
    for i, shot in enumerate(shots):
        if shot.corruptions:
            rgb[i] = corrupted(rgb[i], shot)
    return rgb


class Pool(NamedTuple):
    """N pictures with captions, picture i being `describe(seed, i)`."""

    rgb: np.ndarray  # [N, 3, SIZE, SIZE] uint8, memory-mapped where it comes from a file
    captions: list[str]
    may_mirror: np.ndarray  # [N] bool

    def __len__(self) -> int:
        return len(self.captions)


def render_range(seed: int, begin: int, end: int) -> tuple[np.ndarray, list[str], np.ndarray]:
    """(uint8 [n, 3, SIZE, SIZE], captions, may_mirror [n]) of pictures begin .. end - 1."""
    shots = [describe(seed, i) for i in range(begin, end)]
    rgb = (render_shots(shots) * 255 + 0.5).astype(np.uint8).transpose(0, 3, 1, 2)
    return rgb, [s.caption for s in shots], np.array([s.may_mirror for s in shots])


def fill(out: np.ndarray, seed: int, threads: int, progress: Callable[[int], None]) -> tuple[list[str], np.ndarray]:
    """Render pictures 0 .. len(out) - 1 into `out`; the result does not depend on `threads`."""
    chunk = 256
    begins = range(0, len(out), chunk)
    captions: list[str] = []
    mirrors: list[np.ndarray] = []
    with ThreadPoolExecutor(threads) as workers:
        parts = workers.map(lambda b: render_range(seed, b, min(b + chunk, len(out))), begins)
        for begin, (rgb, words, mirror) in zip(begins, parts, strict=True):
            out[begin : begin + len(rgb)] = rgb
            captions += words
            mirrors.append(mirror)
            progress(begin + len(rgb))
    return captions, np.concatenate(mirrors)


def make_pool(seed: int, count: int, threads: int = 2) -> Pool:
    """A pool in memory."""
    rgb = np.empty((count, 3, SIZE, SIZE), np.uint8)
    captions, may_mirror = fill(rgb, seed, threads, lambda done: None)
    return Pool(rgb, captions, may_mirror)


def kept_pool(folder: Path, seed: int, count: int, threads: int, progress: Callable[[int], None]) -> Pool:
    """The pool of this seed and size from `folder`, rendered there first if it is not complete.

    The index with the captions is written last and whole, so its presence says that the pictures are complete.
    """
    stem = folder / f"pictures-v{DATA_VERSION}-{seed}-{count}"
    pixels, index = stem.with_suffix(".npy"), stem.with_suffix(".json")
    if not (pixels.exists() and index.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        rgb = np.lib.format.open_memmap(pixels, mode="w+", dtype=np.uint8, shape=(count, 3, SIZE, SIZE))
        captions, may_mirror = fill(rgb, seed, threads, progress)
        rgb.flush()
        draft = index.with_suffix(".part")
        draft.write_text(json.dumps({"captions": captions, "may_mirror": may_mirror.tolist()}))
        os.replace(draft, index)
    known = json.loads(index.read_text())
    return Pool(np.load(pixels, mmap_mode="r"), known["captions"], np.array(known["may_mirror"]))
