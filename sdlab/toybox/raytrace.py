"""Ray caster for small images of a few dozen simple solids, compiled by numba.

A solid is a unit shape (ball, cube, cylinder, cone) under an affine map. Rays are transformed into the solid's own
frame, where the intersection has a closed form. They are not normalised there, so that distances along them stay
comparable. Camera rows are (right, down, forward), as everywhere in the project; distances along rays are depths.

An image is drawn in two passes. `cover` visits the samples that each solid may touch and keeps the nearest depth, in
branch-free inner loops that the compiler vectorises. `shade` then computes normal, light and pattern once per visible
surface sample.

The kernels release the GIL, and an image does not depend on the others in its batch. `no_type_check` exempts functions
compiled by numba from the run-time type checker of the tests, which would wrap the Python function.
"""

from __future__ import annotations

import math
from typing import NamedTuple, no_type_check

import numpy as np

from sdlab.compiled import kernel

BALL, CUBE, CYLINDER, CONE = range(4)
PLAIN, STRIPED, SPOTTED = range(3)
FAR = np.float32(1e9)  # "no hit"; finite, because fastmath assumes that there are no infinities
NEAR = np.float32(1e-3)
TINY = np.float32(1e-7)
ONE, HALF, ZERO = np.float32(1.0), np.float32(0.5), np.float32(0.0)

# Marks of a pattern. Stripes: bands across a direction tilted forward, so that no horizontal face lies within one band.
# Spots: balls on a body-centred lattice, so that every axis-aligned plane cuts some.
STRIPE_PERIOD, STRIPE_SHIFT, STRIPE_SHARE, STRIPE_TILT = 0.36, 0.8, 0.30, math.radians(30)
SPOT_PERIOD, SPOT_RADIUS, SPOT_SHIFT = 0.42, 0.125, 0.4


class Batch(NamedTuple):
    """n images and their K solids in total, packed: image i owns solids first[i] to first[i + 1] - 1."""

    first: np.ndarray  # [n + 1] int64
    kinds: np.ndarray  # [K] int64: BALL, CUBE, CYLINDER or CONE
    to_world: np.ndarray  # [K, 3, 3] linear part of the map from the solid's own frame to the world
    to_local: np.ndarray  # [K, 3, 3] its inverse
    centres: np.ndarray  # [K, 3] world
    colours: np.ndarray  # [K, 3] RGB in [0, 1]
    patterns: np.ndarray  # [K] int64: PLAIN, STRIPED or SPOTTED
    marks: np.ndarray  # [n, 3] RGB of the stripes or spots
    stretches: np.ndarray  # [n, 3] world = stretch * object; patterns are defined in the object's frame
    eyes: np.ndarray  # [n, 3] camera positions
    axes: np.ndarray  # [n, 3, 3] camera axes right, down, forward as rows
    lights: np.ndarray  # [n, 3] unit vectors towards the light
    shading: np.ndarray  # [n, 2] ambient fraction in [0, 1], strength of the highlight
    grounds: np.ndarray  # [n, 2, 3] the two colours of the background gradient
    slopes: np.ndarray  # [n, 2] direction of the gradient on the screen (right, down); zero gives the mean colour


compiled = kernel(finite=True)
inlined = kernel(finite=True, inline="always")


@inlined
@no_type_check
def ball_bounds(to_camera, centre, bounds):
    """Write an ellipsoid's screen box (left, right, top, bottom), in units of tan, from tangents of its dual conic."""
    ww = 0.0
    for c in range(3):
        ww += to_camera[2, c] ** 2
    ww -= centre[2] ** 2
    if ww > -1e-6:  # extends behind the camera
        bounds[0] = bounds[2] = -1e9
        bounds[1] = bounds[3] = 1e9
        return
    for axis in range(2):
        uu, uw = -(centre[axis] ** 2), -centre[axis] * centre[2]
        for c in range(3):
            uu += to_camera[axis, c] ** 2
            uw += to_camera[axis, c] * to_camera[2, c]
        root = math.sqrt(max(uw * uw - uu * ww, 0.0))
        one, other = (uw - root) / ww, (uw + root) / ww
        bounds[2 * axis], bounds[2 * axis + 1] = min(one, other), max(one, other)


@inlined
@no_type_check
def corner_bounds(to_camera, centre, bounds):
    """Write the screen box of any other solid, from the eight corners of its bounding box."""
    bounds[0] = bounds[2] = 1e9
    bounds[1] = bounds[3] = -1e9
    for corner in range(8):
        x, y, z = 1.0 - 2.0 * (corner & 1), 1.0 - (corner & 2), 1.0 - 0.5 * (corner & 4)
        depth = max(to_camera[2, 0] * x + to_camera[2, 1] * y + to_camera[2, 2] * z + centre[2], 0.05)
        for axis in range(2):
            at = to_camera[axis, 0] * x + to_camera[axis, 1] * y + to_camera[axis, 2] * z + centre[axis]
            bounds[2 * axis] = min(bounds[2 * axis], at / depth)
            bounds[2 * axis + 1] = max(bounds[2 * axis + 1], at / depth)


@inlined
@no_type_check
def screen_span(low, high, tan_half_fov, fine):
    """Return the sample range (begin, end) between two tangents along a screen axis, one sample wider on each side."""
    begin = math.floor((low / tan_half_fov + 1.0) * 0.5 * fine) - 1.0
    end = math.ceil((high / tan_half_fov + 1.0) * 0.5 * fine) + 1.0
    return int(min(max(begin, 0.0), fine)), int(min(max(end, 0.0), fine))


@inlined
@no_type_check
def cover_ball(ox, oy, oz, lx, ly, lz, sx, sy, sz, k, depths, owners):
    """Intersect a row of samples with the unit ball; the ray of sample j is o + t (l + j s).

    Like the other `cover_*` kernels, updates `depths` and `owners` where the hit is nearer.
    """
    outside = ox * ox + oy * oy + oz * oz - ONE
    for j in range(depths.shape[0]):
        at = np.float32(j)
        dx, dy, dz = lx + at * sx, ly + at * sy, lz + at * sz
        a = dx * dx + dy * dy + dz * dz
        half_b = ox * dx + oy * dy + oz * dz
        discriminant = half_b * half_b - a * outside
        t = (-half_b - np.sqrt(max(discriminant, ZERO))) / a
        hit = (discriminant > ZERO) & (t > NEAR) & (t < depths[j])
        depths[j] = t if hit else depths[j]
        owners[j] = k if hit else owners[j]


@inlined
@no_type_check
def cover_cube(ox, oy, oz, lx, ly, lz, sx, sy, sz, k, depths, owners):
    """Intersect a row of samples with the cube from -1 to 1: a hit if the last slab is entered before any is left."""
    for j in range(depths.shape[0]):
        at = np.float32(j)
        dx, dy, dz = lx + at * sx, ly + at * sy, lz + at * sz
        dx = dx if abs(dx) > TINY else TINY
        dy = dy if abs(dy) > TINY else TINY
        dz = dz if abs(dz) > TINY else TINY
        ix, iy, iz = ONE / dx, ONE / dy, ONE / dz
        mx, my, mz = -ox * ix, -oy * iy, -oz * iz
        ix, iy, iz = abs(ix), abs(iy), abs(iz)
        enter = max(max(mx - ix, my - iy), mz - iz)
        leave = min(min(mx + ix, my + iy), mz + iz)
        hit = (enter < leave) & (enter > NEAR) & (enter < depths[j])
        depths[j] = enter if hit else depths[j]
        owners[j] = k if hit else owners[j]


@inlined
@no_type_check
def cover_cylinder(ox, oy, oz, lx, ly, lz, sx, sy, sz, k, depths, owners):
    """Intersect a row of samples with the cylinder of radius 1 about z, from z = -1 to 1.

    A ray hits where it is inside both the infinite cylinder and the slab between the caps.
    """
    outside = ox * ox + oy * oy - ONE
    for j in range(depths.shape[0]):
        at = np.float32(j)
        dx, dy, dz = lx + at * sx, ly + at * sy, lz + at * sz
        dz = dz if abs(dz) > TINY else TINY
        a = dx * dx + dy * dy + TINY * TINY
        half_b = ox * dx + oy * dy
        discriminant = half_b * half_b - a * outside
        root = np.sqrt(max(discriminant, ZERO))
        iz, ia = ONE / dz, ONE / a
        middle, half = -oz * iz, abs(iz)
        enter = max((-half_b - root) * ia, middle - half)
        leave = min((-half_b + root) * ia, middle + half)
        hit = (discriminant > ZERO) & (enter < leave) & (enter > NEAR) & (enter < depths[j])
        depths[j] = enter if hit else depths[j]
        owners[j] = k if hit else owners[j]


@inlined
@no_type_check
def cover_cone(ox, oy, oz, lx, ly, lz, sx, sy, sz, k, depths, owners):
    """Intersect a row of samples with the cone x^2 + y^2 = ((1 - z) / 2)^2: apex at z = 1, unit base disc at z = -1."""
    radius = HALF * (ONE - oz)
    outside = ox * ox + oy * oy - radius * radius
    for j in range(depths.shape[0]):
        at = np.float32(j)
        dx, dy, dz = lx + at * sx, ly + at * sy, lz + at * sz
        growth = -HALF * dz
        a = dx * dx + dy * dy - growth * growth
        a = a if abs(a) > TINY * TINY else TINY * TINY
        half_b = ox * dx + oy * dy - radius * growth
        discriminant = half_b * half_b - a * outside
        root, ia = np.sqrt(max(discriminant, ZERO)), ONE / a
        one, other = (-half_b - root) * ia, (-half_b + root) * ia  # either may lie on the mirrored cone above the apex
        real = discriminant > ZERO
        t = one if real & (abs(oz + one * dz) <= ONE) & (one > NEAR) else FAR
        t = other if real & (abs(oz + other * dz) <= ONE) & (other > NEAR) & (other < t) else t
        base = (-ONE - oz) / (dz if dz > TINY else TINY)
        x, y = ox + base * dx, oy + base * dy
        t = base if (dz > TINY) & (x * x + y * y <= ONE) & (base > NEAR) & (base < t) else t
        hit = t < depths[j]
        depths[j] = t if hit else depths[j]
        owners[j] = k if hit else owners[j]


@inlined
@no_type_check
def cover(batch, i, tan_half_fov, origins, directions, depths, owners):
    """Find the depth and the solid (-1: none) of every sample [fine, fine] of image i.

    Also fills in the rays in each solid's frame for `shade`: the ray through the screen point (u, v), both from -1 to
    1, is origins[k] + t directions[k] @ (u, v, 1).
    """
    begin, end = batch.first[i], batch.first[i + 1]
    fine = depths.shape[0]
    eye, axes = batch.eyes[i], batch.axes[i]
    step = np.float32(2.0 / fine)
    to_camera, centre, bounds = np.empty((3, 3)), np.empty(3), np.empty(4)
    depths[:] = FAR
    owners[:] = -1
    for k in range(end - begin):
        to_local, to_world = batch.to_local[begin + k], batch.to_world[begin + k]
        x = batch.centres[begin + k, 0] - eye[0]
        y = batch.centres[begin + k, 1] - eye[1]
        z = batch.centres[begin + k, 2] - eye[2]
        for r in range(3):
            origins[k, r] = -(to_local[r, 0] * x + to_local[r, 1] * y + to_local[r, 2] * z)
            centre[r] = axes[r, 0] * x + axes[r, 1] * y + axes[r, 2] * z
            for c in range(3):
                scale = 1.0 if c == 2 else tan_half_fov
                along = to_local[r, 0] * axes[c, 0] + to_local[r, 1] * axes[c, 1] + to_local[r, 2] * axes[c, 2]
                directions[k, r, c] = scale * along
                to_camera[r, c] = (
                    axes[r, 0] * to_world[0, c] + axes[r, 1] * to_world[1, c] + axes[r, 2] * to_world[2, c]
                )
        kind = batch.kinds[begin + k]
        if kind == BALL:
            ball_bounds(to_camera, centre, bounds)
        else:
            corner_bounds(to_camera, centre, bounds)
        left, right = screen_span(bounds[0], bounds[1], tan_half_fov, fine)
        top, bottom = screen_span(bounds[2], bounds[3], tan_half_fov, fine)
        ox, oy, oz = origins[k, 0], origins[k, 1], origins[k, 2]
        m, owner = directions[k], np.int32(k)
        sx, sy, sz = step * m[0, 0], step * m[1, 0], step * m[2, 0]
        u = (np.float32(left) + HALF) * step - ONE
        for row in range(top, bottom):
            v = (np.float32(row) + HALF) * step - ONE
            lx = m[0, 0] * u + m[0, 1] * v + m[0, 2]
            ly = m[1, 0] * u + m[1, 1] * v + m[1, 2]
            lz = m[2, 0] * u + m[2, 1] * v + m[2, 2]
            near, whose = depths[row, left:right], owners[row, left:right]
            if kind == BALL:
                cover_ball(ox, oy, oz, lx, ly, lz, sx, sy, sz, owner, near, whose)
            elif kind == CUBE:
                cover_cube(ox, oy, oz, lx, ly, lz, sx, sy, sz, owner, near, whose)
            elif kind == CYLINDER:
                cover_cylinder(ox, oy, oz, lx, ly, lz, sx, sy, sz, owner, near, whose)
            else:
                cover_cone(ox, oy, oz, lx, ly, lz, sx, sy, sz, owner, near, whose)


@inlined
@no_type_check
def normal_at(kind, x, y, z):
    """Return the outward normal (not normalised) at a point on a solid's surface, in the solid's own frame."""
    if kind == BALL:
        return x, y, z
    if kind == CUBE:
        far = max(abs(x), abs(y), abs(z))
        if far == abs(x):
            return x, 0.0, 0.0
        return (0.0, y, 0.0) if far == abs(y) else (0.0, 0.0, z)
    around = math.sqrt(x * x + y * y)
    if kind == CYLINDER:
        return (0.0, 0.0, z) if abs(z) > around else (x, y, 0.0)
    if z + 1.0 < abs(around - 0.5 * (1.0 - z)):
        return 0.0, 0.0, -1.0
    return x, y, 0.25 * (1.0 - z)


@inlined
@no_type_check
def marked(pattern, x, y, z):
    """Return whether a point in the object's frame lies within a stripe or spot."""
    if pattern == STRIPED:
        along = (math.sin(STRIPE_TILT) * x + math.cos(STRIPE_TILT) * z) / STRIPE_PERIOD + STRIPE_SHIFT
        return along - math.floor(along) < STRIPE_SHARE
    x, y, z = x / SPOT_PERIOD, y / SPOT_PERIOD, z / SPOT_PERIOD + SPOT_SHIFT
    for offset in (0.0, 0.5):
        dx = x + offset - math.floor(x + offset) - 0.5
        dy = y + offset - math.floor(y + offset) - 0.5
        dz = z + offset - math.floor(z + offset) - 0.5
        if dx * dx + dy * dy + dz * dz < (SPOT_RADIUS / SPOT_PERIOD) ** 2:
            return True
    return False


@inlined
@no_type_check
def lit(nx, ny, nz, dx, dy, dz, light_x, light_y, light_z, ambient, highlight):
    """Return (factor of the surface colour, highlight to add) for a normal, a ray and a light.

    Only the light must be a unit vector. Lambert and Phong terms with exponent 16, and slightly more ambient light from
    above.
    """
    norm = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + 1e-12)
    nx, ny, nz = nx * norm, ny * norm, nz * norm
    facing = nx * light_x + ny * light_y + nz * light_z
    mirrored = light_x * dx + light_y * dy + light_z * dz - 2.0 * facing * (nx * dx + ny * dy + nz * dz)
    gleam = max(mirrored, 0.0) ** 2 / (dx * dx + dy * dy + dz * dz)
    gleam *= gleam
    gleam *= gleam
    gleam *= gleam * highlight
    return ambient * (0.8 + 0.2 * nz) + (1.0 - ambient) * max(facing, 0.0), gleam


@inlined
@no_type_check
def shade(batch, i, tan_half_fov, per_side, origins, directions, depths, owners, rgb, coverage):
    """Average the colours of each pixel's per_side^2 samples.

    A pixel that shows only background or one plain ball takes one sample, at its centre.

    All arrays are taken out of the batch up front: array views, and calls with them, are reference-counted, which would
    cost more than the shading if done in the loop.
    """
    size, begin = rgb.shape[0], batch.first[i]
    kinds, patterns, colours, to_local = batch.kinds, batch.patterns, batch.colours, batch.to_local
    eye, axes, stretch, mark = batch.eyes[i], batch.axes[i], batch.stretches[i], batch.marks[i]
    light_x, light_y, light_z = batch.lights[i, 0], batch.lights[i, 1], batch.lights[i, 2]
    ambient, highlight = batch.shading[i, 0], batch.shading[i, 1]
    start, finish, slope = batch.grounds[i, 0], batch.grounds[i, 1], batch.slopes[i]
    for row in range(size):
        for column in range(size):
            top, left = row * per_side, column * per_side
            owner, alike, depth = owners[top, left], True, 0.0
            for y in range(top, top + per_side):
                for x in range(left, left + per_side):
                    alike &= owners[y, x] == owner
                    depth += depths[y, x]
            if owner >= 0:
                alike &= kinds[begin + owner] == BALL and patterns[begin + owner] == PLAIN
            samples = 1 if alike else per_side
            red = green = blue = seen = 0.0
            for y in range(samples):
                v = (row + (y + 0.5) / samples) * 2.0 / size - 1.0
                for x in range(samples):
                    u = (column + (x + 0.5) / samples) * 2.0 / size - 1.0
                    owner = owners[top + y, left + x]
                    if owner < 0:
                        along = min(max(0.5 + 0.5 * (slope[0] * u + slope[1] * v), 0.0), 1.0)
                        red += start[0] + (finish[0] - start[0]) * along
                        green += start[1] + (finish[1] - start[1]) * along
                        blue += start[2] + (finish[2] - start[2]) * along
                        continue
                    k = begin + owner
                    t = depth / (per_side * per_side) if alike else depths[top + y, left + x]
                    right, down = t * u, t * v
                    nx, ny, nz = normal_at(
                        kinds[k],
                        origins[owner, 0]
                        + directions[owner, 0, 0] * right
                        + directions[owner, 0, 1] * down
                        + directions[owner, 0, 2] * t,
                        origins[owner, 1]
                        + directions[owner, 1, 0] * right
                        + directions[owner, 1, 1] * down
                        + directions[owner, 1, 2] * t,
                        origins[owner, 2]
                        + directions[owner, 2, 0] * right
                        + directions[owner, 2, 1] * down
                        + directions[owner, 2, 2] * t,
                    )
                    right, down = right * tan_half_fov, down * tan_half_fov
                    dx = axes[0, 0] * right + axes[1, 0] * down + axes[2, 0] * t
                    dy = axes[0, 1] * right + axes[1, 1] * down + axes[2, 1] * t
                    dz = axes[0, 2] * right + axes[1, 2] * down + axes[2, 2] * t
                    factor, gleam = lit(
                        # normals transform to the world by the inverse transpose
                        to_local[k, 0, 0] * nx + to_local[k, 1, 0] * ny + to_local[k, 2, 0] * nz,
                        to_local[k, 0, 1] * nx + to_local[k, 1, 1] * ny + to_local[k, 2, 1] * nz,
                        to_local[k, 0, 2] * nx + to_local[k, 1, 2] * ny + to_local[k, 2, 2] * nz,
                        dx,
                        dy,
                        dz,
                        light_x,
                        light_y,
                        light_z,
                        ambient,
                        highlight,
                    )
                    r, g, b = colours[k, 0], colours[k, 1], colours[k, 2]
                    if patterns[k] != PLAIN:
                        px, py, pz = (eye[0] + dx) / stretch[0], (eye[1] + dy) / stretch[1], (eye[2] + dz) / stretch[2]
                        if marked(patterns[k], px, py, pz):
                            r, g, b = mark[0], mark[1], mark[2]
                    red += min(r * factor + gleam, 1.0)
                    green += min(g * factor + gleam, 1.0)
                    blue += min(b * factor + gleam, 1.0)
                    seen += 1.0
            share = 1.0 / (samples * samples)
            rgb[row, column, 0] = red * share
            rgb[row, column, 1] = green * share
            rgb[row, column, 2] = blue * share
            coverage[row, column] = seen * share


@compiled
@no_type_check
def render_all(batch, tan_half_fov, per_side, rgb, coverage):
    """Render every image of the batch into `rgb` and `coverage`, with shared scratch buffers."""
    fine, most = rgb.shape[1] * per_side, 0
    for i in range(rgb.shape[0]):
        most = max(most, batch.first[i + 1] - batch.first[i])
    depths, owners = np.empty((fine, fine), np.float32), np.empty((fine, fine), np.int32)
    origins, directions = np.empty((most, 3), np.float32), np.empty((most, 3, 3), np.float32)
    for i in range(rgb.shape[0]):
        cover(batch, i, tan_half_fov, origins, directions, depths, owners)
        shade(batch, i, tan_half_fov, per_side, origins, directions, depths, owners, rgb[i], coverage[i])


def render(batch: Batch, size: int, tan_half_fov: float, per_side: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return rgb [n, size, size, 3] and coverage [n, size, size], float32 in [0, 1], from per_side^2 rays per pixel."""
    n = len(batch.eyes)
    rgb = np.empty((n, size, size, 3), np.float32)
    coverage = np.empty((n, size, size), np.float32)
    render_all(batch, tan_half_fov, per_side, rgb, coverage)
    return rgb, coverage
