"""Read coloured points or Gaussians from files, as the starting point of a scene.

Results are in the frame of `sdlab.types`: +z up, front +x. Files are untrusted; `sdlab.meshes.read` parses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sdlab.knobs import read_file
from sdlab.meshes.colours import F_DC
from sdlab.meshes.read import MAX_BYTES, Parsed, mismatch_explained, parse
from sdlab.parsing import OWN, Limits, parsed
from sdlab.shapes import Cloud, RawSplats
from sdlab.starts.gaussians import gaussians_of, missing_columns
from sdlab.starts.own import is_own
from sdlab.starts.placing import from_y_up
from sdlab.starts.points import joined, sampled
from sdlab.starts.sound import sound_cloud, sound_splats

READABLE = "GLB, OBJ, STL and PLY (mesh, points or Gaussians), and Gaussians as SPZ, SOG or .splat can be read"


class Start(NamedTuple):
    """What a file holds. It can be pickled."""

    found: Cloud | RawSplats
    remarks: tuple[str, ...] = ()  # what was left out, changed or guessed; each continues "scene.file = 'x': "
    is_own: bool = False  # whether the file is a scene of this program, in its own frame


def read_cloud(path: Path, n: int, rng: np.random.Generator, knob: str, up: str = "auto", degree: int = 0) -> Start:
    """Read the file at `path` as in `cloud_of`; ValueError names `knob`, the file and the problem."""
    given = f"{knob} = {str(path)!r}"
    return parsed_cloud(read_file(path, MAX_BYTES, given), n, rng, given, up, degree)


def parsed_cloud(
    raw: bytes,
    n: int,
    rng: np.random.Generator,
    given: str,
    up: str = "auto",
    degree: int = 0,
    limits: Limits = OWN,
) -> Start:
    """Return `cloud_of` the arguments, called in another process within `limits`; `rng` advances as it would here."""
    state = rng.bit_generator.state
    kinds = (Start, Cloud, RawSplats)
    found, rng.bit_generator.state = parsed(
        _drawing_from, raw, state, n, given, up, degree, given=given, kinds=kinds, needs=("trimesh",), limits=limits
    )
    return found


def _drawing_from(
    raw: bytes, state: dict[str, Any], n: int, given: str, up: str, degree: int
) -> tuple[Start, dict[str, Any]]:
    """Return `cloud_of` with a generator in `state`, and its state afterwards."""
    rng = np.random.default_rng()
    rng.bit_generator.state = state
    return cloud_of(raw, n, rng, given, up, degree), dict(rng.bit_generator.state)


def cloud_of(raw: bytes, n: int, rng: np.random.Generator, given: str, up: str = "auto", degree: int = 0) -> Start:
    """Parse a file: `n` points sampled on a mesh, a random `n` of its points (all if fewer), or all its Gaussians.

    `up` is the file's vertical axis: "z" (front +x), "y" (front +z, as in glTF) or "auto". Gaussians have harmonics up
    to `degree`, zero where the file has none. Raises ValueError that starts with `given` and says what is wrong.
    """
    file = parse(raw, given, READABLE)
    with mismatch_explained(given):
        start = _splats_in(file, degree) or _points_in(file, n, rng)
    if not file.is_y_up(up):
        return start
    return start._replace(found=from_y_up(start.found), is_own=False)


def _splats_in(file: Parsed, degree: int) -> Start | None:
    """Return the Gaussians of a file, None if it holds something else."""
    found = gaussians_of(file, degree)
    if found is None:
        return None
    own = file.kind == "ply" and is_own(file.source, found)
    splats, remarks = sound_splats(found, file.given, keep_stray=own)
    return Start(splats, tuple(remarks), own)


def _points_in(file: Parsed, n: int, rng: np.random.Generator) -> Start:
    """Return points on the meshes of a file, or its points. Raises ValueError if it has neither."""
    contents = file.contents()
    remarks = [*contents.remarks, *_incomplete(file)]
    if contents.parts:
        at, rgbs = sampled(contents.parts, n, rng, file.given)
    elif contents.points:
        at, rgbs = joined(contents.points)
    else:
        raise ValueError(f"{file.given} is a mesh without faces: export it with faces, or as points in a PLY")
    cloud, more = sound_cloud(at, rgbs, file.given)
    some = rng.permutation(len(cloud.points))[:n]
    return Start(Cloud(cloud.points[some], cloud.rgbs[some]), (*remarks, *more))


def _incomplete(file: Parsed) -> list[str]:
    """Say which columns a PLY lacks to be read as Gaussians, if it has their colours.

    Without a rotation, the orientation of a Gaussian is unknown, and without the rest its shape: only positions and
    colours can be kept.
    """
    vertex = file.source.tables["vertex"] if file.kind == "ply" else None
    if vertex is None or not set(F_DC) <= vertex.columns.keys():
        return []
    missing = ", ".join(missing_columns(vertex.columns))
    return [f"its Gaussians lack {missing}, so they are read as points with their colours"]
