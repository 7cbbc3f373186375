"""The two passes over a gallery's 8-bit images as compiled kernels: likelihoods, and the weighted sum.

The images are premultiplied rgb and coverage, uint8 [N, 4, P], of any size; symbols are those of
`sdlab.priors.closed_form`. An image is read once per pass and is not converted in memory. The result for one row of
z_t does not depend on other rows. `no_type_check` exempts the kernels from the tests' run-time type checker.
"""

from __future__ import annotations

from typing import no_type_check

import numpy as np

from sdlab.compiled import kernel

f32, f64 = np.float32, np.float64

RUN = 256  # pixels summed in float32 at a time


@kernel
@no_type_check
def likelihoods(images, chosen, z, alpha, v, mean, variance, log, shift):
    """Write log p_i to `log` [K] and E[b - m | i] to `shift` [K, 3] for the images `chosen` [K].

    z [3, P] and `shift` are float32, `log` and the scalars float64; the background colour has `mean` m and `variance`
    tau^2. The residual r is formed pixel by pixel, since expanding |r|^2 into inner products would cancel most digits
    at low noise. Sums of more than RUN pixels are float64, because a background far from m leaves a small difference of
    two large terms.
    """
    one = f32(255)
    base, scale, grey = f32(alpha), f32(2 * alpha / 255), f32(mean)
    k = 4 * alpha * alpha * variance
    size = z.shape[1]
    for i in range(chosen.shape[0]):
        image = images[chosen[i]]
        squares = hole_red = hole_green = hole_blue = holes = f64(0)
        for begin in range(0, size, RUN):
            end = min(begin + RUN, size)
            z_red, z_green, z_blue = z[0, begin:end], z[1, begin:end], z[2, begin:end]
            red, green, blue, cover = image[0, begin:end], image[1, begin:end], image[2, begin:end], image[3, begin:end]
            run_squares = run_red = run_green = run_blue = run_holes = f32(0)
            for p in range(z_red.shape[0]):
                hole = one - f32(cover[p])  # 255 T
                behind = grey * hole
                # r = z - alpha X with X = 2 (F + m T) - 1
                r_red = z_red[p] + base - scale * (f32(red[p]) + behind)
                r_green = z_green[p] + base - scale * (f32(green[p]) + behind)
                r_blue = z_blue[p] + base - scale * (f32(blue[p]) + behind)
                run_squares += r_red * r_red + r_green * r_green + r_blue * r_blue
                run_red += hole * r_red
                run_green += hole * r_green
                run_blue += hole * r_blue
                run_holes += hole * hole
            squares += f64(run_squares)
            hole_red += f64(run_red)
            hole_green += f64(run_green)
            hole_blue += f64(run_blue)
            holes += f64(run_holes)
        t_red, t_green, t_blue = hole_red / 255, hole_green / 255, hole_blue / 255  # <T, r>
        denominator = v + k * holes / 255**2
        explained = k * (t_red * t_red + t_green * t_green + t_blue * t_blue) / denominator
        log[i] = (explained - squares) / (2 * v) - 1.5 * np.log(denominator)
        moved = 2 * alpha * variance / denominator
        shift[i, 0], shift[i, 1], shift[i, 2] = moved * t_red, moved * t_green, moved * t_blue


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
