"""The CPU back-end: 3D Gaussian splatting, forward and analytic backward, compiled by numba; needs no C compiler.

The stages are in `cpu_kernels`; this module checks the inputs, distributes the stages over threads and integrates with
autograd.

Threads  A plain thread pool: numba's own threading layers are not safe with concurrent callers, and sessions render
         concurrently. A view's tiles are split into parts by amount of work, never by the number of threads, so results
         are bitwise identical for any number of threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdlab.channel import rest, turn_of_thread
from sdlab.machine import n_processors
from sdlab.raster import cpu_kernels as kernels
from sdlab.types import Render, ScreenInfo

PAIRS_PER_PART = 8192  # (splat, tile) pairs, about 0.8 ms forward and backward: well above the overhead of a thread
PARTS_MAX = 8  # every part costs one pass over the moments


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "*V N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
    background: Float[Tensor, "B 3"] | None = None,
) -> Render:
    """Render B views of N Gaussians; differentiable in the Gaussians' parameters and the background.

    Means and scales (activated, > 0) are in world units, quaternions (w, x, y, z) of any norm, opacities in [0, 1],
    colours as displayed, [N, 3] or one set for each view. `viewmats` map world to camera (OpenCV), `Ks` camera to
    pixels (no skew). Computation is in float32; other float types are converted. `info.radii` (int32, pixels) and
    `info.means2d` are filled at once, `info.means2d_grad` by the backward pass.

    Raises ValueError, naming the tensor, for NaN or infinity, a wrong shape, or a tensor that is not on the CPU.
    """
    count, views = means.shape[0], viewmats.shape[0]
    if background is None:
        background = torch.zeros(views, 3)
    inputs = [
        _checked("means", means, (count, 3)),
        _checked("quats", quats, (count, 4)),
        _checked("scales", scales, (count, 3)),
        _checked("opacities", opacities, (count,)),
        _checked("colors", colors, (count, 3) if colors.dim() < 3 else (views, count, 3)),
        _checked("viewmats", viewmats, (views, 4, 4)),
        _checked("Ks", Ks, (views, 3, 3)),
        _checked("background", background, (views, 3)),
    ]
    if width < 1 or height < 1:
        raise ValueError(f"the image is {width} x {height} pixels; width and height must be at least 1")
    arrays = [t.detach().numpy() for t in inputs]
    frame = _Frame(arrays[:5], arrays[5:], width, height)
    rgb, alpha, depth = _Rasterize.apply(frame, *inputs)
    return Render(rgb, alpha, depth, frame.info)


def world_covariances(quats: Float[Tensor, "N 4"], scales: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3 3"]:
    """Return R S S^T R^T [N, 3, 3] without gradient; a faster `sdlab.raster.torch_project.world_covariances`."""
    out = torch.empty(len(quats), 3, 3)
    kernels.world_covariances(*(x.detach().float().contiguous().numpy() for x in (quats, scales)), out.numpy())
    return out


def warm_up() -> None:
    """Compile every kernel or load it from the cache: seconds the first time, a fraction of a second afterwards."""
    one = torch.ones(1, 3, requires_grad=True)
    camera = torch.eye(4)[None]
    camera[0, 2, 3] = 3.0
    K = torch.tensor([[[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]])
    rasterize(0 * one, torch.ones(1, 4), one, torch.ones(1), one, camera, K, 8, 8).rgb.sum().backward()
    world_covariances(torch.ones(1, 4), one)


# ---------------------------------------------------------------- threads

_threads: int | None = None
_pool: ThreadPoolExecutor | None = None
_pool_lock = threading.Lock()


def set_threads(count: int | None) -> None:
    """Set how many threads one call may use, including the caller's; None for as many as there are processors.

    Raises ValueError for fewer than 1.
    """
    global _threads
    if count is not None and count < 1:
        raise ValueError(f"rasteriser threads: {count}; must be at least 1")
    _threads = count


def get_threads() -> int:
    """Return how many threads one call may use."""
    return _threads or n_processors()


def run_jobs(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs on the caller's thread and on workers from the pool; re-raise the first failure. Other sessions may
    go first between two jobs (`sdlab.channel.rest`)."""
    waiting = deque(jobs)
    while waiting:
        _run_some(waiting)
        if waiting:
            rest()


def _run_some(waiting: deque[Callable[[], None]]) -> None:
    """Run the jobs, removing them from `waiting`, until all are done or another session is due.

    The caller takes jobs too, so it neither idles nor waits for a pool that is busy with other callers.
    """
    turn, others_are_due = turn_of_thread(), False

    def one() -> bool:
        try:
            job = waiting.popleft()
        except IndexError:
            return False
        job()
        return True

    def work() -> None:
        while not others_are_due and one():
            pass

    helpers = min(get_threads(), len(waiting)) - 1
    futures = [_executor().submit(work) for _ in range(helpers)]
    try:
        while not others_are_due and one():
            others_are_due = turn is not None and turn.due()
    finally:
        for future in futures:
            if not future.cancel():
                future.result()


def _executor() -> ThreadPoolExecutor:
    global _pool
    with _pool_lock:
        if _pool is None:
            _pool = ThreadPoolExecutor(max(n_processors(), 2), "raster")
        return _pool


# ---------------------------------------------------------------- one call


class _Frame:
    """The stages of one call, and the state that its forward pass keeps for the backward pass."""

    def __init__(self, scene: list[np.ndarray], cameras: list[np.ndarray], width: int, height: int) -> None:
        self.scene = scene  # means, quats, scales, opacities, colors [N, 3] or [B, N, 3]
        self.viewmats, self.Ks, self.background = cameras
        self.width, self.height = width, height
        self.tiles_x, self.tiles_y = -(-width // kernels.TILE_SIDE), -(-height // kernels.TILE_SIDE)
        self.views, self.count = self.viewmats.shape[0], scene[0].shape[0]
        self.info = ScreenInfo(
            torch.empty(self.views, self.count, dtype=torch.int32), torch.empty(self.views, self.count, 2)
        )
        self.T_end = np.empty((self.views, height, width), np.float32)
        self.stops = np.empty((self.views, self.tiles_x * self.tiles_y), np.int32)
        self.prepared: list[Any] = [None] * self.views  # splats, gaussians, starts, ranks of each view
        self.parts: list[list[int]] = [[]] * self.views  # tile numbers at which each view is cut

    def _camera(self, view: int) -> tuple[np.ndarray, np.ndarray, np.float32, np.float32]:
        return self.viewmats[view], self.Ks[view], np.float32(self.width), np.float32(self.height)

    def _colors(self, view: int) -> np.ndarray:
        """Return the colours [N, 3] that a view sees."""
        colors = self.scene[4]
        return colors[view] if colors.ndim == 3 else colors

    def _pieces(self) -> list[tuple[int, int]]:
        """Return every (view, part)."""
        return [(view, part) for view, cuts in enumerate(self.parts) for part in range(len(cuts) - 1)]

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Fill `info` and return rgb [B, 3, H, W], alpha and depth [B, 1, H, W]."""
        rgb = torch.empty(self.views, 3, self.height, self.width)
        alpha = torch.empty(self.views, 1, self.height, self.width)
        depth = torch.empty(self.views, 1, self.height, self.width)
        rgb_, alpha_, depth_ = rgb.numpy(), alpha.numpy()[:, 0], depth.numpy()[:, 0]
        radii, means2d = self.info.radii.numpy(), self.info.means2d.numpy()

        def prepare(view: int) -> None:
            self.prepared[view] = kernels.prepare_view(
                *self.scene[:4], self._colors(view), *self._camera(view),
                self.tiles_x, self.tiles_y, radii[view], means2d[view],
            )  # fmt: skip
            _, _, starts, _ = self.prepared[view]
            self.parts[view] = _cut(starts)

        def blend(view: int, part: int) -> None:
            splats, _, starts, ranks = self.prepared[view]
            first, last = self.parts[view][part : part + 2]
            kernels.blend(
                first, last, self.tiles_x, splats, starts, ranks, self.background[view],
                rgb_[view], alpha_[view], depth_[view], self.T_end[view], self.stops[view],
            )  # fmt: skip

        run_jobs([partial(prepare, view) for view in range(self.views)])
        run_jobs([partial(blend, view, part) for view, part in self._pieces()])
        return rgb, alpha, depth

    def backward(
        self, rgb: Tensor, depth: Tensor, d_rgb: Tensor, d_alpha: Tensor, d_depth: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Fill `info.means2d_grad` and return the gradients of the five scene tensors, and of the background."""
        rgb_, depth_, d_rgb_, d_alpha_, d_depth_ = (
            t.detach().contiguous().numpy() for t in (rgb, depth[:, 0], d_rgb, d_alpha[:, 0], d_depth[:, 0])
        )
        moments = [
            np.empty((len(cuts) - 1, splats.shape[0], kernels.MOMENT_COLUMNS), np.float32)
            for cuts, (splats, *_) in zip(self.parts, self.prepared, strict=True)
        ]
        d_background = np.zeros((self.views, PARTS_MAX, 3), np.float32)
        d_scene = np.empty((self.views, self.count, kernels.GRADIENT_COLUMNS), np.float32)
        means2d_grad = torch.empty(self.views, self.count, 2)
        d_means2d = means2d_grad.numpy()

        def blend(view: int, part: int) -> None:
            splats, _, starts, ranks = self.prepared[view]
            first, last = self.parts[view][part : part + 2]
            kernels.blend_backward(
                first, last, self.tiles_x, splats, starts, self.stops[view], ranks,
                rgb_[view], depth_[view], self.T_end[view], d_rgb_[view], d_alpha_[view], d_depth_[view],
                moments[view][part], d_background[view, part],
            )  # fmt: skip

        def project(view: int) -> None:
            splats, gaussians, _, _ = self.prepared[view]
            kernels.project_backward(
                *self.scene[:4], *self._camera(view), splats, gaussians, moments[view], d_scene[view], d_means2d[view]
            )

        run_jobs([partial(blend, view, part) for view, part in self._pieces()])
        run_jobs([partial(project, view) for view in range(self.views)])
        gradients = [torch.empty(parameter.shape) for parameter in self.scene[:4]] + [torch.empty(self.count, 3)]
        d_colors = None
        if self.scene[4].ndim == 3:  # of each view, before they are summed in place
            d_colors = torch.from_numpy(d_scene[..., kernels.D_COLOR : kernels.D_COLOR + 3].copy())
        kernels.sum_views(d_scene, *(gradient.numpy() for gradient in gradients))
        if d_colors is not None:
            gradients[4] = d_colors
        self.info.means2d_grad = means2d_grad
        return gradients, torch.from_numpy(d_background.sum(1))


class _Rasterize(torch.autograd.Function):
    """Autograd function of one `rasterize` call; the frame holds the same tensors as arrays."""

    @staticmethod
    def forward(ctx: Any, frame: _Frame, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rgb, alpha, depth = frame.forward()
        # The frame holds the inputs too, but saving them lets autograd detect in-place changes.
        ctx.save_for_backward(rgb, depth, *inputs)
        ctx.frame = frame
        return rgb, alpha, depth

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_rgb: Tensor, d_alpha: Tensor, d_depth: Tensor) -> tuple[Tensor | None, ...]:
        rgb, depth, *_ = ctx.saved_tensors
        gradients, d_background = ctx.frame.backward(rgb, depth, d_rgb, d_alpha, d_depth)
        return None, *gradients, None, None, d_background


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return the tensor as contiguous float32. Raises ValueError if it is not on the CPU, misshapen or not finite."""
    if tensor.device.type != "cpu":
        raise ValueError(
            f"{name} is on {tensor.device}, but this back-end needs CPU tensors; move the scene, or use 'gsplat'"
        )
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {shape}")
    tensor = tensor.to(torch.float32).contiguous()
    if not np.isfinite(tensor.detach().numpy()).all():
        raise ValueError(f"{name} contains NaN or infinity; every value must be finite")
    return tensor


def _cut(starts: np.ndarray) -> list[int]:
    """Return tile numbers, from 0 to the last, that cut the tiles into runs of about equal numbers of pairs."""
    tiles, pairs = starts.size - 1, int(starts[-1])
    parts = min(1 + pairs // PAIRS_PER_PART, PARTS_MAX)
    cuts = np.searchsorted(starts, pairs * np.arange(1, parts) / parts)
    return [0, *map(int, cuts), tiles]
