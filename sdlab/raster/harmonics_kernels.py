"""Compiled kernels for `sdlab.raster.harmonics` on a CPU: sums of monomials of the direction of view, and their
backward pass.

A harmonic of degree l is a homogeneous polynomial of degree l, so a Gaussian's colours are a sum over monomials m of
the unit direction with weights P [M, 3]. `MIXING` takes coefficients of harmonics to these weights, so that neither
kernel knows a harmonic.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sdlab.compiled import kernel
from sdlab.harmonics import COUNTS, PROBES, terms

f32 = np.float32

POWERS = (
    *((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    *((2, 0, 0), (0, 2, 0), (0, 0, 2), (1, 1, 0), (0, 1, 1), (1, 0, 1)),
    *((3, 0, 0), (0, 3, 0), (0, 0, 3), (2, 1, 0), (0, 2, 1), (1, 0, 2), (1, 2, 0), (0, 1, 2), (2, 0, 1), (1, 1, 1)),
)
MONOMIALS = (0, 3, 9, 19)  # how many there are, by degree


def _mixing() -> np.ndarray:
    """Return W [19, 15] with Y_k = sum over m of W_mk m, by a fit within each degree, which is exact."""
    xyz = np.random.default_rng(0).normal(size=(PROBES, 3))
    xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    monomials = np.stack([np.prod(xyz**p, axis=1) for p in POWERS], 1)
    harmonics = np.stack(terms(*xyz.T, degree=3), 1)
    W = np.zeros((MONOMIALS[3], COUNTS[3]))
    for degree in (1, 2, 3):
        rows, columns = (slice(n[degree - 1], n[degree]) for n in (MONOMIALS, COUNTS))
        W[rows, columns] = np.linalg.lstsq(monomials[:, rows], harmonics[:, columns], rcond=None)[0]
    W[np.abs(W) < 1e-12] = 0
    return W.astype(f32)


MIXING = _mixing()


@kernel(inline="always")
def _fill(m, x, y, z):
    """Write the monomials of (x, y, z) to m, as many as it holds; in the order of POWERS."""
    m[0], m[1], m[2] = x, y, z
    if len(m) > 3:
        m[3], m[4], m[5], m[6], m[7], m[8] = x * x, y * y, z * z, x * y, y * z, x * z
    if len(m) > 9:
        m[9], m[10], m[11] = m[3] * x, m[4] * y, m[5] * z
        m[12], m[13], m[14] = m[3] * y, m[4] * z, m[5] * x
        m[15], m[16], m[17], m[18] = m[4] * x, m[5] * y, m[3] * z, m[6] * z


@kernel(inline="always")
def _slope(q, m, x, y, z):
    """Return the gradient of sum q m in x, y and z."""
    dx, dy, dz = q[0], q[1], q[2]
    if len(q) > 3:
        dx += 2 * q[3] * x + q[6] * y + q[8] * z
        dy += 2 * q[4] * y + q[6] * x + q[7] * z
        dz += 2 * q[5] * z + q[7] * y + q[8] * x
    if len(q) > 9:
        dx += 3 * q[9] * m[3] + 2 * q[12] * m[6] + q[14] * m[5] + q[15] * m[4] + 2 * q[17] * m[8] + q[18] * m[7]
        dy += 3 * q[10] * m[4] + q[12] * m[3] + 2 * q[13] * m[7] + 2 * q[15] * m[6] + q[16] * m[5] + q[18] * m[8]
        dz += 3 * q[11] * m[5] + q[13] * m[4] + 2 * q[14] * m[8] + 2 * q[16] * m[7] + q[17] * m[3] + q[18] * m[6]
    return dx, dy, dz


@kernel(inline="always")
def _direction(mean, eye):
    """Return the unit vector from the eye to the mean, and one over their distance."""
    x, y, z = mean[0] - eye[0], mean[1] - eye[1], mean[2] - eye[2]
    inverse = f32(1) / max(np.sqrt(x * x + y * y + z * z), f32(1e-12))
    return x * inverse, y * inverse, z * inverse, inverse


@kernel
def add(weights: Any, means: Any, eyes: Any, out: Any) -> None:
    """Add sum over m of m(d) P to colours [B, N, 3]; weights P [N, M, 3], means [N, 3], eyes [B, 3]."""
    m = np.empty(weights.shape[1], f32)
    for b in range(len(eyes)):
        for n in range(len(means)):
            x, y, z, _ = _direction(means[n], eyes[b])
            _fill(m, x, y, z)
            red, green, blue = out[b, n, 0], out[b, n, 1], out[b, n, 2]
            for i in range(len(m)):
                red += m[i] * weights[n, i, 0]
                green += m[i] * weights[n, i, 1]
                blue += m[i] * weights[n, i, 2]
            out[b, n, 0], out[b, n, 1], out[b, n, 2] = red, green, blue


@kernel
def add_backward(weights: Any, means: Any, eyes: Any, d_out: Any, d_weights: Any, d_means: Any) -> None:
    """Add the gradients in weights and means to d_weights and d_means, for the gradient d_out [B, N, 3] of `add`."""
    m, q = np.empty(weights.shape[1], f32), np.empty(weights.shape[1], f32)
    for b in range(len(eyes)):
        for n in range(len(means)):
            x, y, z, inverse = _direction(means[n], eyes[b])
            _fill(m, x, y, z)
            red, green, blue = d_out[b, n, 0], d_out[b, n, 1], d_out[b, n, 2]
            for i in range(len(m)):
                q[i] = red * weights[n, i, 0] + green * weights[n, i, 1] + blue * weights[n, i, 2]
                d_weights[n, i, 0] += m[i] * red
                d_weights[n, i, 1] += m[i] * green
                d_weights[n, i, 2] += m[i] * blue
            dx, dy, dz = _slope(q, m, x, y, z)
            along = dx * x + dy * y + dz * z  # the length of the direction stays 1
            d_means[n, 0] += (dx - along * x) * inverse
            d_means[n, 1] += (dy - along * y) * inverse
            d_means[n, 2] += (dz - along * z) * inverse
