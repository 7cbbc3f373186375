"""The CUDA back-end: gsplat's kernels behind this family's signature.

gsplat 1.5 is the model that the other back-ends follow, so nothing is converted but layouts: its pictures are
[B, H, W, C], its radii [B, N, 2]; its means2d and their gradients are in pixels like ours. gsplat is imported when
it is first used, and compiles itself then with CUDA's nvcc, which takes minutes once.
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

from sdlab.types import Render, ScreenInfo

README = "docs/deploy.md, 'On an NVIDIA GPU'"
_checking = threading.Lock()  # several sessions begin at once, and a compilation that failed must not be tried again


def missing() -> str | None:
    """What keeps this back-end from working here and what to do about it, or None if nothing does.

    The first call may compile gsplat, and draws a Gaussian to see that it works; the others repeat its answer.
    """
    with _checking:
        return _missing()


@functools.cache
def _missing() -> str | None:
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if torch.version.cuda is None:  # torch for AMD calls its devices cuda as well
        return "gsplat needs an NVIDIA graphics card"
    _show_ninja()
    try:
        backend = importlib.import_module("gsplat.cuda._backend")
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == "gsplat":
            return "gsplat is not installed: `pip install gsplat` brings it"
        return f"gsplat lacks the package {e.name}: `pip install {e.name}` brings it"
    except Exception as e:  # it compiles itself while it is imported, and that fails in many ways
        return f"gsplat cannot be compiled or loaded ({_cause(e)}): {_toolkit()}"
    if backend._C is None:
        return f"gsplat is not compiled, and there is no nvcc to compile it with: {_toolkit()}"
    try:
        _draw_one()
    except Exception as e:
        return (
            f"gsplat is there but cannot draw ({_cause(e)}): it may have been compiled for another card or another "
            "torch. Delete torch's folder of extensions (`~/.cache/torch_extensions`, or $TORCH_EXTENSIONS_DIR), from "
            "which it is then compiled anew"
        )
    return None


def _show_ninja() -> None:
    """Have torch find the ninja that came with gsplat, also where the virtual environment is not activated."""
    scripts = sysconfig.get_path("scripts")
    if shutil.which("ninja") is None and shutil.which("ninja", path=scripts) is not None:
        os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", ""), scripts])


def _toolkit() -> str:
    return (
        f"install the CUDA toolkit {torch.version.cuda}, the version that torch was built with, and a C++ compiler, "
        f"have nvcc on the PATH or name the toolkit's folder in CUDA_HOME, and start again; {README}"
    )


def _cause(e: BaseException, width: int = 200) -> str:
    """The line of an error that says most: compilers begin theirs with what they were told to do."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    telling = [line for line in lines if "error:" in line.lower()] or lines or [type(e).__name__]
    return telling[0][:width]


@torch.no_grad()
def _draw_one() -> None:
    """One Gaussian in 16 x 16 pixels, waited for. RuntimeError where the kernels do not run on this card."""
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
        raise RuntimeError(f"a Gaussian before the camera shows with an alpha of {seen:.2g}")


def rasterize(
    means: Float[Tensor, "N 3"],
    quats: Float[Tensor, "N 4"],
    scales: Float[Tensor, "N 3"],
    opacities: Float[Tensor, " N"],
    colors: Float[Tensor, "N 3"],
    viewmats: Float[Tensor, "B 4 4"],
    Ks: Float[Tensor, "B 3 3"],
    width: int,
    height: int,
    background: Float[Tensor, "B 3"] | None = None,
) -> Render:
    """Render B views on CUDA; units, conventions and shapes are those of `sdlab.raster.cpu.rasterize`.

    `info.means2d` is part of the graph and keeps its gradient; its rows mean nothing where the radius is 0. Raises
    RuntimeError saying what to do if gsplat cannot work here, ValueError if the scene is not on CUDA.
    """
    reason = missing()
    if reason is not None:
        raise RuntimeError(
            f"the gsplat rasteriser cannot work here: {reason}. Use the 'cpu' rasteriser, or 'tiled' on a GPU"
        )
    if means.device.type != "cuda":
        raise ValueError(f"means is on {means.device}; this back-end takes CUDA tensors: move the scene, or use 'cpu'")
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
    pictures, alpha, meta = rasterization(
        means.float(),
        quats.float(),
        scales.float(),
        opacities.float(),
        colors.float(),
        viewmats.float(),
        Ks.float(),
        width,
        height,
        packed=False,  # means2d stays [B, N, 2], as density control wants it
        backgrounds=None if background is None else background.float(),
        render_mode="RGB+D",  # D is the accumulated depth, ED would be the normalised one
    )
    means2d = meta["means2d"]
    if means2d.requires_grad:
        means2d.retain_grad()
    rgb, depth = pictures.permute(0, 3, 1, 2).split([3, 1], 1)
    return Render(rgb, alpha.permute(0, 3, 1, 2), depth, ScreenInfo(meta["radii"].amax(-1), means2d))
