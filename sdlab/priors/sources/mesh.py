"""Images of one object, rendered from all sides from a mesh file.

A prompt chooses the cameras by its view word, as in the toybox: "front view" and the like, with their synonyms, are
bands of azimuth and elevation (`sdlab.toybox.judge.camera_of`). Descriptors ("blurry", "foggy", ...) spoil the images
with the toybox's filters. Whatever else a prompt says makes no difference.

Cameras have the field of view and the distances of a run's defaults, and look at the origin. The toybox varies distance
and aim more, which leaves size and place of the object open, and blurs what is distilled.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from sdlab.cameras import CameraSettings, look_at
from sdlab.knobs import read_file
from sdlab.meshes import draw
from sdlab.meshes.read import MAX_BYTES
from sdlab.meshes.surface import RADIUS, parsed_mesh
from sdlab.priors.sources import Drawn, Source, as_bytes, unheard
from sdlab.priors.text import listed
from sdlab.toybox import judge, pictures, words
from sdlab.toybox.filters import FILTERS
from sdlab.toybox.flawed import flawed
from sdlab.toybox.grammar import named_in
from sdlab.types import Cameras

VERSION = 2  # raise it when the images of a file change
CHUNK = 64  # images rendered between two calls of `progress`
DISTANCES = (CameraSettings().distance_min, CameraSettings().distance_max)
OVERHEAD_SHARE = pictures.VIEW_SHARE * pictures.VIEW_WEIGHTS[words.OVERHEAD]  # of the toybox's images
READ = ("view", "corruptions", "flawed", "good", "")  # kinds of phrases that have an effect here, or need none


# ---- what a text asks for ---------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """What a text asks of a mesh."""

    view: str  # "" or one of VIEW_WORDS
    flaws: tuple[str, ...]  # descriptors that the images show, in the order of DESCRIPTORS
    without_effect: tuple[str, ...]  # words that choose nothing here
    structural: tuple[str, ...]  # descriptors that would deform the object
    repeated: tuple[str, ...]  # view words after the first


def read(text: str) -> Reading:
    """Read view word and descriptors; of several view words the first counts, as in the toybox."""
    found = list(named_in(text))
    views = [standard for kind, standard, _ in found if kind == "view"]
    named = {standard for kind, standard, _ in found if kind == "corruptions"}
    if not named and any(kind == "flawed" for kind, _, _ in found):
        named = set(FILTERS)  # "low quality" is true of every spoiled image
    return Reading(
        view=views[0] if views else "",
        flaws=tuple(word for word in words.DESCRIPTORS if word in named and word in FILTERS),
        without_effect=tuple(dict.fromkeys(given for kind, _, given in found if kind not in READ)),
        structural=tuple(word for word in words.DESCRIPTORS if word in named and word not in FILTERS),
        repeated=tuple(dict.fromkeys(view for view in views if view != views[0])),
    )


# ---- the source -------------------------------------------------------------------------------------------------


class MeshSource(Source):
    """Renders of the mesh in a file; `mesh` stands in the world as in a scene that starts from the file."""

    def __init__(
        self, path: str | Path, knob: str, up: str = "auto", turn: float = 0.0, radius: float = RADIUS
    ) -> None:
        """Read a GLB, OBJ, STL or PLY.

        `up` is the file's vertical axis, one of `sdlab.meshes.read.UPS`; `turn` rotates the object by degrees,
        counter-clockwise from above; `radius` is the distance of its farthest vertex from the middle. Raises ValueError
        naming `knob`, the file and the problem.
        """
        given = f"{knob} = {str(path)!r}"
        path = Path(path)
        raw = read_file(path, MAX_BYTES, given)
        mesh, remarks = parsed_mesh(raw, given, up, radius)
        self.mesh = mesh.turned(turn)
        self._note = f"{given}: {'; '.join(remarks)}" if remarks else ""
        self.name = f"mesh {path.name}"
        self.identity = f"mesh v{VERSION} {hashlib.sha256(raw).hexdigest()} up {up} turn {turn:g} radius {radius:g}"
        self._file = path.name
        self._named = frozenset(re.split(r"[\W_]+", path.stem.lower()))

    @property
    def note(self) -> str:
        return self._note

    def key(self, text: str) -> str:
        reading = read(text)
        return f"{reading.view}/{','.join(reading.flaws)}".rstrip("/")

    def remark(self, text: str) -> str:
        """Say which words have no effect; those that name the file need none."""
        reading, remarks = read(text), []
        others = [word for word in reading.without_effect if word not in self._named]
        if others:
            verb = "has" if len(others) == 1 else "have"
            remarks.append(
                f"{listed(others)} {verb} no effect: this gallery shows {self._file} whatever a prompt "
                f"names, and reads view words ({', '.join(words.VIEW_WORDS)}) and descriptors ({', '.join(FILTERS)})"
            )
        if reading.structural:
            remarks.append(f"not shown: {listed(reading.structural)}, because a mesh is not deformed")
        if reading.repeated:
            remarks.append(f"not shown: {listed(reading.repeated)}, because {reading.view!r} is said already")
        return ". ".join(remarks)

    def truth(self, cams: Cameras) -> Float[Tensor, "B 3 H W"]:
        """Return the mesh's own renders."""
        return draw.views(self.mesh, cams)

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
        places = torch.tensor([(*_angles(rng, view), rng.uniform(*DISTANCES)) for rng in rngs])
        cams = look_at(places[:, 0], places[:, 1], places[:, 2], pictures.FOV_DEGREES, size, size)
        rgb, coverage = draw.render(self.mesh, cams)
        if flaws:
            for i, rng in enumerate(rngs):
                rgb[i], coverage[i] = flawed(rgb[i], coverage[i], flaws, rng)
        return as_bytes(rgb, coverage)


def _angles(rng: np.random.Generator, view: str) -> tuple[float, float]:
    """Draw (azimuth, elevation) in degrees: within the band of a view word, otherwise from any side.

    Without a view word azimuths are uniform, and elevations as in the toybox's data.
    """
    if view or rng.random() < OVERHEAD_SHARE:
        return judge.camera_of(rng, view or words.OVERHEAD)
    return rng.uniform(-180, 180), pictures.draw_elevation(rng)
