"""The noise that a step adds to its views: fresh every time, or the same all along the run and shared between views.

    fresh    independent in every view of every step
    world    Yan et al. 2024, "Flow score distillation for diverse text-to-3D generation" (FSD): a function of the
             camera. One map of noise surrounds the scene, and a view sees the window that its azimuth and elevation
             point at.
    object   Yan et al. 2025, "Consistent flow distillation for text-to-3D generation" (CFD): noise that sticks to the
             surface, so that cameras that see the same place see the same noise there. Pixels that see no surface have
             the noise of `world`.

With fixed noise and a falling t, SDS follows the prior's probability flow: with z_t = alpha z + sigma noise, DDIM is

    z' = z - (sigma / alpha - sigma' / alpha') (eps - noise)

for the clean z, a step of gradient descent on SDS. The noise then decides which image the run ends at.

Whatever the kind, the entries of one view are independent and N(0, 1) for given camera and surface. For `object` that
takes care, because interpolated noise is neither. Space is divided into cells smaller than a pixel, each with a noise
of its own. A pixel collects the cells that its part of the surface touches; a cell that several pixels touch goes to
one of them; and n independent cells, summed and divided by sqrt(n), are N(0, 1). Cells are hashed into a table
(Teschner et al. 2003), whose entries are handed out like cells, so that a collision costs sharing, not independence.

Not implemented: FSD's own noise behind the object, one image for all cameras; CFD's reference mesh and texture, for
which cells of space stand in; its slow renewal of the noise. `share` is CFD's sqrt(beta).
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.rng import StepRng
from sdlab.transfer import upload
from sdlab.types import Cameras, Render

KINDS = ("fresh", "world", "object")
WHOLE_RUN = -1  # step number of the random streams that do not change along a run
SPAN = 180.0  # degrees of azimuth and of elevation across a window (FSD's released code)
OPAQUE = 0.5  # opacity from which a pixel sees a surface
SAMPLES = 3  # places along each side of a pixel at which the surface is looked up
ENTRIES = 32  # of the table, per pixel
PRIMES = (73_856_093, 19_349_663, 83_492_791)  # of the hash
KEPT = 8  # maps and tables in memory, of about 1 MB each at 64 pixels


def draw(
    kind: str, share: float, rng: StepRng, like: Tensor, cams: Cameras | None = None, render: Render | None = None
) -> Tensor:
    """Return the noise [B, C, H, W] of a step's views, standard normal, with dtype and device of `like`.

    `kind` is one of KINDS; of another than fresh, `share` consistent + sqrt(1 - share^2) fresh is returned. Events that
    no camera renders, such as images and points, keep one noise each in place of `world` and `object`, and so do views
    without a `render` in place of `object`.
    """
    fresh = rng.randn("noise", like)
    if kind == "fresh":
        return fresh
    if cams is None or render is None:
        consistent = StepRng(rng.seed, WHOLE_RUN).randn("noise", like)
    else:
        consistent = world(rng.seed, like, cams)
        if kind == "object":
            consistent = torch.stack([on_surface(rng.seed, *one) for one in _each(consistent, cams, render)])
    return share * consistent + (1 - share**2) ** 0.5 * fresh


def world(seed: int, like: Tensor, cams: Cameras) -> Tensor:
    """Return the window of each camera into the map of noise around the scene; [B, C, H, W] as `like`.

    A window takes up SPAN degrees of the map, whose columns go once around.
    """
    _, channels, height, width = like.shape
    rows, columns = round(180.0 / SPAN * height), round(360.0 / SPAN * width)
    around = _drawn(seed, "world noise", (channels, rows + height, columns))
    windows = []
    for azimuth, elevation in zip(cams.azimuth.tolist(), cams.elevation.tolist(), strict=True):
        top = round((90.0 - elevation) / 180.0 * rows)
        left = round(azimuth / 360.0 * columns)
        across = (left + torch.arange(width)) % columns
        windows.append(around[:, top : top + height, across])
    return upload(torch.stack(windows), like.device).to(like.dtype)


def on_surface(seed: int, behind: Tensor, points: Tensor, opaque: Tensor) -> Tensor:
    """Return the noise [C, H, W] of one view of a surface.

    `points` [N, 3] are places of the surface in the world, `opaque` [N] whether there is one, for N = SAMPLES^2 H W
    samples row by row; `behind` [C, H, W] is the noise of pixels without a surface.
    """
    channels, height, width = behind.shape
    cells = torch.floor(points * height).long()  # of about half a pixel for an object that fills the image
    entries = ENTRIES * height * width
    x, y, z = (cells[:, i] * prime for i, prime in enumerate(PRIMES))
    entry = torch.bitwise_xor(torch.bitwise_xor(x, y), z).remainder(entries)
    pixel = upload(_pixels(height, width), points.device)
    entry, pixel = owners(entry[opaque], pixel[opaque], height * width)
    table = upload(_drawn(seed, "object noise", (channels, entries)), points.device)
    # in float64, whose sums do not depend on their order once rounded to float32
    total = torch.zeros(channels, height * width, dtype=torch.float64, device=points.device)
    total.index_add_(1, pixel, table[:, entry].double())
    count = torch.bincount(pixel, minlength=height * width)
    noise = (total / count.clamp_min(1).sqrt()).to(behind).view_as(behind)
    return torch.where(count.view(height, width) > 0, noise, behind)


def owners(entry: Tensor, pixel: Tensor, pixels: int) -> tuple[Tensor, Tensor]:
    """Return each entry of `entry` [N] once, with the first of the pixels in `pixel` [N] that touch it."""
    pairs = torch.unique(entry * pixels + pixel)  # sorted
    entry, pixel = pairs // pixels, pairs % pixels
    first = torch.ones_like(entry, dtype=torch.bool)
    first[1:] = entry[1:] != entry[:-1]
    return entry[first], pixel[first]


@functools.lru_cache(maxsize=KEPT)
def _drawn(seed: int, stream: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=StepRng(seed, WHOLE_RUN)(stream))


@functools.lru_cache(maxsize=KEPT)
def _pixels(height: int, width: int) -> Tensor:
    """Return the index of the pixel of each sample of a view, [SAMPLES^2 H W]."""
    index = torch.arange(height * width).view(height, width)
    return index.repeat_interleave(SAMPLES, 0).repeat_interleave(SAMPLES, 1).flatten()


def _each(behind: Tensor, cams: Cameras, render: Render) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the arguments of `on_surface`, after the seed, for each view."""
    height, width = (SAMPLES * n for n in behind.shape[-2:])
    with torch.no_grad():
        alpha, depth = (
            F.interpolate(image.float(), (height, width), mode="bilinear", align_corners=False)
            for image in (render.alpha, render.depth)
        )
        points = in_world(depth[:, 0] / alpha[:, 0].clamp_min(1e-6), cams)
    return list(zip(behind, points, alpha.flatten(1) > OPAQUE, strict=True))


def in_world(depth: Tensor, cams: Cameras) -> Tensor:
    """Return the places in the world [B, H W, 3] of pixels with these depths [B, H, W] along the cameras' axes, for
    images of any size that cover the field of view of `cams`."""
    _, height, width = depth.shape
    to_device = functools.partial(upload, device=depth.device)
    Ks, to_world = to_device(cams.Ks), to_device(torch.linalg.inv(cams.viewmats))
    u = (torch.arange(width, device=depth.device) + 0.5) * (cams.width / width)
    v = (torch.arange(height, device=depth.device) + 0.5) * (cams.height / height)
    x = (u - Ks[:, 0, 2, None]) / Ks[:, 0, 0, None]
    y = (v - Ks[:, 1, 2, None]) / Ks[:, 1, 1, None]
    rays = torch.stack([x[:, None, :].expand_as(depth), y[:, :, None].expand_as(depth), torch.ones_like(depth)], dim=-1)
    places = (rays * depth[..., None]).flatten(1, 2)
    return places @ to_world[:, :3, :3].mT + to_world[:, None, :3, 3]
