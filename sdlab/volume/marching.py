"""How light is followed along rays: in plain torch, or by nerfacc on a CUDA device where it is installed and agrees.

nerfacc is trusted only after it has found the same samples, weights and gradients as the torch code on the device.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
import warnings
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sdlab.console import Remark
from sdlab.errors import first_line
from sdlab.volume import rays
from sdlab.volume.rays import Rays, Samples, crossing

N_RAYS, N_STEPS, N_CELLS = 512, 64, 8  # of the comparison
STRAY = 0.01  # fraction of samples that may differ: those at the border of a cell
NEAR_ENOUGH = 1e-4  # greatest difference of weights and gradients
_checking = threading.Lock()  # sessions may start at the same time, and a failed compilation must not be retried


class Marching(NamedTuple):
    """The functions that find samples and weigh them; see `sdlab.volume.rays`."""

    sample: Callable[[Rays, float, int, Tensor, Tensor], Samples]
    weights: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


TORCH = Marching(rays.sample, rays.weights)


def marching_on(device: torch.device) -> Marching:
    """Return the fastest functions that work on a device; the first call on CUDA may compile nerfacc, which takes
    minutes."""
    if device.type != "cuda":
        return TORCH
    with _checking:
        return _on_cuda()


@functools.cache
def _on_cuda() -> Marching:
    if torch.version.cuda is None or importlib.util.find_spec("nerfacc") is None:
        return TORCH
    try:
        nerfacc = importlib.import_module("sdlab.volume.nerfacc")
        nerfacc.load()
        found = Marching(nerfacc.sample, nerfacc.weights)
        must_agree(found, torch.device("cuda"))
    except Exception as e:  # importing it compiles it, which can fail in many ways
        text = (
            f"nerfacc does not work here ({first_line(e)}); volumes are rendered in plain torch, with the same result"
        )
        warnings.warn(text, Remark, stacklevel=2)
        return TORCH
    return found


def must_agree(found: Marching, device: torch.device) -> None:
    """Raise RuntimeError unless `found` gives what the torch code does for random rays through a random grid."""
    g = torch.Generator().manual_seed(0)
    origins = 3 * normalize(torch.randn(N_RAYS, 3, generator=g))
    directions = normalize(1.2 * torch.rand(N_RAYS, 3, generator=g) - 0.6 - origins)
    through = Rays(*(x.to(device) for x in (origins, directions, torch.ones(N_RAYS))))
    occupied = (torch.rand(N_CELLS, N_CELLS, N_CELLS, generator=g) < 0.3).to(device)
    offsets = torch.rand(N_RAYS, generator=g).to(device)
    here, there = (m.sample(through, 1.0, N_STEPS, offsets, occupied) for m in (TORCH, found))
    steps = [_steps(s, crossing(through, 1.0)[0], offsets) for s in (here, there)]
    stray = len(steps[0] ^ steps[1])
    if stray > STRAY * len(steps[0]) or bool((there.ray.diff() < 0).any()):
        raise RuntimeError(f"it finds other samples than the torch code: {stray} of {len(steps[0])}")
    optical = torch.rand(len(here.ray), generator=g).to(device)
    for a, b in zip(*(_seen(m, optical, here.ray) for m in (TORCH, found)), strict=True):
        if not float((a - b).abs().max()) < NEAR_ENOUGH:
            raise RuntimeError("its weights or their gradients are not those of the torch code")


def _steps(s: Samples, near: Tensor, offsets: Tensor) -> set[tuple[int, float]]:
    """Return the ray of each sample, and how many steps it is from the ball's near side, which is a whole number."""
    at = (s.distances - near[s.ray]) * (N_STEPS / 2) - offsets[s.ray]
    return set(zip(s.ray.tolist(), [round(x, 2) + 0.0 for x in at.tolist()], strict=True))


def _seen(m: Marching, optical: Tensor, ray: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, transmittances, and the gradient of a sum of both."""
    leaf = optical.clone().requires_grad_()
    with torch.enable_grad():
        w, transmittance = m.weights(leaf, ray, N_RAYS)
        pull = torch.arange(len(ray), device=ray.device) % 7 - 3.0
        ((w + 0.1 * transmittance) * pull).sum().backward()
    assert leaf.grad is not None
    return w.detach(), transmittance.detach(), leaf.grad
