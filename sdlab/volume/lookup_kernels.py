"""Bilinear interpolation of three planes as compiled kernels: the values, and their gradient to the planes.

Planes are float32 [3, R, R, C], so that the C features of a texel lie side by side; plane k is indexed by the
coordinates SECOND[k] (row) and FIRST[k] (column). Kernels release the GIL; the caller runs them on threads.
`no_type_check` exempts them from the tests' run-time type checker.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from sdlab.compiled import kernel

f32 = np.float32
FIRST, SECOND = (0, 0, 1), (1, 2, 2)  # coordinates of the planes xy, xz, yz


@kernel(inline="always")
@no_type_check
def _texel(place, last):
    """Return the lower texel's index and the weight of the upper one, for a coordinate in [-1, 1]."""
    at = (place + f32(1)) * f32(0.5) * f32(last)
    at = min(max(at, f32(0)), f32(last))
    low = min(int(at), last - 1)
    return low, at - f32(low)


@kernel
@no_type_check
def interpolate(planes, places, begin, end, out):
    """Write the sum of the three planes at `places` [M, 3] to `out` [M, C], for rows begin to end."""
    last, channels = planes.shape[1] - 1, planes.shape[3]
    for m in range(begin, end):
        row = out[m]
        for c in range(channels):
            row[c] = f32(0)
        for k in range(3):
            i, u = _texel(places[m, SECOND[k]], last)
            j, v = _texel(places[m, FIRST[k]], last)
            a, b = planes[k, i, j], planes[k, i, j + 1]
            d, e = planes[k, i + 1, j], planes[k, i + 1, j + 1]
            wa, wb = (f32(1) - u) * (f32(1) - v), (f32(1) - u) * v
            wd, we = u * (f32(1) - v), u * v
            for c in range(channels):
                row[c] += wa * a[c] + wb * b[c] + wd * d[c] + we * e[c]


@kernel
@no_type_check
def scatter(plane, k, places, gradient):
    """Add the gradient [M, C] of the interpolated values to `plane` [R, R, C], the gradient of plane k."""
    last, channels = plane.shape[0] - 1, plane.shape[2]
    for m in range(places.shape[0]):
        i, u = _texel(places[m, SECOND[k]], last)
        j, v = _texel(places[m, FIRST[k]], last)
        g = gradient[m]
        a, b, d, e = plane[i, j], plane[i, j + 1], plane[i + 1, j], plane[i + 1, j + 1]
        wa, wb = (f32(1) - u) * (f32(1) - v), (f32(1) - u) * v
        wd, we = u * (f32(1) - v), u * v
        for c in range(channels):
            a[c] += wa * g[c]
            b[c] += wb * g[c]
            d[c] += wd * g[c]
            e[c] += we * g[c]
