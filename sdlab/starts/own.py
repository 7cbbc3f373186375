"""The PLY that this program writes: Gaussians in the frame of its scenes, in which they can start again."""

from __future__ import annotations

import math

import numpy as np

from sdlab.meshes.colours import F_DC, SH_C0
from sdlab.meshes.ply import Ply
from sdlab.starts.decoded import Gaussians

COMMENT = "Score Distillation Lab scene: z is up, the front faces +x, the origin is in its middle"
COLUMNS = (  # in the order of the 3DGS release (INRIA), degree 0
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
# limits of scenes before the comment was written: scene.bound, scene.scale_min and scene.scale_max of all presets
BOUND, SCALES = 1.05, (math.log(0.001), math.log(0.2))
SLACK = 1e-3


def is_own(file: Ply, found: Gaussians) -> bool:
    """Return whether this program wrote a PLY: it has our comment, or all that files without it have in common, which
    is the layout, no normals, no NaN or infinity, unit quaternions, colours in range, and the limits of a scene."""
    if COMMENT in file.comments:
        return True
    vertex = file.tables["vertex"]
    if tuple(vertex.columns) != COLUMNS or len(file.tables) > 1 or file.comments or not vertex.count:
        return False
    columns = vertex.columns
    return (
        all(kind == np.float32 for kind in vertex.types.values())
        and all(np.isfinite(values).all() for values in columns.values())
        and not any(columns[name].any() for name in ("nx", "ny", "nz"))
        and all(bool((abs(columns[name]) <= (0.5 + SLACK) / SH_C0).all()) for name in F_DC)
        and bool((abs(np.linalg.norm(found.quats, axis=1) - 1) < SLACK).all())
        and bool((abs(found.means) <= BOUND + SLACK).all())
        and bool(((found.log_scales >= SCALES[0] - SLACK) & (found.log_scales <= SCALES[1] + SLACK)).all())
    )
