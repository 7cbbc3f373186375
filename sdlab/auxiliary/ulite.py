"""U-Lite (Dinh et al. 2023, "1M parameters are enough? A lightweight CNN-based model for medical image segmentation"),
the network of DreamMapping's operator.

A U-Net whose convolutions are axial and depth-wise: y = x + DW(7 x 1)(x) + DW(1 x 7)(x), then batch norm (the skip
connection), a 1 x 1 convolution to twice the width, 2 x 2 max pooling and GELU. The bottleneck uses three dilations;
the decoder mirrors the encoder. As published it has five levels, 16 to 512 wide, and takes images whose sides are
multiples of 32: 879 252 parameters for 4 x 64 x 64 latents. Smaller spaces get fewer levels, so that the bottleneck
keeps at least 2 x 2 pixels: a single pixel has no statistics for its batch norm.

Batch norm always uses the batch's statistics, because the operator is trained on the very batch it is applied to.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BASE, LEVELS = 16, 5


def levels_for(height: int, width: int) -> int:
    """Return how often the sides can be halved, at most 5 times, down to 2 or more. ValueError if not even once."""
    n = 0
    while n < LEVELS and all(side % 2 ** (n + 1) == 0 and side // 2 ** (n + 1) >= 2 for side in (height, width)):
        n += 1
    if n == 0:
        raise ValueError(f"U-Lite needs a space with even sides of at least 4, this prior's is {height} x {width}")
    return n


def batch_norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, track_running_stats=False)


class Pointwise(nn.Conv2d):
    """A 1 x 1 convolution; on the CPU as a matrix product, whose backward is faster."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__(width, out, 1)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        if x.device.type != "cpu":
            return super().forward(x)
        return F.linear(x.permute(0, 2, 3, 1), self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


class Axial(nn.Module):
    """x + DW(k x 1)(x) + DW(1 x k)(x)."""

    def __init__(self, width: int, kernel: int, dilation: int = 1) -> None:
        super().__init__()
        self.down = nn.Conv2d(width, width, (kernel, 1), padding="same", groups=width, dilation=dilation)
        self.across = nn.Conv2d(width, width, (1, kernel), padding="same", groups=width, dilation=dilation)
        self._dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return x + self.down(x) + self.across(x)
        from sdlab.auxiliary.axial import axial  # numba is slow to import

        down, across = self.down, self.across
        assert down.bias is not None
        assert across.bias is not None
        return axial(x, down.weight, across.weight, down.bias, across.bias, self._dilation)


class Encoder(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix, self.norm = Axial(width, 7), batch_norm(width)
        self.widen = Pointwise(width, 2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the skip connection [B, W, H, W'] and the input of the next level [B, 2 W, H / 2, W' / 2]."""
        skip = self.norm(self.mix(x))
        return skip, F.gelu(F.max_pool2d(self.widen(skip), 2))


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        quarter = width // 4
        self.narrow = Pointwise(width, quarter)
        self.looks = nn.ModuleList(Axial(quarter, 3, dilation) for dilation in (1, 2, 3))
        self.norm = batch_norm(4 * quarter)
        self.widen = Pointwise(4 * quarter, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.narrow(x)
        return F.gelu(self.widen(self.norm(torch.cat([x, *(look(x) for look in self.looks)], 1))))


class Decoder(nn.Module):
    def __init__(self, width: int) -> None:
        """Map 2 `width` channels and a skip connection of `width` to `width`."""
        super().__init__()
        self.narrow, self.norm = Pointwise(3 * width, width), batch_norm(width)
        self.mix, self.point = Axial(width, 7), Pointwise(width, width)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = torch.cat([F.interpolate(x, scale_factor=2.0), skip], 1)
        return F.gelu(self.point(self.mix(self.norm(self.narrow(x)))))


class ULite(nn.Module):
    """The whole network, [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        widths = [BASE * 2**i for i in range(levels_for(height, width))]
        self.first = nn.Conv2d(channels, BASE, 7, padding="same")
        self.encoders = nn.ModuleList(Encoder(w) for w in widths)
        self.bottleneck = Bottleneck(2 * widths[-1])
        self.decoders = nn.ModuleList(Decoder(w) for w in reversed(widths))
        self.last = Pointwise(BASE, channels)

    def forward(self, x: Tensor) -> Tensor:
        x, skips = self.first(x), []
        for encode in self.encoders:
            skip, x = encode(x)
            skips.append(skip)
        x = self.bottleneck(x)
        for decode, skip in zip(self.decoders, reversed(skips), strict=True):
            x = decode(x, skip)
        return self.last(x)
