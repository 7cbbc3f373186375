"""The spaces a network works in: pixels, blocks of pixels, or the latents of a VAE."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdlab.console import Remark


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
    """z = scale (latent - shift) of a VAE whose weights are float32.

    The VAE computes in `autocast`, if given, until a result is not finite, and in float32 from then on. With
    `one_by_one` it processes one image at a time, and recomputes activations in the backward pass instead of keeping
    them.
    """

    def __init__(
        self, vae: nn.Module, size: int, autocast: torch.dtype | None = None, one_by_one: bool = False
    ) -> None:
        config: Any = vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        self.shape: tuple[int, int, int] = (config.latent_channels, size, size)
        self.image_size = size * 2 ** (len(blocks) - 1)
        self.model: nn.Module = vae
        self.note = ""
        self._vae: Any = vae
        self._autocast = autocast
        self._one_by_one = one_by_one
        self._scale = config.scaling_factor
        self._shift = getattr(config, "shift_factor", None) or 0.0

    def encode(self, rgb: Tensor) -> Tensor:
        return self._scale * (self._finite(self._mean, 2 * rgb - 1) - self._shift)

    def decode(self, z: Tensor) -> Tensor:
        return self._finite(self._image, z / self._scale + self._shift) / 2 + 0.5

    def _mean(self, x: Tensor) -> Tensor:
        answer = self._vae.encode(x)
        return answer.latent_dist.mean if hasattr(answer, "latent_dist") else answer.latents

    def _image(self, latent: Tensor) -> Tensor:
        return self._vae.decode(latent, return_dict=False)[0]

    def _finite(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """Return network(x) in float32, computed in half precision as long as that does not overflow."""
        half = self._autocast
        if half is None:
            return self._by_parts(network, x)
        with torch.autocast(x.device.type, half):
            out = _with_scaled_gradient(lambda part: self._by_parts(network, part), x).float()
        if bool(torch.isfinite(out).all()) or not bool(torch.isfinite(x).all()):
            return out
        self._autocast = None
        self.note = f"the VAE overflows in {str(half).removeprefix('torch.')}, using float32 instead"
        warnings.warn(self.note, Remark, stacklevel=2)
        return self._by_parts(network, x)

    def _by_parts(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not self._one_by_one:
            return network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([network(part) for part in x.split(1)])
        parts = [checkpoint(network, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(1)]
        return torch.cat(parts)  # type: ignore[arg-type]


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
