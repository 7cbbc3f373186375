"""The six CUDA kernels of gsplat 1.5 that the renderer calls, emulated in torch, under gsplat's own Python code.

Each checks its tensors as the C++ does (on CUDA, contiguous, float32), computes on the pretended device (`pretended`)
without recording what it does, and records the one wait of the real kernels: the number of intersections.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pretended
import torch
from torch import Tensor

FAR = 1e10


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any) -> Any:
        for x in args:
            if isinstance(x, Tensor):
                if not (pretended.is_cuda(x) or pretended.is_wild(x)):
                    raise pretended.Mismatch(f"gsplat: {function.__name__} takes CUDA tensors, one is on the CPU")
                if not x.is_contiguous():
                    raise RuntimeError(f"gsplat: {function.__name__} takes contiguous tensors")
                if x.dtype not in (torch.float32, torch.int32, torch.int64):
                    raise RuntimeError(f"gsplat: {function.__name__} takes float32, not {x.dtype}")
        with pretended.quietly():
            return function(*args)

    return run


def _project(means, quats, scales, viewmats, Ks, width, height, eps2d, near, far):
    from gsplat.cuda import _torch_impl

    covariances, _ = _torch_impl._quat_scale_to_covar_preci(quats, scales, True, False, triu=False)
    return _torch_impl._fully_fused_projection(
        means, covariances, viewmats, Ks, width, height, eps2d=eps2d, near_plane=near, far_plane=far
    )


@_kernel
def projection_ewa_3dgs_fused_fwd(
    means, covars, quats, scales, opacities, viewmats, Ks, width, height, eps2d, near, far, clip, compensated, camera
):
    with torch.no_grad():
        radii, means2d, depths, conics, _ = _project(
            means, quats, scales, viewmats, Ks, width, height, eps2d, near, far
        )
    return radii.to(torch.int32).contiguous(), means2d.contiguous(), depths.contiguous(), conics.contiguous(), None


@_kernel
def projection_ewa_3dgs_fused_bwd(
    means,
    covars,
    quats,
    scales,
    viewmats,
    Ks,
    width,
    height,
    eps2d,
    camera,
    radii,
    conics,
    compensations,
    of_means2d,
    of_depths,
    of_conics,
    of_compensations,
    viewmats_too,
):
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in (means, quats, scales)]
        _, *found, _ = _project(*leaves, viewmats, Ks, width, height, eps2d, 0.01, FAR)
        drawn = (radii > 0).all(-1)
        masks = (drawn[..., None], drawn, drawn[..., None])
        kept = [torch.where(mask, x, torch.zeros_like(x)) for mask, x in zip(masks, found, strict=True)]
        grads = torch.autograd.grad(kept, leaves, [of_means2d, of_depths, of_conics])
    return grads[0], None, grads[1], grads[2], None


def intersect_tile(means2d, radii, depths, *how):
    pretended.note("read", "n_isects.item()", "gsplat")  # in C++, to allocate the list of intersections
    return _intersect_tile(means2d, radii, depths)


@_kernel
def _intersect_tile(means2d, radii, depths):
    """Return every drawn Gaussian once per image, by depth: the emulated images have a single tile."""
    n = means2d.shape[-2]
    drawn = (radii.reshape(-1, n, 2) > 0).all(-1)
    ids = []
    for image, depth in enumerate(depths.reshape(-1, n)):
        order = torch.argsort(depth, stable=True)
        ids.append(order[drawn[image][order]] + image * n)
    return radii.sum(-1), torch.cat(ids), torch.cat(ids).to(torch.int32)


@_kernel
def intersect_offset(isect_ids, images, tile_width, tile_height):
    return torch.zeros(images, tile_height, tile_width, dtype=torch.int32, device=isect_ids.device)


def _blend(means2d, conics, colors, opacities, backgrounds, width, height, ids):
    from sdlab.raster.model import ALPHA_MAX, ALPHA_MIN, T_STOP

    images, n = means2d.shape[:-2], means2d.shape[-2]
    side_x, side_y = (torch.arange(k, device=means2d.device) + 0.5 for k in (width, height))
    y, x = torch.meshgrid(side_y, side_x, indexing="ij")
    rows = [v.reshape(-1, n, *v.shape[len(images) + 1 :]) for v in (means2d, conics, colors, opacities)]
    pictures, alphas = [], []
    for i, (mean, conic, color, opacity) in enumerate(zip(*rows, strict=True)):
        order = ids.long()
        order = order[order // n == i] - i * n
        dx, dy = x.reshape(1, -1) - mean[order, 0, None], y.reshape(1, -1) - mean[order, 1, None]
        a, b, c = conic[order].T[..., None]
        power = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
        alpha = (opacity[order, None] * torch.exp(-power)).clamp(max=ALPHA_MAX)
        alpha = torch.where((alpha >= ALPHA_MIN) & (power >= 0), alpha, torch.zeros_like(alpha))
        alpha = torch.where(torch.cumprod(1 - alpha, 0) > T_STOP, alpha, torch.zeros_like(alpha))
        through = torch.cat([torch.ones_like(alpha[:1]), torch.cumprod(1 - alpha, 0)])
        picture = (alpha * through[:-1]).T @ color[order]
        if backgrounds is not None:
            picture = picture + through[-1][:, None] * backgrounds.reshape(-1, backgrounds.shape[-1])[i]
        pictures.append(picture.reshape(height, width, -1))
        alphas.append((1 - through[-1]).reshape(height, width, 1))
    return (torch.stack(v).reshape(*images, height, width, -1) for v in (pictures, alphas))


@_kernel
def rasterize_to_pixels_3dgs_fwd(
    means2d, conics, colors, opacities, backgrounds, masks, width, height, tile_size, offsets, ids
):
    with torch.no_grad():
        picture, alpha = _blend(means2d, conics, colors, opacities, backgrounds, width, height, ids)
    return picture, alpha, torch.zeros_like(alpha, dtype=torch.int32)


@_kernel
def rasterize_to_pixels_3dgs_bwd(
    means2d,
    conics,
    colors,
    opacities,
    backgrounds,
    masks,
    width,
    height,
    tile_size,
    offsets,
    ids,
    alphas,
    last_ids,
    of_picture,
    of_alpha,
    absolute,
):
    with torch.enable_grad():
        leaves = [x.detach().clone().requires_grad_() for x in (means2d, conics, colors, opacities)]
        found = list(_blend(*leaves, backgrounds, width, height, ids))
        return None, *torch.autograd.grad(found, leaves, [of_picture, of_alpha])


class CameraModelType:
    PINHOLE = "pinhole"


def module() -> ModuleType:
    """Return the stand-in for `gsplat.csrc`, the compiled kernels."""
    csrc = ModuleType("gsplat.csrc")
    kernels = (
        projection_ewa_3dgs_fused_fwd,
        projection_ewa_3dgs_fused_bwd,
        intersect_tile,
        intersect_offset,
        rasterize_to_pixels_3dgs_fwd,
        rasterize_to_pixels_3dgs_bwd,
    )
    for function in kernels:
        setattr(csrc, function.__name__, function)
    csrc.CameraModelType = CameraModelType  # type: ignore[attr-defined]
    csrc.PINHOLE = CameraModelType.PINHOLE  # type: ignore[attr-defined]  # where gsplat 1.5.3 looks for it
    return csrc


def without_gsplat() -> dict[str, ModuleType]:
    """Forget gsplat and what was decided about it; return its modules."""
    from sdlab import raster
    from sdlab.raster import gsplat

    for known in (raster._backend_for, gsplat._missing):
        known.cache_clear()
    return {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "gsplat"}


def install() -> None:
    """Let gsplat find the emulated kernels, where it looks for compiled ones first."""
    without_gsplat()
    sys.modules["gsplat.csrc"] = module()
