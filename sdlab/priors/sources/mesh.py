"""Images of one object, rendered from all sides from a mesh file.

A prompt chooses the cameras by its view word, as in the toybox: "front view" and the like, with their synonyms, are
bands of azimuth and elevation (`sdlab.toybox.judge.camera_of`). Descriptors ("blurry", "foggy", ...) spoil the images
with the toybox's filters. Whatever else a prompt says makes no difference. Field of view and distances are the
toybox's, which are about those of a run's default cameras.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sdlab.knobs import read_file
from sdlab.meshes import draw
from sdlab.meshes.read import MAX_BYTES
from sdlab.meshes.surface import RADIUS, mesh_of
from sdlab.priors.sources import Drawn, Source, as_bytes, unheard
from sdlab.toybox import judge, pictures, words
from sdlab.toybox.filters import FILTERS

VERSION = 1  # raise it when the images of a file change
CHUNK = 64  # images rendered between two calls of `progress`
OVERHEAD_SHARE = pictures.VIEW_SHARE * pictures.VIEW_WEIGHTS[words.OVERHEAD]  # of the toybox's images
LISTED = 5  # words without effect that a remark lists
GRAMMAR = frozenset({*words.ARTICLES, "of", "and", "with", "in", "on", "at", "by", "to", "is", "very"})


# ---- what a text asks for ---------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What a text asks of a mesh."""

    view: str  # "" or one of VIEW_WORDS
    flaws: tuple[str, ...]  # descriptors that the images show, in the order of DESCRIPTORS
    structural: tuple[str, ...]  # descriptors that would deform the object
    others: tuple[str, ...]  # words without effect


def _plain(text: str) -> str:
    """Return the words of a text in lower case, with single spaces and without punctuation."""
    return " ".join(re.findall(r"\w+(?:'\w+)?", text.lower()))


def _wordings(*tables: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return the standard word of every wording in the tables."""
    return {_plain(wording): key for table in tables for key, others in table.items() for wording in (key, *others)}


VIEWS = _wordings(words.VIEW_NAMES, words.VIEW_PHRASES)
FLAWS = _wordings(words.DESCRIPTORS)
FLAWED = frozenset(map(_plain, words.FLAWED))
TRUE_ANYWAY = map(_plain, (*words.QUALITIES, *words.REALISMS, *words.PREFIXES))  # they need no effect and no remark
PHRASES = re.compile(
    # alternatives are tried in order, so the longest come first
    r"\b(?:" + "|".join(sorted({*VIEWS, *FLAWS, *FLAWED, *TRUE_ANYWAY}, key=lambda p: (-len(p), p))) + r")\b"
)


def read(text: str) -> Reading:
    """Read view word and descriptors; of several view words the last counts, since a run appends the camera's."""
    plain = _plain(text)
    found = PHRASES.findall(plain)
    views = [VIEWS[phrase] for phrase in found if phrase in VIEWS]
    named = {FLAWS[phrase] for phrase in found if phrase in FLAWS}
    if not named and not FLAWED.isdisjoint(found):
        named = set(FILTERS)  # "low quality" is true of every spoiled image
    return Reading(
        view=views[-1] if views else "",
        flaws=tuple(word for word in words.DESCRIPTORS if word in named and word in FILTERS),
        structural=tuple(word for word in words.DESCRIPTORS if word in named and word not in FILTERS),
        others=tuple(dict.fromkeys(word for word in PHRASES.sub(" ", plain).split() if word not in GRAMMAR)),
    )


# ---- the source -------------------------------------------------------------------------------------------------


class MeshSource(Source):
    """Renders of the mesh in a file; `mesh` stands in the world as in a scene that starts from the file."""

    def __init__(self, path: Path, knob: str, up: str = "auto", turn: float = 0.0, radius: float = RADIUS) -> None:
        """Read a GLB, OBJ, STL or PLY.

        `up` is the file's vertical axis, one of `sdlab.meshes.read.UPS`; `turn` rotates the object by degrees,
        counter-clockwise from above; `radius` is the distance of its farthest vertex from the middle. Raises ValueError
        naming `knob`, the file and the problem.
        """
        given = f"{knob} = {str(path)!r}"
        raw = read_file(path, MAX_BYTES, given)
        self.mesh = mesh_of(raw, given, up, radius).turned(turn)
        self.name = f"mesh {path.name}"
        self.identity = f"mesh v{VERSION} {hashlib.sha256(raw).hexdigest()} up {up} turn {turn:g} radius {radius:g}"
        self._file = path.name
        self._named = frozenset(re.split(r"[\W_]+", path.stem.lower()))

    def key(self, text: str) -> str:
        reading = read(text)
        return f"{reading.view}/{','.join(reading.flaws)}".rstrip("/")

    def remark(self, text: str) -> str:
        """Say which words have no effect; those that name the file need none."""
        reading = read(text)
        remarks = []
        others = [word for word in reading.others if word not in self._named]
        if others:
            more = f" and {len(others) - LISTED} more words" if len(others) > LISTED else ""
            listed = ", ".join(repr(word[:30]) for word in others[:LISTED])
            remarks.append(
                f"{listed}{more}: no effect, since this gallery shows {self._file} whatever a prompt names; it reads "
                f"view words ({', '.join(words.VIEW_WORDS)}) and descriptors ({', '.join(FILTERS)})"
            )
        if reading.structural:
            listed = ", ".join(map(repr, reading.structural))
            remarks.append(f"{listed}: no effect, since a mesh cannot be rendered deformed")
        return "; ".join(remarks)

    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        view, _, flaws = key.partition("/")
        named = tuple(flaws.split(",")) if flaws else ()
        number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
        out = torch.empty(count, 4, size, size, dtype=torch.uint8)
        for begin in range(0, count, CHUNK):
            indices = range(begin, min(begin + CHUNK, count))
            rngs = [np.random.default_rng((seed, number, index)) for index in indices]
            out[begin : indices.stop] = self._images(rngs, view, named, size)
            progress(indices.stop, count)
        return out

    def _images(self, rngs: list[np.random.Generator], view: str, flaws: tuple[str, ...], size: int) -> Tensor:
        """Draw one image per generator, [n, 4, size, size] uint8."""
        angles = [_angles(rng, view) for rng in rngs]
        cams = draw.orbit(
            azimuth=np.array([azimuth for azimuth, _ in angles]),
            elevation=np.array([elevation for _, elevation in angles]),
            distance=np.array([pictures.DISTANCE * rng.uniform(0.93, 1.1) for rng in rngs]),
            aim=np.stack([rng.normal(0, 0.03, 3) for rng in rngs]),
            fov=pictures.FOV_DEGREES,
            size=size,
        )
        rgb, coverage = draw.render(self.mesh, cams)
        if flaws:
            for i, rng in enumerate(rngs):
                rgb[i] = _spoiled(rgb[i] + (1 - coverage[i, ..., None]) * _ground(rng, size), rng, flaws)
            coverage[:] = 1
        return as_bytes(rgb, coverage)


def _angles(rng: np.random.Generator, view: str) -> tuple[float, float]:
    """Draw (azimuth, elevation) in degrees: within the band of a view word, otherwise from any side.

    Without a view word azimuths are uniform, and elevations as in the toybox's data, with the gap below "overhead view"
    closed.
    """
    if view:
        return judge.camera_of(rng, view)
    if rng.random() < OVERHEAD_SHARE:
        elevation = rng.uniform(pictures.ELEVATIONS[1], pictures.OVERHEAD_ELEVATIONS[1])
    else:
        elevation = pictures.draw_elevation(rng)
    return rng.uniform(-180, 180), elevation


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a background [size, size, 3] as behind the toybox's objects."""
    (start, finish), slope = pictures.draw_ground(rng, "")
    at = (np.arange(size) + 0.5) * 2 / size - 1
    along = np.clip(0.5 + 0.5 * np.add.outer(slope[1] * at, slope[0] * at), 0, 1)
    return (start + (finish - start) * along[..., None]).astype(np.float32)


def _spoiled(x: np.ndarray, rng: np.random.Generator, flaws: tuple[str, ...]) -> np.ndarray:
    """Apply one to three of the named descriptors to x [S, S, 3], as many and in such order as in the toybox's data."""
    for word in pictures.draw_some(rng, flaws):
        x = np.clip(FILTERS[word](x, rng), 0, 1).astype(np.float32)
    return x
