"""Ray casting of a few dozen simple solids, one small picture at a time, compiled by numba.

A solid is a unit shape (ball, cube, cylinder, cone, see the `hit_*` functions) under an affine map. A ray is
taken into the solid's own frame, where the intersection is a formula; distances along the ray stay comparable
because the ray is mapped with its length. Camera rows are (right, down, forward), as everywhere in the project.

The kernels release the GIL, so threads render different pictures side by side; a picture's value does not
depend on how pictures are dealt to threads. `no_type_check` keeps the run-time type checker of the tests, which
would wrap the Python function, away from functions that numba compiles.
"""

from __future__ import annotations

import math
from typing import NamedTuple, no_type_check

import numba
import numpy as np

BALL, CUBE, CYLINDER, CONE = range(4)
FAR = 1e9  # "no hit": finite, because fastmath may not reason about infinities
NEAR = 1e-3
SHININESS = 16.0  # Phong exponent of the highlight


class Batch(NamedTuple):
    """n pictures and their K solids in all, packed: picture i owns the solids first[i] .. first[i + 1] - 1."""

    first: np.ndarray  # [n + 1] int64
    kinds: np.ndarray  # [K] int64: BALL, CUBE, CYLINDER or CONE
    to_local: np.ndarray  # [K, 3, 3] linear part of world -> the solid's own frame
    shift: np.ndarray  # [K, 3] its translation: local = to_local @ world + shift
    centres: np.ndarray  # [K, 3] world
    reaches: np.ndarray  # [K] radius of a world ball around the centre that holds the solid
    colours: np.ndarray  # [K, 3] RGB in [0, 1]
    eyes: np.ndarray  # [n, 3] camera positions
    axes: np.ndarray  # [n, 3, 3] camera axes right, down, forward as rows
    lights: np.ndarray  # [n, 3] unit vectors towards the light
    shading: np.ndarray  # [n, 2] ambient share in [0, 1], strength of the highlight
    grounds: np.ndarray  # [n, 2, 3] the two colours that the background runs between
    slopes: np.ndarray  # [n, 2] direction of that run on the screen (right, down); zero: the colours' mean


compiled = numba.njit(nogil=True, cache=True, fastmath=True, error_model="numpy")


@compiled
@no_type_check
def hit_ball(ox, oy, oz, dx, dy, dz):
    """Unit ball. Ray o + t d -> (t, normal), t = FAR for a miss; the same for the other shapes."""
    a = dx * dx + dy * dy + dz * dz
    half_b = ox * dx + oy * dy + oz * dz
    discriminant = half_b * half_b - a * (ox * ox + oy * oy + oz * oz - 1.0)
    if discriminant <= 0.0:
        return FAR, 0.0, 0.0, 0.0
    t = (-half_b - math.sqrt(discriminant)) / a
    return t, ox + t * dx, oy + t * dy, oz + t * dz


@compiled
@no_type_check
def slab(o, d):
    """Where the ray is between -1 and 1 along one axis: (enter, leave)."""
    if abs(d) < 1e-9:
        return (-FAR, FAR) if abs(o) <= 1.0 else (FAR, -FAR)
    one, other = (-1.0 - o) / d, (1.0 - o) / d
    return (one, other) if one < other else (other, one)


@compiled
@no_type_check
def hit_cube(ox, oy, oz, dx, dy, dz):
    """Cube from -1 to 1: the last slab entered, if it is entered before any is left."""
    enter_x, leave_x = slab(ox, dx)
    enter_y, leave_y = slab(oy, dy)
    enter_z, leave_z = slab(oz, dz)
    t = max(enter_x, enter_y, enter_z)
    if t >= min(leave_x, leave_y, leave_z):
        return FAR, 0.0, 0.0, 0.0
    if t == enter_x:
        return t, -math.copysign(1.0, dx), 0.0, 0.0
    if t == enter_y:
        return t, 0.0, -math.copysign(1.0, dy), 0.0
    return t, 0.0, 0.0, -math.copysign(1.0, dz)


@compiled
@no_type_check
def hit_cap(ox, oy, oz, dx, dy, dz, level):
    """The unit disc at z = level; its normal points away from z = 0."""
    if abs(dz) > 1e-9:
        t = (level - oz) / dz
        x, y = ox + t * dx, oy + t * dy
        if x * x + y * y <= 1.0:
            return t, 0.0, 0.0, level
    return FAR, 0.0, 0.0, 0.0


@compiled
@no_type_check
def hit_cylinder(ox, oy, oz, dx, dy, dz):
    """Radius 1 about z, from z = -1 to 1. From outside, the nearest of wall and caps is the entry."""
    t, nx, ny, nz = hit_cap(ox, oy, oz, dx, dy, dz, 1.0 if dz < 0.0 else -1.0)
    a = dx * dx + dy * dy
    half_b = ox * dx + oy * dy
    discriminant = half_b * half_b - a * (ox * ox + oy * oy - 1.0)
    if discriminant > 0.0 and a > 1e-12:
        wall = (-half_b - math.sqrt(discriminant)) / a
        if NEAR < wall < t and abs(oz + wall * dz) <= 1.0:
            return wall, ox + wall * dx, oy + wall * dy, 0.0
    return t, nx, ny, nz


@compiled
@no_type_check
def hit_cone(ox, oy, oz, dx, dy, dz):
    """Apex at z = 1, unit base disc at z = -1: x^2 + y^2 = ((1 - z) / 2)^2."""
    t, nx, ny, nz = FAR, 0.0, 0.0, 0.0
    if dz > 0.0:
        t, nx, ny, nz = hit_cap(ox, oy, oz, dx, dy, dz, -1.0)
    radius, growth = 0.5 * (1.0 - oz), -0.5 * dz
    a = dx * dx + dy * dy - growth * growth
    half_b = ox * dx + oy * dy - radius * growth
    discriminant = half_b * half_b - a * (ox * ox + oy * oy - radius * radius)
    if discriminant > 0.0 and abs(a) > 1e-12:
        root = math.sqrt(discriminant)
        for sign in (-1.0, 1.0):  # both: the smaller one may lie on the mirror cone above the apex
            wall = (-half_b + sign * root) / a
            z = oz + wall * dz
            if NEAR < wall < t and abs(z) <= 1.0:
                t, nx, ny, nz = wall, ox + wall * dx, oy + wall * dy, 0.25 * (1.0 - z)
    return t, nx, ny, nz


@compiled
@no_type_check
def screen_interval(offset, depth, reach, tan_half_fov, size):
    """Pixels along one screen axis that a ball at `offset` and `depth` can touch, one pixel to spare."""
    near, far = max(depth - reach, 0.3), max(depth, 0.3) + reach
    low, high = offset - reach, offset + reach
    low /= (near if low < 0.0 else far) * tan_half_fov
    high /= (far if high < 0.0 else near) * tan_half_fov
    return (low + 1.0) * 0.5 * size - 1.0, (high + 1.0) * 0.5 * size + 1.0


@compiled
@no_type_check
def render_one(batch, i, size, tan_half_fov, per_side, rgb, coverage):
    """Picture i of the batch into rgb [size, size, 3] and coverage [size, size]; per_side^2 rays a pixel."""
    begin, end = batch.first[i], batch.first[i + 1]
    count = end - begin
    eye, axes, light = batch.eyes[i], batch.axes[i], batch.lights[i]
    ambient, highlight = batch.shading[i, 0], batch.shading[i, 1]
    start, finish = batch.grounds[i, 0], batch.grounds[i, 1]

    origins = np.empty((count, 3))  # the eye in each solid's frame
    bounds = np.empty((count, 4))  # pixels it may touch: left, right, top, bottom
    for k in range(count):
        to_local, shift, centre = batch.to_local[begin + k], batch.shift[begin + k], batch.centres[begin + k]
        x, y, z = centre[0] - eye[0], centre[1] - eye[1], centre[2] - eye[2]
        right = axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z
        down = axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z
        depth = axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z
        reach = batch.reaches[begin + k]
        bounds[k, 0], bounds[k, 1] = screen_interval(right, depth, reach, tan_half_fov, size)
        bounds[k, 2], bounds[k, 3] = screen_interval(down, depth, reach, tan_half_fov, size)
        for r in range(3):
            origins[k, r] = to_local[r, 0] * eye[0] + to_local[r, 1] * eye[1] + to_local[r, 2] * eye[2] + shift[r]

    candidates = np.empty(count, np.int64)
    fine = size * per_side
    for row in range(size):
        for column in range(size):
            n_candidates = 0
            for k in range(count):
                if bounds[k, 0] <= column <= bounds[k, 1] and bounds[k, 2] <= row <= bounds[k, 3]:
                    candidates[n_candidates] = k
                    n_candidates += 1
            red = green = blue = covered = 0.0
            for sub in range(per_side * per_side):
                u = (column * per_side + sub % per_side + 0.5) / fine * 2.0 - 1.0
                v = (row * per_side + sub // per_side + 0.5) / fine * 2.0 - 1.0
                right, down = u * tan_half_fov, v * tan_half_fov
                dx = axes[0, 0] * right + axes[1, 0] * down + axes[2, 0]
                dy = axes[0, 1] * right + axes[1, 1] * down + axes[2, 1]
                dz = axes[0, 2] * right + axes[1, 2] * down + axes[2, 2]
                length = math.sqrt(dx * dx + dy * dy + dz * dz)
                dx, dy, dz = dx / length, dy / length, dz / length

                nearest, solid = FAR, -1
                nx = ny = nz = 0.0
                for c in range(n_candidates):
                    k = candidates[c]
                    m = batch.to_local[begin + k]
                    lx = m[0, 0] * dx + m[0, 1] * dy + m[0, 2] * dz
                    ly = m[1, 0] * dx + m[1, 1] * dy + m[1, 2] * dz
                    lz = m[2, 0] * dx + m[2, 1] * dy + m[2, 2] * dz
                    ox, oy, oz = origins[k, 0], origins[k, 1], origins[k, 2]
                    kind = batch.kinds[begin + k]
                    if kind == BALL:
                        t, hx, hy, hz = hit_ball(ox, oy, oz, lx, ly, lz)
                    elif kind == CUBE:
                        t, hx, hy, hz = hit_cube(ox, oy, oz, lx, ly, lz)
                    elif kind == CYLINDER:
                        t, hx, hy, hz = hit_cylinder(ox, oy, oz, lx, ly, lz)
                    else:
                        t, hx, hy, hz = hit_cone(ox, oy, oz, lx, ly, lz)
                    if NEAR < t < nearest:
                        nearest, solid, nx, ny, nz = t, begin + k, hx, hy, hz

                if solid < 0:
                    along = 0.5 + 0.5 * (batch.slopes[i, 0] * u + batch.slopes[i, 1] * v)
                    along = min(max(along, 0.0), 1.0)
                    red += start[0] + (finish[0] - start[0]) * along
                    green += start[1] + (finish[1] - start[1]) * along
                    blue += start[2] + (finish[2] - start[2]) * along
                    continue
                m = batch.to_local[solid]  # normals map with the transpose of world -> local
                wx = m[0, 0] * nx + m[1, 0] * ny + m[2, 0] * nz
                wy = m[0, 1] * nx + m[1, 1] * ny + m[2, 1] * nz
                wz = m[0, 2] * nx + m[1, 2] * ny + m[2, 2] * nz
                norm = math.sqrt(wx * wx + wy * wy + wz * wz + 1e-12)
                wx, wy, wz = wx / norm, wy / norm, wz / norm
                facing = wx * light[0] + wy * light[1] + wz * light[2]
                sky = 0.8 + 0.2 * wz  # a little more ambient light from above
                shade = ambient * sky + (1.0 - ambient) * max(facing, 0.0)
                mirrored = (
                    (2.0 * facing * wx - light[0]) * dx
                    + (2.0 * facing * wy - light[1]) * dy
                    + (2.0 * facing * wz - light[2]) * dz
                )
                gleam = highlight * max(-mirrored, 0.0) ** SHININESS
                colour = batch.colours[solid]
                red += min(colour[0] * shade + gleam, 1.0)
                green += min(colour[1] * shade + gleam, 1.0)
                blue += min(colour[2] * shade + gleam, 1.0)
                covered += 1.0
            share = 1.0 / (per_side * per_side)
            rgb[row, column, 0] = red * share
            rgb[row, column, 1] = green * share
            rgb[row, column, 2] = blue * share
            coverage[row, column] = covered * share


@compiled
@no_type_check
def render_all(batch, size, tan_half_fov, per_side, rgb, coverage):
    for i in range(rgb.shape[0]):
        render_one(batch, i, size, tan_half_fov, per_side, rgb[i], coverage[i])


def render(batch: Batch, size: int, tan_half_fov: float, per_side: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """rgb [n, size, size, 3] and coverage [n, size, size], float32 in [0, 1]; per_side^2 rays a pixel."""
    n = len(batch.eyes)
    rgb = np.empty((n, size, size, 3), np.float32)
    coverage = np.empty((n, size, size), np.float32)
    render_all(batch, size, tan_half_fov, per_side, rgb, coverage)
    return rgb, coverage
