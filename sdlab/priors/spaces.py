"""The spaces a network works in: pixels, blocks of pixels, or the latents of a VAE."""

from __future__ import annotations

import copy
import threading
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdlab.console import Remark
from sdlab.transfer import Soon

CHECKED_AT_ONCE = 5  # encodings on a GPU that are checked before the next operation
DECODED_AT_ONCE = 2  # images; one takes 0.6 GiB at 512 x 512 pixels, and the lens shows up to nine

Network = Callable[[nn.Module, Tensor], Tensor]


@runtime_checkable
class Space(Protocol):
    """Maps rgb [B, 3, S, S] in [0, 1] to z [B, C, H, W] and back, with S = image_size."""

    shape: tuple[int, int, int]  # C H W
    image_size: int
    model: nn.Module
    note: str  # tells the user what is not as expected, or ""

    def encode(self, rgb: Tensor) -> Tensor:
        """Return z; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Return rgb, not clamped."""
        ...


class PixelSpace:
    """z = 2 rgb - 1, with each block of patch x patch pixels as one position of z (space to depth).

    Pixel (y, x) of colour c becomes channel patch^2 c + patch (y mod patch) + x mod patch. This permutes the image's
    values and is therefore orthonormal: white noise stays white, and norms, residuals and gradients equal those of
    the pixels.
    """

    def __init__(self, size: int, patch: int) -> None:
        self.shape: tuple[int, int, int] = (3 * patch**2, size, size)
        self.image_size = size * patch
        self.model: nn.Module = nn.Identity()
        self.note = ""
        self._patch = patch

    def encode(self, rgb: Tensor) -> Tensor:
        return F.pixel_unshuffle(2 * rgb - 1, self._patch)

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self._patch) / 2 + 0.5


class LatentSpace:
    """z = scale (latent - shift) of a VAE.

    The VAE computes in `half`, if given, until a result is not finite, and in float32 from then on. Weights in float32
    stay so and compute under autocast; weights in `half` need less memory, and are copied to float32 after an overflow.
    On a GPU, an overflow in `encode` is noticed at the next call, except for the first few: asking at once would make
    every step wait.

    With `one_by_one` it processes one image at a time, and recomputes activations in the backward pass instead of
    keeping them.
    """

    def __init__(self, vae: nn.Module, size: int, half: torch.dtype | None = None, one_by_one: bool = False) -> None:
        config: Any = vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        self.shape: tuple[int, int, int] = (config.latent_channels, size, size)
        self.image_size = size * 2 ** (len(blocks) - 1)
        self.model: nn.Module = vae
        self.note = ""
        self._half = half
        self._one_by_one = one_by_one
        self._scale = config.scaling_factor
        self._shift = getattr(config, "shift_factor", None) or 0.0
        self._encoded = 0
        self._sent: deque[Soon] = deque()  # whether the last results were finite
        self._lock = threading.Lock()

    def encode(self, rgb: Tensor) -> Tensor:
        late = rgb.device.type == "cuda" and self._encoded >= CHECKED_AT_ONCE
        self._encoded += 1
        return self._scale * (self._finite(_mean, 2 * rgb - 1, len(rgb), late) - self._shift)

    def decode(self, z: Tensor) -> Tensor:
        most = DECODED_AT_ONCE if z.device.type == "cuda" else len(z)
        return self._finite(_image, z / self._scale + self._shift, most) / 2 + 0.5

    def _finite(self, network: Network, x: Tensor, most: int, late: bool = False) -> Tensor:
        """Return network(x) in float32, computed in half precision as long as that does not overflow; `most` images at
        a time."""
        half, vae = self._half, self.model
        if half is None:
            return self._by_parts(network, vae, x, most)
        weights = next(vae.parameters()).dtype
        with torch.autocast(x.device.type, half, enabled=weights != half):
            out = _with_scaled_gradient(lambda part: self._by_parts(network, vae, part.to(weights), most), x).float()
        if self._is_fine(torch.isfinite(out).all() | ~torch.isfinite(x).all(), late):
            return out
        self._fall_back(half)
        return self._by_parts(network, self.model, x, most)

    def _is_fine(self, fine: Tensor, late: bool) -> bool:
        """Return whether this result and, with `late`, rather those that are known by now, are `fine` (0-d)."""
        if not late:
            return bool(fine)
        with self._lock:
            self._sent.append(Soon(fine))
            while self._sent and self._sent[0].is_here():
                if not self._sent.popleft().value():
                    return False
        return True

    def _fall_back(self, half: torch.dtype) -> None:
        """Compute in float32 from now on; other threads may still be computing with the old weights."""
        with self._lock:
            if self._half is None:
                return
            self.note = f"the VAE overflows in {str(half).removeprefix('torch.')}, using float32 instead"
            if next(self.model.parameters()).dtype == half:
                self.model = copy.deepcopy(self.model).float()
            self._half = None
        warnings.warn(self.note, Remark, stacklevel=2)

    def _by_parts(self, network: Network, vae: nn.Module, x: Tensor, most: int) -> Tensor:
        if not self._one_by_one and most >= len(x):
            return network(vae, x)
        parts = x.split(1 if self._one_by_one else most)
        if not (self._one_by_one and torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([network(vae, part) for part in parts])
        kept = [checkpoint(network, vae, part, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.cat(kept)  # type: ignore[arg-type]


def _mean(vae: Any, x: Tensor) -> Tensor:
    answer = vae.encode(x)
    return answer.latent_dist.mean if hasattr(answer, "latent_dist") else answer.latents


def _image(vae: Any, latent: Tensor) -> Tensor:
    return vae.decode(latent, return_dict=False)[0]


def _with_scaled_gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return network(x), with the gradient scaled to about 1 inside the network and back to its own size outside.

    Small gradients would underflow in half precision.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return network(x)
    factor = torch.ones((), device=x.device)

    def scale(grad: Tensor) -> Tensor:
        largest = grad.abs().max().float().clamp(1e-30, 1e30)
        factor.copy_(torch.exp2(-torch.log2(largest).round()))  # multiplying by a power of 2 rounds nothing
        return grad * factor

    x = x * 1.0  # a new tensor, for the hook
    x.register_hook(lambda grad: grad / factor)
    out = network(x).float()
    out.register_hook(scale)
    return out
