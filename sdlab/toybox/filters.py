"""Image filters of the toybox: the eight descriptors that spoil an image, not the object in it, and the painting style.

Every filter takes a float32 image [S, S, 3] in [0, 1] and a random generator. Lengths are in units of 1/64 of the
image side, so that an effect looks the same at any resolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import no_type_check

import numpy as np

from sdlab.compiled import kernel

compiled = kernel(finite=True)

FOG, HAZE = np.array((0.8, 0.82, 0.85), np.float32), np.array((0.86, 0.8, 0.68), np.float32)
VARNISH = np.array((1.0, 0.95, 0.82), np.float32)

# Brush strokes, coarse layer first: spacing of the starting points, maximum reach to either side, half-width.
STROKES = ((4.2, 6.0, 2.3), (2.3, 3.0, 1.1))
STROKE_STOP = 0.13  # a stroke ends where the underlying colour has changed by this much, so that outlines stay readable
STROKE_OPACITY = np.float32(0.9)


@compiled
@no_type_check
def convolve(x, weights, out):
    """Blur [H, W, 3] with a separable symmetric kernel and repeated edge pixels; weights[0] is the centre weight."""
    height, width = x.shape[0], x.shape[1]
    line = np.empty((width, 3), x.dtype)
    for row in range(height):
        for column in range(width):
            for c in range(3):
                line[column, c] = weights[0] * x[row, column, c]
        for k in range(1, weights.shape[0]):
            above, below = max(row - k, 0), min(row + k, height - 1)
            for column in range(width):
                for c in range(3):
                    line[column, c] += weights[k] * (x[above, column, c] + x[below, column, c])
        for column in range(width):
            for c in range(3):
                out[row, column, c] = weights[0] * line[column, c]
        for k in range(1, weights.shape[0]):
            for column in range(width):
                left, right = max(column - k, 0), min(column + k, width - 1)
                for c in range(3):
                    out[row, column, c] += weights[k] * (line[left, c] + line[right, c])


def blurred(x: np.ndarray, sigma: float) -> np.ndarray:
    """Return a Gaussian blur of `x`; sigma in 1/64 of the image side."""
    sigma *= len(x) / 64
    weights = np.exp(-0.5 * (np.arange(math.ceil(2.5 * sigma) + 1) / sigma) ** 2).astype(np.float32)
    weights /= 2 * weights.sum() - weights[0]
    out = np.empty_like(x)
    convolve(x, weights, out)
    return out


def oversaturated(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    gray = x.mean(-1, keepdims=True)
    return gray + (x - gray) * rng.uniform(1.6, 2.6) + (gray - 0.5) * rng.uniform(0.1, 0.4)


def smooth(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return blurred(x, rng.uniform(1.0, 1.6))


def pixelated(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    step = max((4 if rng.random() < 0.6 else 8) * len(x) // 64, 2)
    n, size = -(-len(x) // step), len(x)
    whole = np.pad(x, ((0, n * step - size), (0, n * step - size), (0, 0)), "edge")
    return whole.reshape(n, step, n, step, 3).mean((1, 3)).repeat(step, 0).repeat(step, 1)[:size, :size]


@compiled
@no_type_check
def contrast(x, out):
    """Write the largest per-channel spread of colour among each pixel and its four neighbours into `out` [H, W, 1]."""
    height, width = x.shape[0], x.shape[1]
    for row in range(height):
        for column in range(width):
            most = x.dtype.type(0.0)
            for c in range(3):
                left, right = x[row, max(column - 1, 0), c], x[row, min(column + 1, width - 1), c]
                above, below = x[max(row - 1, 0), column, c], x[min(row + 1, height - 1), column, c]
                low, high = min(left, right, above, below), max(left, right, above, below)
                most = max(most, max(high, x[row, column, c]) - min(low, x[row, column, c]))
            out[row, column, 0] = most


def cartoon(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the image with few tones and dark outlines."""
    tones = int(rng.integers(3, 6))
    outline = np.empty((*x.shape[:2], 1), x.dtype)
    contrast(x, outline)
    return np.round(x * tones) / tones * (1 - rng.uniform(0.6, 0.95) * np.clip(4 * outline - 0.8, 0, 1))


def foggy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + (FOG - x) * rng.uniform(0.35, 0.65)


def hazy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return x + (HAZE - x) * rng.uniform(0.25, 0.5)


def blurry(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return blurred(x, rng.uniform(2.2, 3.6))


def noisy(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    strength = rng.uniform(0.07, 0.2)
    return x + strength * rng.standard_normal(x.shape, np.float32)


FILTERS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "oversaturated": oversaturated,
    "smooth": smooth,
    "pixelated": pixelated,
    "cartoon": cartoon,
    "foggy": foggy,
    "hazy": hazy,
    "blurry": blurry,
    "noisy": noisy,
}


@kernel(finite=True, inline="always")
@no_type_check
def stroke_end(x, row, column, along_row, along_column, reach):
    """Return how far a stroke extends from its start before the underlying colour changes."""
    size = x.shape[0]
    for length in range(1, int(reach) + 1):
        r, c = int(row + length * along_row), int(column + length * along_column)
        if r < 0 or c < 0 or r >= size or c >= size:
            return float(length)
        change = 0.0
        for k in range(3):
            change = max(change, abs(x[r, c, k] - x[int(row), int(column), k]))
        if change > STROKE_STOP:
            return length - 1.0
    return reach


@compiled
@no_type_check
def lay_strokes(x, guide, starts, tints, drift, reach, half_width, out):
    """Paint one layer of strokes onto `out`, coloured by `x` and aligned with the contours of `guide` [S, S]."""
    size = x.shape[0]
    for n in range(starts.shape[0]):
        row, column = starts[n, 0], starts[n, 1]
        r, c = int(row), int(column)
        down = guide[min(r + 1, size - 1), c] - guide[max(r - 1, 0), c]
        right = guide[r, min(c + 1, size - 1)] - guide[r, max(c - 1, 0)]
        slope = math.sqrt(down * down + right * right)
        if slope > 0.02:
            along_row, along_column = -right / slope, down / slope
        else:  # no contour to follow: a direction that turns slowly across the image
            angle = drift[0] + drift[1] * row / size + drift[2] * column / size + 0.5 * tints[n, 3]
            along_row, along_column = math.sin(angle), math.cos(angle)
        ahead = stroke_end(x, row, column, along_row, along_column, reach)
        behind = stroke_end(x, row, column, -along_row, -along_column, reach)
        tall = max(ahead, behind) * abs(along_row) + half_width
        wide = max(ahead, behind) * abs(along_column) + half_width
        for i in range(max(int(row - tall), 0), min(int(row + tall) + 1, size)):
            for j in range(max(int(column - wide), 0), min(int(column + wide) + 1, size)):
                y, z = i + 0.5 - row, j + 0.5 - column
                lengthwise = y * along_row + z * along_column
                sideways = z * along_row - y * along_column
                beyond = max(lengthwise - ahead, -behind - lengthwise, 0.0)
                distance = math.sqrt(beyond * beyond + sideways * sideways) / half_width
                if distance < 1.0:
                    # the paint is thicker on one side
                    ridge = 1.0 + 0.07 * (sideways / half_width) - 0.10 * distance**4
                    for k in range(3):
                        paint = min(max((x[r, c, k] + tints[n, k]) * ridge, 0.0), 1.0)
                        out[i, j, k] += STROKE_OPACITY * (paint - out[i, j, k])


def painted(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return an oil painting of the image: two layers of strokes along the contours, varnish, and a canvas weave."""
    size = len(x)
    unit = size / 64
    guide = blurred(x, 1.2).mean(-1)
    out = blurred(x, 3.0)
    drift = np.array((rng.uniform(0, 2 * math.pi), *rng.normal(0, 1.2, 2)))
    for spacing, reach, half_width in STROKES:
        side = math.ceil(64 / spacing)
        rows, columns = np.divmod(rng.permutation(side * side), side)
        starts = (np.stack([rows, columns], 1) + rng.random((side * side, 2))) * (size / side)
        light, hue, turn = rng.normal(0, 1, (3, side * side, 1))
        tints = np.concatenate([0.035 * light + 0.015 * rng.normal(0, 1, (side * side, 3)) * np.abs(hue), turn], 1)
        lay_strokes(x, guide, starts, tints, drift, reach * unit, max(half_width * unit, 0.8), out)
    weave = np.add.outer(np.arange(size) % 2, np.arange(size) % 2)[:, :, None] - 1
    canvas = 1 + 0.025 * weave + 0.012 * rng.standard_normal((size, size, 1), np.float32)
    return (np.clip(out * canvas, 0, 1) ** np.float32(1.15) * VARNISH).astype(np.float32)
