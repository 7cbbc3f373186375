"""A z-buffer rasteriser of triangles for small images, compiled by numba.

In camera coordinates a ray is t (u, v, 1) = t d, and meets the plane of the triangle a, b, c at the depth t where
t d = w_a a + w_b b + w_c c with weights that sum to 1. By Cramer's rule, with V = a . (b x c),

    w_a / t = d . (b x c) / V,   w_b / t = d . (c x a) / V,   w_c / t = d . (a x b) / V,   1 / t = their sum,

all linear in u and v, and defined for triangles that reach behind the camera too (Olano and Greer 1997, "Triangle
scan conversion using 2D homogeneous coordinates"): nothing has to be clipped, samples nearer than NEAR are discarded.
The weights are perspective-correct as they are.

`_cover` keeps the nearest triangle of every sample, `_shade` then computes colour and light once per visible sample.
Lambert's law with ambient light as in the toybox (`sdlab.toybox.raytrace.lit`, without the highlight); a surface is lit
on the side that is seen. A texture's mipmap level has texels of about the size of a sample. The kernels release the
GIL, and an image does not depend on the others of its batch.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.compiled import kernel
from sdlab.meshes.surface import LEVELS, Mesh
from sdlab.types import Cameras

NEAR = 0.01  # depth in world units of the nearest surface that is drawn
PER_SIDE = 3  # samples per pixel along each side
FLAT = 1e-14  # V in world units cubed, below which a triangle is seen edge-on
EDGE = 1e-9  # weight outside a triangle that still counts as inside, so that rounding leaves no gaps between neighbours
AMBIENT = 0.575  # middle of the toybox's range
LAMP = (0.6, 0.8)  # horizontal part, towards the camera, and vertical part of the unit vector to the light
f32 = np.float32


class Scratch(NamedTuple):
    """Buffers of one view, for V vertices, F faces and H x W samples."""

    points: np.ndarray  # [V, 3] float64, camera coordinates
    screen: np.ndarray  # [V, 2] float64, in samples from the upper left corner
    texels: np.ndarray  # [F] float32, texels per sample at depth 1
    backs: np.ndarray  # [F] bool, whether the back is seen
    owners: np.ndarray  # [H, W] int32, the face seen, -1 for none
    nearness: np.ndarray  # [H, W] float32, 1 / depth, 0 for none
    weights: np.ndarray  # [H, W, 2] float32, of the face's second and third corner


def render(
    mesh: Mesh, cams: Cameras, ambient: float = AMBIENT, per_side: int = PER_SIDE
) -> tuple[np.ndarray, np.ndarray]:
    """Return premultiplied rgb [B, H, W, 3] and coverage [B, H, W], float32 in [0, 1], from per_side^2 samples a pixel.

    The light comes from above and behind each camera; `ambient` in [0, 1] is the share of it that has no direction.
    """
    rgb = np.empty((len(cams), cams.height, cams.width, 3), np.float32)
    coverage = np.empty((len(cams), cams.height, cams.width), np.float32)
    azimuth = np.radians(cams.azimuth.double().cpu().numpy())
    lights = np.stack([LAMP[0] * np.cos(azimuth), LAMP[0] * np.sin(azimuth), np.full_like(azimuth, LAMP[1])], 1)
    viewmats, Ks = (np.ascontiguousarray(x.double().cpu().numpy()) for x in (cams.viewmats, cams.Ks))
    _render(mesh, viewmats, Ks, lights, float(ambient), per_side, _scratch(mesh, cams, per_side), rgb, coverage)
    return rgb, coverage


def views(mesh: Mesh, cams: Cameras, background: float = 1.0) -> Float[Tensor, "B 3 H W"]:
    """Return images of the mesh, rgb in [0, 1], in front of a grey level, as a scene renders itself from `cams`."""
    rgb, coverage = render(mesh, cams)
    return torch.from_numpy(rgb + background * (1 - coverage[..., None])).permute(0, 3, 1, 2).contiguous()


def _scratch(mesh: Mesh, cams: Cameras, per_side: int) -> Scratch:
    vertices, faces, height, width = len(mesh.vertices), len(mesh.faces), cams.height * per_side, cams.width * per_side
    return Scratch(
        points=np.empty((vertices, 3)),
        screen=np.empty((vertices, 2)),
        texels=np.empty(faces, np.float32),
        backs=np.empty(faces, np.bool_),
        owners=np.empty((height, width), np.int32),
        nearness=np.empty((height, width), np.float32),
        weights=np.empty((height, width, 2), np.float32),
    )


# ---- kernels ----------------------------------------------------------------------------------------------------


@kernel(inline="always")
def _cross(p, a, b):
    return (
        p[a, 1] * p[b, 2] - p[a, 2] * p[b, 1],
        p[a, 2] * p[b, 0] - p[a, 0] * p[b, 2],
        p[a, 0] * p[b, 1] - p[a, 1] * p[b, 0],
    )


@kernel(inline="always")
def _project(vertices, viewmat, K, per_side, points, screen):
    """Write the vertices in camera coordinates, and those in front of NEAR in samples from the upper left corner."""
    for i in range(vertices.shape[0]):
        for r in range(3):
            points[i, r] = (
                viewmat[r, 0] * vertices[i, 0]
                + viewmat[r, 1] * vertices[i, 1]
                + viewmat[r, 2] * vertices[i, 2]
                + viewmat[r, 3]
            )
        if points[i, 2] > NEAR:
            screen[i, 0] = (K[0, 0] * points[i, 0] / points[i, 2] + K[0, 2]) * per_side
            screen[i, 1] = (K[1, 1] * points[i, 1] / points[i, 2] + K[1, 2]) * per_side


@kernel(inline="always")
def _span(low, high, most):
    """Return the samples (begin, end), of `most`, whose centres lie between two positions."""
    return int(min(max(math.ceil(low - 0.5), 0.0), most)), int(min(max(math.floor(high - 0.5) + 1.0, 0.0), most))


@kernel(inline="always")
def _sample(texels, begins, sides, image, level, u, v, channel_from, out):
    """Write the bilinear colour of an image, repeated in both directions, at (u, v) into `out` from a channel on."""
    width, height = max(sides[image, 0] >> level, 1), max(sides[image, 1] >> level, 1)
    x, y = (u - math.floor(u)) * width - 0.5, (1.0 - (v - math.floor(v))) * height - 0.5
    left, top = math.floor(x), math.floor(y)
    across, down = x - left, y - top
    x0, y0 = int(left) % width, int(top) % height
    x1, y1 = (x0 + 1) % width, (y0 + 1) % height
    begin = begins[image, level]
    a, b, c, d = begin + y0 * width + x0, begin + y0 * width + x1, begin + y1 * width + x0, begin + y1 * width + x1
    for k in range(channel_from, 4):
        upper = texels[a, k] + across * (f32(texels[b, k]) - f32(texels[a, k]))
        lower = texels[c, k] + across * (f32(texels[d, k]) - f32(texels[c, k]))
        out[k] = (upper + down * (lower - upper)) / 255.0


@kernel(inline="always")
def _level(texels_at_1, depth):
    """Return the mipmap level whose texels have about the area of a sample, given their number in it at depth 1."""
    number = texels_at_1 * depth * depth * depth  # on one plane, the area in a sample grows with the cube of the depth
    return 0 if number <= 1.0 else int(min(0.5 * math.log2(number) + 0.5, LEVELS - 1.0))


@kernel(inline="always")
def _cover(mesh, K, per_side, scratch):
    """Find the nearest triangle of every sample, from the vertices that `_project` wrote."""
    faces, uvs, images = mesh.faces, mesh.uvs, mesh.images
    texels, begins, sides, cutoffs = mesh.textures
    points, screen, texels_at_1, backs, owners, nearness, weights = scratch
    height, width = owners.shape
    fx, fy, cx, cy = K[0, 0] * per_side, K[1, 1] * per_side, K[0, 2] * per_side, K[1, 2] * per_side
    paint = np.empty(4)
    nearness[:] = 0
    owners[:] = -1
    for f in range(faces.shape[0]):
        a, b, c = faces[f, 0], faces[f, 1], faces[f, 2]
        if min(points[a, 2], points[b, 2], points[c, 2]) > NEAR:
            left, right = _span(
                min(screen[a, 0], screen[b, 0], screen[c, 0]), max(screen[a, 0], screen[b, 0], screen[c, 0]), width
            )
            top, bottom = _span(
                min(screen[a, 1], screen[b, 1], screen[c, 1]), max(screen[a, 1], screen[b, 1], screen[c, 1]), height
            )
        elif max(points[a, 2], points[b, 2], points[c, 2]) > NEAR:
            left, right, top, bottom = 0, width, 0, height
        else:
            continue
        if left >= right or top >= bottom:
            continue
        ax, ay, az = _cross(points, b, c)
        volume = points[a, 0] * ax + points[a, 1] * ay + points[a, 2] * az
        if abs(volume) < FLAT:
            continue
        bx, by, bz = _cross(points, c, a)
        kx, ky, kz = _cross(points, a, b)
        ax, ay, az, bx, by, bz = ax / volume, ay / volume, az / volume, bx / volume, by / volume, bz / volume
        kx, ky, kz = kx / volume, ky / volume, kz / volume
        backs[f] = volume > 0.0
        image = images[f]
        if image >= 0:
            du, dv = uvs[f, 1, 0] - uvs[f, 0, 0], uvs[f, 1, 1] - uvs[f, 0, 1]
            eu, ev = uvs[f, 2, 0] - uvs[f, 0, 0], uvs[f, 2, 1] - uvs[f, 0, 1]
            texels_at_1[f] = abs(du * ev - dv * eu) * sides[image, 0] * sides[image, 1] / (abs(volume) * fx * fy)
        holes = image >= 0 and cutoffs[image] > 0.0
        for row in range(top, bottom):
            v = (row + 0.5 - cy) / fy
            for column in range(left, right):
                u = (column + 0.5 - cx) / fx
                wa, wb, wc = ax * u + ay * v + az, bx * u + by * v + bz, kx * u + ky * v + kz
                near = wa + wb + wc
                if f32(near) <= nearness[row, column] or near * NEAR >= 1.0 or min(wa, wb, wc) < -EDGE * near:
                    continue
                wb, wc = min(max(wb / near, 0.0), 1.0), min(max(wc / near, 0.0), 1.0)
                if holes:
                    tu = uvs[f, 0, 0] + wb * (uvs[f, 1, 0] - uvs[f, 0, 0]) + wc * (uvs[f, 2, 0] - uvs[f, 0, 0])
                    tv = uvs[f, 0, 1] + wb * (uvs[f, 1, 1] - uvs[f, 0, 1]) + wc * (uvs[f, 2, 1] - uvs[f, 0, 1])
                    _sample(texels, begins, sides, image, _level(texels_at_1[f], 1.0 / near), tu, tv, 3, paint)
                    if paint[3] < cutoffs[image]:
                        continue
                nearness[row, column] = near
                owners[row, column] = f
                weights[row, column, 0] = wb
                weights[row, column, 1] = wc


@kernel(inline="always")
def _shade(mesh, light, ambient, per_side, scratch, rgb, coverage):
    """Average the colours of each pixel's samples."""
    normals, rgbs, uvs, images = mesh.normals, mesh.rgbs, mesh.uvs, mesh.images
    texels, begins, sides, _ = mesh.textures
    _, _, texels_at_1, backs, owners, nearness, weights = scratch
    share = f32(1.0 / (per_side * per_side))
    light_x, light_y, light_z = light[0], light[1], light[2]
    paint = np.ones(4)
    for row in range(rgb.shape[0]):
        for column in range(rgb.shape[1]):
            red = green = blue = seen = f32(0)
            for y in range(row * per_side, (row + 1) * per_side):
                for x in range(column * per_side, (column + 1) * per_side):
                    f = owners[y, x]
                    if f < 0:
                        continue
                    wb, wc = weights[y, x, 0], weights[y, x, 1]
                    wa = f32(1) - wb - wc
                    nx = wa * normals[f, 0, 0] + wb * normals[f, 1, 0] + wc * normals[f, 2, 0]
                    ny = wa * normals[f, 0, 1] + wb * normals[f, 1, 1] + wc * normals[f, 2, 1]
                    nz = wa * normals[f, 0, 2] + wb * normals[f, 1, 2] + wc * normals[f, 2, 2]
                    norm = 1.0 / math.sqrt(nx * nx + ny * ny + nz * nz + f32(1e-12))
                    norm = -norm if backs[f] else norm
                    facing = (nx * light_x + ny * light_y + nz * light_z) * norm
                    factor = ambient * (0.8 + 0.2 * nz * norm) + (1.0 - ambient) * max(facing, 0.0)
                    if images[f] >= 0:
                        tu = wa * uvs[f, 0, 0] + wb * uvs[f, 1, 0] + wc * uvs[f, 2, 0]
                        tv = wa * uvs[f, 0, 1] + wb * uvs[f, 1, 1] + wc * uvs[f, 2, 1]
                        level = _level(texels_at_1[f], 1.0 / nearness[y, x])
                        _sample(texels, begins, sides, images[f], level, tu, tv, 0, paint)
                    else:
                        paint[:3] = 1.0
                    red += factor * paint[0] * (wa * rgbs[f, 0, 0] + wb * rgbs[f, 1, 0] + wc * rgbs[f, 2, 0])
                    green += factor * paint[1] * (wa * rgbs[f, 0, 1] + wb * rgbs[f, 1, 1] + wc * rgbs[f, 2, 1])
                    blue += factor * paint[2] * (wa * rgbs[f, 0, 2] + wb * rgbs[f, 1, 2] + wc * rgbs[f, 2, 2])
                    seen += f32(1)
            seen *= share
            coverage[row, column] = seen
            rgb[row, column, 0] = min(red * share, seen)
            rgb[row, column, 1] = min(green * share, seen)
            rgb[row, column, 2] = min(blue * share, seen)


@kernel
def _render(mesh, viewmats, Ks, lights, ambient, per_side, scratch, rgb, coverage):
    """Render every view into `rgb` and `coverage`."""
    for i in range(rgb.shape[0]):
        _project(mesh.vertices, viewmats[i], Ks[i], per_side, scratch.points, scratch.screen)
        _cover(mesh, Ks[i], per_side, scratch)
        _shade(mesh, lights[i], ambient, per_side, scratch, rgb[i], coverage[i])
