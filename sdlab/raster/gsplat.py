"""The CUDA back-end: gsplat's kernels behind the common signature.

The other back-ends follow gsplat 1.5's image model, so only layouts need converting: its images are [B, H, W, C], its
radii [B, N, 2]; its means2d and their gradients are in pixels like ours. gsplat is imported on first use; its kernels
are then compiled if need be (`sdlab.raster.gsplat_kernels`), which takes minutes the first time.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import sysconfig
import threading

import torch
from jaxtyping import Float
from torch import Tensor

from sdlab.raster import gsplat_kernels
from sdlab.types import Render, ScreenInfo

README = "docs/deploy.md, 'On an NVIDIA GPU'"
_checking = threading.Lock()  # sessions may start at the same time, and a failed compilation must not be retried


def missing() -> str | None:
    """Return what prevents this back-end from working here and how to fix it, or None if it works.

    The first call may compile gsplat, and renders a Gaussian as a self-test; later calls repeat its answer.
    """
    with _checking:
        return _missing()


@functools.cache
def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.cuda is None:  # torch for AMD also calls its devices cuda
        return "gsplat needs an NVIDIA GPU"
    _show_ninja()
    try:
        with gsplat_kernels.one_at_a_time():
            gsplat_kernels.load()
            backend = importlib.import_module("gsplat.cuda._backend")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == "gsplat":
            return "gsplat is not installed; run `pip install gsplat`"
        return f"gsplat needs the package {e.name}; run `pip install {e.name}`"
    except Exception as e:  # importing it compiles it, which can fail in many ways
        return f"gsplat cannot be compiled or loaded ({_cause(e)}): {_toolkit()}"
    if backend._C is None:
        return f"gsplat is not compiled, and nvcc was not found to compile it: {_toolkit()}"
    try:
        _draw_one()
    except Exception as e:
        return (
            f"gsplat is installed but cannot render ({_cause(e)}): it may have been compiled for another GPU or torch "
            "version. Delete torch's extensions folder (`~/.cache/torch_extensions`, or $TORCH_EXTENSIONS_DIR) "
            "to have it recompiled"
        )
    return None


def _show_ninja() -> None:
    """Let torch find the ninja installed with gsplat even if the virtual environment is not activated."""
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja") is None and shutil.which("ninja", path=scripts) is not None:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), scripts])


def _toolkit() -> str:
    return gsplat_kernels.advice() + (
        f"install the CUDA toolkit {torch.version.cuda}, the version that torch was built with, and a C++ compiler, "
        f"put nvcc on the PATH or set CUDA_HOME to the toolkit's folder, and restart; see {README}"
    )


def _cause(e: BaseException, width: int = 200) -> str:
    """Return the most informative line of an error: compilers print their command line first."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower()] or lines or [type(e).__name__]
    return telling[0][:width]


@torch.no_grad()
def _draw_one() -> None:
    """Render one Gaussian in 16 x 16 pixels and wait for it. RuntimeError if the kernels do not run on this GPU."""
    scene = [
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.1),
        torch.ones(1),
        torch.ones(1, 3),
    ]
    view, K = torch.eye(4)[None], torch.tensor([[[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]])
    view[0, 2, 3] = 2.0
    means, quats, scales, opacities, colors, viewmats, Ks = (x.cuda() for x in (*scene, view, K))
    render = _render(means, quats, scales, opacities, colors, viewmats, Ks, 16, 16, None)
    seen = float(render.alpha.amax())
    if not seen > 0.5:
        raise RuntimeError(f"a Gaussian in front of the camera was rendered with an alpha of {seen:.2g}")


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
    """Render B views on CUDA; units, conventions and shapes as in `sdlab.raster.cpu.rasterize`.

    `info.means2d` is part of the graph and keeps its gradient; rows with radius 0 are undefined. Raises RuntimeError
    with instructions if gsplat cannot work here, ValueError if the scene is not on CUDA.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(
            f"the gsplat rasteriser does not work here: {reason}. Use the 'cpu' rasteriser, or 'tiled' on a GPU"
        )
    if means.device.type != "cuda":
        raise ValueError(
            f"means is on {means.device}, but this back-end needs CUDA tensors; move the scene, or use 'cpu'"
        )
    return _render(means, quats, scales, opacities, colors, viewmats, Ks, width, height, background)


def _render(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    opacities: Tensor,
    colors: Tensor,
    viewmats: Tensor,
    Ks: Tensor,
    width: int,
    height: int,
    background: Tensor | None,
) -> Render:
    rasterization = importlib.import_module("gsplat").rasterization
    images, alpha, meta = rasterization(
        means.float(),
        quats.float(),
        scales.float(),
        opacities.float(),
        colors.float(),
        viewmats.float(),
        Ks.float(),
        width,
        height,
        packed=False,  # keeps means2d as [B, N, 2], which density control needs
        backgrounds=None if background is None else background.float(),
        render_mode="RGB+D",  # D is accumulated depth; ED would be normalised
    )
    means2d = meta["means2d"]
    if means2d.requires_grad:
        means2d.retain_grad()
    rgb, depth = images.permute(0, 3, 1, 2).split([3, 1], 1)
    return Render(rgb, alpha.permute(0, 3, 1, 2), depth, ScreenInfo(meta["radii"].amax(-1), means2d))
