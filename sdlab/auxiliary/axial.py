"""x + DW(k x 1)(x) + DW(1 x k)(x) as one compiled CPU kernel forward and one backward.

On maps of a few thousand numbers torch's depth-wise convolution is all overhead: two of them with their backward take
about five times as long as these loops.

Layout   float32, channels last: x [B, H, W, C]; taps [k, C] of the column (`down`) and the row (`across`), `dilation`
         pixels apart; zero outside the image. The inner loops run over channels, which vectorises.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdlab.compiled import kernel


@kernel
def forward_kernel(x, down, across, bias, dilation):
    batch, height, width, channels = x.shape
    taps = down.shape[0]
    reach = taps // 2 * dilation
    y = np.empty_like(x)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    y[b, i, j, c] = x[b, i, j, c] + bias[c]
            for k in range(taps):
                shift = k * dilation - reach
                if 0 <= i + shift < height:
                    for j in range(width):
                        for c in range(channels):
                            y[b, i, j, c] += down[k, c] * x[b, i + shift, j, c]
                for j in range(max(0, -shift), min(width, width - shift)):
                    for c in range(channels):
                        y[b, i, j, c] += across[k, c] * x[b, i, j + shift, c]
    return y


@kernel
def backward_kernel(x, g_y, down, across, dilation):
    """Return the gradients of x, down, across and bias, given the gradient of y."""
    batch, height, width, channels = x.shape
    taps = down.shape[0]
    reach = taps // 2 * dilation
    g_x = g_y.copy()
    g_down, g_across = np.zeros_like(down), np.zeros_like(across)
    g_bias = np.zeros(channels, np.float32)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                for c in range(channels):
                    g_bias[c] += g_y[b, i, j, c]
            for k in range(taps):
                shift = k * dilation - reach
                if 0 <= i + shift < height:
                    for j in range(width):
                        for c in range(channels):
                            g = g_y[b, i, j, c]
                            g_x[b, i + shift, j, c] += down[k, c] * g
                            g_down[k, c] += x[b, i + shift, j, c] * g
                for j in range(max(0, -shift), min(width, width - shift)):
                    for c in range(channels):
                        g = g_y[b, i, j, c]
                        g_x[b, i, j + shift, c] += across[k, c] * g
                        g_across[k, c] += x[b, i, j + shift, c] * g
    return g_x, g_down, g_across, g_bias


class _Axial(torch.autograd.Function):
    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, down: Tensor, across: Tensor, down_bias: Tensor, across_bias: Tensor, dilation: int
    ) -> Tensor:
        columns, rows = _taps(down), _taps(across)
        seen = _places(x)
        y = forward_kernel(seen, columns, rows, (down_bias + across_bias).detach().numpy(), dilation)
        ctx.kept = seen, columns, rows, dilation
        ctx.shapes = down.shape, across.shape
        return _map(y)

    @staticmethod
    def backward(ctx: Any, g_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        seen, columns, rows, dilation = ctx.kept
        g_x, g_down, g_across, g_bias = backward_kernel(seen, _places(g_y), columns, rows, dilation)
        bias = torch.from_numpy(g_bias)
        weights = (
            torch.from_numpy(np.ascontiguousarray(g.T)).view(shape)
            for g, shape in zip((g_down, g_across), ctx.shapes, strict=True)
        )
        return _map(g_x), *weights, bias, bias.clone(), None


def axial(x: Tensor, down: Tensor, across: Tensor, down_bias: Tensor, across_bias: Tensor, dilation: int) -> Tensor:
    """Return the sum above for x [B, C, H, W], channels last; down [C, 1, k, 1], across [C, 1, 1, k], k odd; float32 on
    the CPU. Differentiable once in all tensors."""
    return _Axial.apply(x, down, across, down_bias, across_bias, dilation)


def _places(x: Tensor) -> np.ndarray:
    """Convert [B, C, H, W] to [B, H, W, C], a view if the memory is laid out that way."""
    return np.ascontiguousarray(x.detach().permute(0, 2, 3, 1).numpy())


def _map(places: np.ndarray) -> Tensor:
    return torch.from_numpy(places).permute(0, 3, 1, 2)


def _taps(weight: Tensor) -> np.ndarray:
    """Convert [C, 1, k, 1] or [C, 1, 1, k] to [k, C]."""
    return np.ascontiguousarray(weight.detach().flatten(1).numpy().T)
