"""The two passes over a gallery's 8-bit images as compiled kernels: likelihoods, and the weighted sum.

The images are premultiplied rgb and coverage, uint8 [N, 4, P], of any size; symbols are those of
`sdlab.priors.closed_form`. An image is read once per pass and is not converted in memory. The result for one row of
z_t does not depend on other rows. `no_type_check` exempts the kernels from the tests' run-time type checker.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from sdlab.compiled import kernel

f32 = np.float32


@kernel
@no_type_check
def likelihoods(images, chosen, z, alpha, v, mean, variance, log, shift):
    """Write log p_i to `log` [K] and E[b - m | i] to `shift` [K, 3] for the images `chosen` [K].

    z [3, P] and all scalars are float32; the background colour has `mean` m and `variance` tau^2. The residual r is
    formed pixel by pixel: expanding |r|^2 into inner products would cancel most digits at low noise.
    """
    one = f32(255)
    scale = f32(2) * alpha / one
    k = f32(4) * alpha * alpha * variance
    z_red, z_green, z_blue = z[0], z[1], z[2]
    for i in range(chosen.shape[0]):
        image = images[chosen[i]]
        red, green, blue, cover = image[0], image[1], image[2], image[3]
        squares = hole_red = hole_green = hole_blue = holes = f32(0)
        for p in range(z_red.shape[0]):
            hole = one - f32(cover[p])  # 255 T
            behind = mean * hole
            # r = z - alpha X with X = 2 (F + m T) - 1
            r_red = z_red[p] + alpha - scale * (f32(red[p]) + behind)
            r_green = z_green[p] + alpha - scale * (f32(green[p]) + behind)
            r_blue = z_blue[p] + alpha - scale * (f32(blue[p]) + behind)
            squares += r_red * r_red + r_green * r_green + r_blue * r_blue
            hole_red += hole * r_red
            hole_green += hole * r_green
            hole_blue += hole * r_blue
            holes += hole * hole
        hole_red, hole_green, hole_blue = hole_red / one, hole_green / one, hole_blue / one  # <T, r>
        denominator = v + k * holes / (one * one)
        explained = k * (hole_red * hole_red + hole_green * hole_green + hole_blue * hole_blue) / denominator
        log[i] = (explained - squares) / (f32(2) * v) - f32(1.5) * np.log(denominator)
        moved = f32(2) * alpha * variance / denominator
        shift[i, 0], shift[i, 1], shift[i, 2] = moved * hole_red, moved * hole_green, moved * hole_blue


@kernel
@no_type_check
def weighted_sum(images, chosen, weights, shift, mean, least, out):
    """Write sum_i w_i (X_i + 2 T_i E[b - m | i]) to `out` [3, P] and return sum_i w_i, over weights above `least`.

    `chosen` and `weights` are [K], `shift` [K, 3]; all but the indices and images is float32.
    """
    size = out.shape[1]
    # Rows a power of two apart would share cache sets and stall loads behind stores of another row.
    row = size + 16
    sums = np.zeros(3 * row, np.float32)
    sum_red, sum_green, sum_blue = sums[:size], sums[row : row + size], sums[2 * row : 2 * row + size]
    total = f32(0)
    for i in range(chosen.shape[0]):
        if weights[i] > least:
            total += weights[i]
            image = images[chosen[i]]
            red, green, blue, cover = image[0], image[1], image[2], image[3]
            w = f32(2) / f32(255) * weights[i]
            w_red, w_green, w_blue = w * (mean + shift[i, 0]), w * (mean + shift[i, 1]), w * (mean + shift[i, 2])
            for p in range(sum_red.shape[0]):
                hole = f32(255) - f32(cover[p])
                sum_red[p] += w * f32(red[p]) + w_red * hole
                sum_green[p] += w * f32(green[p]) + w_green * hole
                sum_blue[p] += w * f32(blue[p]) + w_blue * hole
    for p in range(size):
        out[0, p], out[1, p], out[2, p] = sum_red[p] - total, sum_green[p] - total, sum_blue[p] - total
    return total
