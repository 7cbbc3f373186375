"""The stages of the CPU rasteriser as compiled kernels: project, order, bin, blend, and the two backward stages.

Image model and notation: see `sdlab.raster.model`, with one reformulation. With S'^-1 = L^T L, L upper
triangular, and w = (u, v) = L (x - mu'):

    alpha = min(o exp(-|w|^2 / 2), ALPHA_MAX)

Factoring S'^-1 is for precision: on a diagonal needle the three terms of the quadratic form are thousands of times
larger than their sum, so single precision loses the sum; u and v do not have this problem.

Layout   Everything is float32. Splats are the visible Gaussians of one view in depth order, one row of 16 floats
         (64 bytes, one cache line) each, with the named columns below. Tiles are 8 x 8 pixels in row-major order; tile
         t blends the splats ranks[starts[t] : starts[t + 1]], front to back.
Threads  Kernels release the GIL and share nothing but their arguments; the caller runs them on threads over disjoint
         views or tile ranges.
"""

from __future__ import annotations

import math

import numpy as np

from sdlab.compiled import kernel
from sdlab.raster import model

f32 = np.float32

TILE_SIDE = 8
TILE_SHIFT = 3  # log2 of the side
TILE_PIXELS = TILE_SIDE * TILE_SIDE
CHUNK = 16  # splats blended between checks for a fully opaque tile

NEAR = f32(model.NEAR)
CLAMP_MARGIN = f32(model.CLAMP_MARGIN)
LOW_PASS = f32(model.LOW_PASS)
ALPHA_MIN = f32(model.ALPHA_MIN)
LOG_ALPHA_MIN = f32(math.log(model.ALPHA_MIN))
ALPHA_MAX = f32(model.ALPHA_MAX)
T_STOP = f32(model.T_STOP)
COVARIANCE_MAX = f32(1e16)  # pixels^2; beyond it the determinant overflows float32 and the Gaussian is not drawn

# Columns of a splat, scaled so that the inner loops need no constants of their own:
# alpha = exp(LOG_OPACITY - |w|^2)^8 with L, w and the reach divided by 4 and the logarithm by 8.
MEAN_X, MEAN_Y = 0, 1  # mu', pixels
L_UX, L_UY, L_VY = 2, 3, 4  # L / 4
LOG_OPACITY = 5  # ln(o) / 8
RED, GREEN, BLUE = 6, 7, 8
DEPTH = 9  # t_z
REACH = 10  # |w| / 4 on the ellipse alpha = 1/255
EXTENT_X = 11  # half the width of that ellipse's bounding box, pixels
TIP_Y = 12  # y of its right-most point, relative to the mean
SPREAD_X = 13  # 1 / L_UX
FIRST_ROW, LAST_ROW = 14, 15  # pixel rows it covers, within the image
SPLAT_COLUMNS = 16
L_SCALE = f32(4)

# Columns that the blend's backward pass accumulates per splat: the gradient of the blended features, and the moments
# (sums over pixels of alpha dLoss/dalpha times 1, u, v, uu, uv, vv, with u and v divided by 4 as above) from which
# every other gradient follows.
D_RED, D_GREEN, D_BLUE, D_DEPTH = 0, 1, 2, 3
SUM, SUM_U, SUM_V, SUM_UU, SUM_UV, SUM_VV = 4, 5, 6, 7, 8, 9
MOMENT_COLUMNS = 10


# ---------------------------------------------------------------- project


@kernel(inline="always")
def _to_camera(viewmat, x, y, z):
    """Return t = W mu + d."""
    return (
        viewmat[0, 0] * x + viewmat[0, 1] * y + viewmat[0, 2] * z + viewmat[0, 3],
        viewmat[1, 0] * x + viewmat[1, 1] * y + viewmat[1, 2] * z + viewmat[1, 3],
        viewmat[2, 0] * x + viewmat[2, 1] * y + viewmat[2, 2] * z + viewmat[2, 3],
    )


@kernel(inline="always")
def _slope_limits(K, width, height):
    """Return the limits (low, high) of t_x / t_z, then of t_y / t_z, used for J, which is unbounded off-screen."""
    fx, cx, fy, cy = K[0, 0], K[0, 2], K[1, 1], K[1, 2]
    margin_x, margin_y = CLAMP_MARGIN * width, CLAMP_MARGIN * height
    return -(cx + margin_x) / fx, (width - cx + margin_x) / fx, -(cy + margin_y) / fy, (height - cy + margin_y) / fy


@kernel(inline="always")
def _screen_rows(viewmat, J_xx, J_xz, J_yy, J_yz):
    """Return the two rows of J W: the derivative of the pixel position with respect to the world position."""
    return (
        J_xx * viewmat[0, 0] + J_xz * viewmat[2, 0],
        J_xx * viewmat[0, 1] + J_xz * viewmat[2, 1],
        J_xx * viewmat[0, 2] + J_xz * viewmat[2, 2],
        J_yy * viewmat[1, 0] + J_yz * viewmat[2, 0],
        J_yy * viewmat[1, 1] + J_yz * viewmat[2, 1],
        J_yy * viewmat[1, 2] + J_yz * viewmat[2, 2],
    )


@kernel(inline="always")
def _unit_quaternion(quats, i):
    """Return (w, x, y, z) / |q| and 1 / |q|; an all-zero quaternion counts as no rotation."""
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    inverse_norm = f32(1) / math.sqrt(max(w * w + x * x + y * y + z * z, f32(1e-24)))
    return w * inverse_norm, x * inverse_norm, y * inverse_norm, z * inverse_norm, inverse_norm


@kernel(inline="always")
def _rotation(w, x, y, z):
    """Return R of a unit quaternion, column by column: column k is the direction of the Gaussian's axis k."""
    one, two = f32(1), f32(2)
    return (
        (one - two * (y * y + z * z), two * (x * y + w * z), two * (x * z - w * y)),
        (two * (x * y - w * z), one - two * (x * x + z * z), two * (y * z + w * x)),
        (two * (x * z + w * y), two * (y * z - w * x), one - two * (x * x + y * y)),
    )


@kernel(inline="always")
def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@kernel
def world_covariances(quats, scales, out):
    """Write the world-space covariances out[i] = R S S^T R^T."""
    for i in range(out.shape[0]):
        w, x, y, z, _ = _unit_quaternion(quats, i)
        axes = _rotation(w, x, y, z)
        for row in range(3):
            for column in range(3):
                total = f32(0)
                for k in range(3):
                    total += scales[i, k] * scales[i, k] * axes[k][row] * axes[k][column]
                out[i, row, column] = total


@kernel(inline="always")
def project(means, quats, scales, opacities, colors, viewmat, K, width, height, splats, gaussians, radii, means2d):
    """Fill `splats` and `gaussians` (their Gaussian indices) with everything visible, in input order; return the count.

    `radii` and `means2d` are filled for every Gaussian, with 0 for those not drawn.
    """
    fx, cx, fy, cy = K[0, 0], K[0, 2], K[1, 1], K[1, 2]
    low_x, high_x, low_y, high_y = _slope_limits(K, width, height)
    visible = 0
    for i in range(means.shape[0]):
        radii[i] = 0
        means2d[i, 0] = f32(0)
        means2d[i, 1] = f32(0)
        t_x, t_y, t_z = _to_camera(viewmat, means[i, 0], means[i, 1], means[i, 2])
        opacity = opacities[i]
        if not (t_z > NEAR and opacity > ALPHA_MIN):
            continue
        inverse_z = f32(1) / t_z
        mean_x = fx * t_x * inverse_z + cx
        mean_y = fy * t_y * inverse_z + cy

        slope_x = min(max(t_x * inverse_z, low_x), high_x)
        slope_y = min(max(t_y * inverse_z, low_y), high_y)
        J_xx, J_yy = fx * inverse_z, fy * inverse_z
        a_x, a_y, a_z, b_x, b_y, b_z = _screen_rows(viewmat, J_xx, -J_xx * slope_x, J_yy, -J_yy * slope_y)
        w, x, y, z, _ = _unit_quaternion(quats, i)
        R_0, R_1, R_2 = _rotation(w, x, y, z)
        a, b = (a_x, a_y, a_z), (b_x, b_y, b_z)
        m_x0, m_x1, m_x2 = _dot(a, R_0) * scales[i, 0], _dot(a, R_1) * scales[i, 1], _dot(a, R_2) * scales[i, 2]
        m_y0, m_y1, m_y2 = _dot(b, R_0) * scales[i, 0], _dot(b, R_1) * scales[i, 1], _dot(b, R_2) * scales[i, 2]

        raw_xx = m_x0 * m_x0 + m_x1 * m_x1 + m_x2 * m_x2
        raw_yy = m_y0 * m_y0 + m_y1 * m_y1 + m_y2 * m_y2
        cov_xy = m_x0 * m_y0 + m_x1 * m_y1 + m_x2 * m_y2
        cov_xx, cov_yy = raw_xx + LOW_PASS, raw_yy + LOW_PASS
        if not (cov_xx < COVARIANCE_MAX and cov_yy < COVARIANCE_MAX):
            continue
        # det(M M^T + e I) as a sum of squares (Cauchy-Binet): cov_xx cov_yy - cov_xy^2 would cancel on needles.
        minor_0 = m_x1 * m_y2 - m_x2 * m_y1
        minor_1 = m_x2 * m_y0 - m_x0 * m_y2
        minor_2 = m_x0 * m_y1 - m_x1 * m_y0
        det = minor_0 * minor_0 + minor_1 * minor_1 + minor_2 * minor_2 + LOW_PASS * (raw_xx + raw_yy + LOW_PASS)

        log_opacity = math.log(opacity)
        reach = math.sqrt(max(f32(2) * (log_opacity - LOG_ALPHA_MIN), f32(0)))
        extent_x, extent_y = reach * math.sqrt(cov_xx), reach * math.sqrt(cov_yy)
        if not (
            mean_x + extent_x > f32(0)
            and mean_x - extent_x < width
            and mean_y + extent_y > f32(0)
            and mean_y - extent_y < height
        ):
            continue

        splat = splats[visible]
        splat[MEAN_X], splat[MEAN_Y] = mean_x, mean_y
        splat[L_UX] = math.sqrt(cov_yy / det) / L_SCALE
        splat[L_UY] = -cov_xy / cov_yy * splat[L_UX]
        splat[L_VY] = f32(1) / (math.sqrt(cov_yy) * L_SCALE)
        splat[LOG_OPACITY] = log_opacity * f32(1 / 8)
        splat[RED], splat[GREEN], splat[BLUE] = colors[i, 0], colors[i, 1], colors[i, 2]
        splat[DEPTH] = t_z
        splat[REACH] = reach / L_SCALE
        splat[EXTENT_X] = extent_x
        splat[TIP_Y] = cov_xy / cov_xx * extent_x
        splat[SPREAD_X] = f32(1) / splat[L_UX]
        # Rows whose pixel centres, at + 0.5, are inside. Clamped first, as an extent may exceed an integer's range.
        splat[FIRST_ROW] = math.ceil(max(mean_y - extent_y - f32(0.5), f32(0)))
        splat[LAST_ROW] = math.floor(min(mean_y + extent_y - f32(0.5), height - f32(1)))
        gaussians[visible] = i
        radii[i] = math.ceil(min(max(extent_x, extent_y), f32(1e9)))
        means2d[i, 0], means2d[i, 1] = mean_x, mean_y
        visible += 1
    return visible


# ---------------------------------------------------------------- order


@kernel(inline="always")
def order_by_depth(depths):
    """Return the permutation that sorts positive `depths` from near to far, stably.

    A radix sort in three passes of 11, 10 and 10 bits: the bit pattern of a positive float is monotonic in its value.
    For a few thousand splats it is several times faster than a comparison sort.
    """
    keys = depths.view(np.uint32)
    n = keys.size
    order = np.empty(n, np.int32)
    other = np.empty(n, np.int32)
    for i in range(n):
        order[i] = i
    positions = np.empty(2048, np.int64)
    for shift, buckets in ((0, 2048), (11, 1024), (21, 1024)):
        positions[:] = 0
        mask = np.uint32(buckets - 1)
        for i in range(n):
            positions[(keys[i] >> np.uint32(shift)) & mask] += 1
        total = 0
        for k in range(buckets):
            count = positions[k]
            positions[k] = total
            total += count
        for j in range(n):
            i = order[j]
            bucket = (keys[i] >> np.uint32(shift)) & mask
            other[positions[bucket]] = i
            positions[bucket] += 1
        order, other = other, order
    return order


# ---------------------------------------------------------------- bin


@kernel(inline="always")
def _columns_touched(splat, tile_row, width):
    """Return the first and last tile in a row of tiles whose pixel centres the ellipse alpha = 1/255 can reach."""
    low = f32(tile_row * TILE_SIDE) + f32(0.5) - splat[MEAN_Y]
    high = low + f32(TILE_SIDE - 1)
    # An ellipse widens up to its tip: within the band of rows it reaches furthest at the row nearest to the tip.
    y_right = min(max(splat[TIP_Y], low), high)
    y_left = min(max(-splat[TIP_Y], low), high)
    v_right, v_left = splat[L_VY] * y_right, splat[L_VY] * y_left
    u_right = math.sqrt(max(splat[REACH] * splat[REACH] - v_right * v_right, f32(0)))
    u_left = math.sqrt(max(splat[REACH] * splat[REACH] - v_left * v_left, f32(0)))
    right = splat[MEAN_X] + (u_right - splat[L_UY] * y_right) * splat[SPREAD_X]
    left = splat[MEAN_X] - (u_left + splat[L_UY] * y_left) * splat[SPREAD_X]
    # Clamped before conversion, because a float may exceed an integer's range.
    first = math.ceil(min(max(left - f32(0.5), f32(0)), width))
    last = math.floor(min(max(right - f32(0.5), f32(-1)), width - f32(1)))
    return first >> TILE_SHIFT, last >> TILE_SHIFT


@kernel(inline="always")
def bin_splats(splats, width, tiles_x, tiles_y):
    """Return the splats that touch each tile: starts [tiles + 1], and ranks, in depth order within a tile."""
    bound = 0  # upper bound on the number of (splat, tile) pairs, from the bounding boxes
    for rank in range(splats.shape[0]):
        splat = splats[rank]
        rows = (int(splat[LAST_ROW]) >> TILE_SHIFT) - (int(splat[FIRST_ROW]) >> TILE_SHIFT) + 1
        columns = int(min(f32(2) * splat[EXTENT_X], width)) // TILE_SIDE + 2
        bound += max(rows, 0) * min(columns, tiles_x)

    pair_tile = np.empty(bound, np.int32)
    pair_rank = np.empty(bound, np.int32)
    starts = np.zeros(tiles_x * tiles_y + 1, np.int32)
    pairs = 0
    for rank in range(splats.shape[0]):
        splat = splats[rank]
        for row in range(int(splat[FIRST_ROW]) >> TILE_SHIFT, (int(splat[LAST_ROW]) >> TILE_SHIFT) + 1):
            first, last = _columns_touched(splat, row, width)
            for column in range(first, last + 1):
                tile = row * tiles_x + column
                pair_tile[pairs] = tile
                pair_rank[pairs] = rank
                starts[tile + 1] += 1
                pairs += 1

    for tile in range(tiles_x * tiles_y):
        starts[tile + 1] += starts[tile]
    positions = starts[:-1].copy()
    ranks = np.empty(pairs, np.int32)
    for pair in range(pairs):
        tile = pair_tile[pair]
        ranks[positions[tile]] = pair_rank[pair]
        positions[tile] += 1
    return starts, ranks


@kernel
def prepare_view(means, quats, scales, opacities, colors, viewmat, K, width, height, tiles_x, tiles_y, radii, means2d):
    """Project, order and bin one view; return splats [M, 16] by depth, gaussians [M], starts, ranks."""
    drafts = np.empty((means.shape[0], SPLAT_COLUMNS), np.float32)
    owners = np.empty(means.shape[0], np.int32)
    visible = project(
        means, quats, scales, opacities, colors, viewmat, K, width, height, drafts, owners, radii, means2d
    )
    order = order_by_depth(drafts[:visible, DEPTH].copy())
    splats = np.empty((visible, SPLAT_COLUMNS), np.float32)
    gaussians = np.empty(visible, np.int32)
    for rank in range(visible):
        splats[rank] = drafts[order[rank]]
        gaussians[rank] = owners[order[rank]]
    starts, ranks = bin_splats(splats, width, tiles_x, tiles_y)
    return splats, gaussians, starts, ranks


# ---------------------------------------------------------------- blend


# Offsets into a tile's block. Unsigned on purpose: numba wraps negative indices around, and an index that LLVM cannot
# prove non-negative prevents it from vectorising the loop (measured: 5.8 times slower).
T = np.uint64(0)
R, G, B, Z = (np.uint64(k * TILE_PIXELS) for k in (1, 2, 3, 4))
SUFFIX, D_R, D_G, D_B, D_Z = (np.uint64(k * TILE_PIXELS) for k in (1, 2, 3, 4, 5))


@kernel(inline="always")
def _exp_8(x):
    """Return exp(x)^8 with a relative error of 2e-6 for -0.75 <= x <= 0; below that 1/403, which is under 1/255.

    The polynomial is the minimax one (in relative error) of degree 6 on this range. The library's exp would prevent
    LLVM from vectorising the loop.
    """
    x = max(x, f32(-0.75))
    p = f32(9.503820018e-04)
    p = p * x + f32(7.899118705e-03)
    p = p * x + f32(4.144465636e-02)
    p = p * x + f32(1.666071022e-01)
    p = p * x + f32(4.999922516e-01)
    p = p * x + f32(9.999996144e-01)
    p = p * x + f32(1)
    p = p * p
    p = p * p
    return p * p


@kernel(inline="always")
def _pixel_grid():
    """Return x and y of the 64 pixels of a tile, relative to its first one."""
    grid_x = np.empty(TILE_PIXELS, np.float32)
    grid_y = np.empty(TILE_PIXELS, np.float32)
    for i in range(TILE_PIXELS):
        grid_x[i] = i & (TILE_SIDE - 1)
        grid_y[i] = i >> TILE_SHIFT
    return grid_x, grid_y


@kernel(inline="always")
def _pixels_covered(splat, top):
    """Return the run of a tile's pixels in the rows that the splat covers: first index and count."""
    first = max(int(splat[FIRST_ROW]) - top, 0)
    last = min(int(splat[LAST_ROW]) - top, TILE_SIDE - 1)
    return np.uint64(first * TILE_SIDE), (last - first + 1) * TILE_SIDE


@kernel
def blend(first_tile, last_tile, tiles_x, splats, starts, ranks, background, rgb, alpha, depth, T_end, stops):
    """Blend the tiles first_tile to last_tile - 1 into rgb [3, H, W], and alpha, depth and T_end [H, W].

    `stops[tile]` is set to the end of the visited part of the tile's list.

    The pixels of a tile live in one block of 5 x 64 floats that stays in the L1 cache. The loop over them contains only
    arithmetic and selects, and its length is provably a multiple of 8, so LLVM turns it into SIMD code without a
    remainder. A pixel that has stopped stores its T negated, and so fails all later tests.
    """
    height, width = alpha.shape
    grid_x, grid_y = _pixel_grid()
    block = np.empty(5 * TILE_PIXELS, np.float32)
    for tile in range(first_tile, last_tile):
        left, top = (tile % tiles_x) * TILE_SIDE, (tile // tiles_x) * TILE_SIDE
        block[:TILE_PIXELS] = f32(1)
        block[TILE_PIXELS:] = f32(0)

        at, end = starts[tile], starts[tile + 1]
        while at < end:
            chunk_end = min(at + CHUNK, end)
            for pair in range(at, chunk_end):
                splat = splats[ranks[pair]]
                L_ux, L_uy, L_vy = splat[L_UX], splat[L_UY], splat[L_VY]
                to_x, to_y = f32(left) + f32(0.5) - splat[MEAN_X], f32(top) + f32(0.5) - splat[MEAN_Y]
                log_opacity, z = splat[LOG_OPACITY], splat[DEPTH]
                red, green, blue = splat[RED], splat[GREEN], splat[BLUE]
                first, count = _pixels_covered(splat, top)
                for k in range(count):
                    i = first + np.uint64(k)
                    y = to_y + grid_y[i]
                    u = L_ux * (to_x + grid_x[i]) + L_uy * y
                    v = L_vy * y
                    a = min(_exp_8(log_opacity - (u * u + v * v)), ALPHA_MAX)
                    a = a if a >= ALPHA_MIN else f32(0)
                    t = block[T + i]
                    t_next = t - t * a
                    goes_on = t_next > T_STOP
                    weight = t * a if goes_on else f32(0)
                    block[T + i] = t_next if goes_on else -abs(t)
                    block[R + i] += weight * red
                    block[G + i] += weight * green
                    block[B + i] += weight * blue
                    block[Z + i] += weight * z
            at = chunk_end
            still_open = f32(-1)
            for i in range(TILE_PIXELS):
                still_open = max(still_open, block[i])
            if still_open <= f32(0):
                break
        stops[tile] = at

        for k in range(TILE_PIXELS):
            i, row, column = np.uint64(k), top + (k >> TILE_SHIFT), left + (k & (TILE_SIDE - 1))
            if row < height and column < width:
                t = abs(block[T + i])
                rgb[0, row, column] = block[R + i] + t * background[0]
                rgb[1, row, column] = block[G + i] + t * background[1]
                rgb[2, row, column] = block[B + i] + t * background[2]
                alpha[row, column] = f32(1) - t
                T_end[row, column] = t  # kept, because 1 - alpha loses small values
                depth[row, column] = block[Z + i]


# ---------------------------------------------------------------- blend backward


@kernel
def blend_backward(
    first_tile, last_tile, tiles_x, splats, starts, stops, ranks,
    rgb, depth, T_end, d_rgb, d_alpha, d_depth, moments, d_background,
):  # fmt: skip
    """Accumulate the contribution of tiles first_tile to last_tile - 1 to `moments` [M, 10] and `d_background` [3].

    With q_i = dLoss/dC . c_i + dLoss/dZ z_i, and a pixel's outputs C, Z and alpha_out = 1 - T_end [SUP]:

        dLoss/dalpha_i = T_i q_i - suffix_i / (1 - alpha_i)
        suffix_i       = sum_{j > i} T_j alpha_j q_j + T_end (dLoss/dC . background - dLoss/dalpha_out)

    The whole sum (i = 0) is dLoss/dC . C + dLoss/dZ Z - dLoss/dalpha_out T_end, so this pass runs front to back like
    the forward pass, with suffix = whole - prefix: no per-pair value is stored, and T is never recovered by division.
    """
    height, width = T_end.shape
    grid_x, grid_y = _pixel_grid()
    block = np.empty(6 * TILE_PIXELS, np.float32)
    moments[:] = f32(0)
    d_background[:] = f32(0)
    for tile in range(first_tile, last_tile):
        left, top = (tile % tiles_x) * TILE_SIDE, (tile // tiles_x) * TILE_SIDE
        block[:] = f32(0)
        for k in range(TILE_PIXELS):
            i, row, column = np.uint64(k), top + (k >> TILE_SHIFT), left + (k & (TILE_SIDE - 1))
            if row < height and column < width:
                g_r, g_g, g_b = d_rgb[0, row, column], d_rgb[1, row, column], d_rgb[2, row, column]
                g_z = d_depth[row, column]
                t_end = T_end[row, column]
                whole = g_r * rgb[0, row, column] + g_g * rgb[1, row, column] + g_b * rgb[2, row, column]
                block[T + i] = f32(1)
                block[SUFFIX + i] = whole + g_z * depth[row, column] - d_alpha[row, column] * t_end
                block[D_R + i], block[D_G + i], block[D_B + i], block[D_Z + i] = g_r, g_g, g_b, g_z
                d_background[0] += g_r * t_end
                d_background[1] += g_g * t_end
                d_background[2] += g_b * t_end

        for pair in range(starts[tile], stops[tile]):
            rank = ranks[pair]
            splat = splats[rank]
            L_ux, L_uy, L_vy = splat[L_UX], splat[L_UY], splat[L_VY]
            to_x, to_y = f32(left) + f32(0.5) - splat[MEAN_X], f32(top) + f32(0.5) - splat[MEAN_Y]
            log_opacity, z = splat[LOG_OPACITY], splat[DEPTH]
            red, green, blue = splat[RED], splat[GREEN], splat[BLUE]
            sum_r, sum_g, sum_b, sum_z = f32(0), f32(0), f32(0), f32(0)
            sum_1, sum_u, sum_v = f32(0), f32(0), f32(0)
            sum_uu, sum_uv, sum_vv = f32(0), f32(0), f32(0)
            first, count = _pixels_covered(splat, top)
            for k in range(count):
                i = first + np.uint64(k)
                y = to_y + grid_y[i]
                u = L_ux * (to_x + grid_x[i]) + L_uy * y
                v = L_vy * y
                a_free = _exp_8(log_opacity - (u * u + v * v))
                a = min(a_free, ALPHA_MAX)
                a = a if a >= ALPHA_MIN else f32(0)
                t = block[T + i]
                t_next = t - t * a
                goes_on = t_next > T_STOP
                weight = t * a if goes_on else f32(0)
                block[T + i] = t_next if goes_on else -abs(t)
                g_r, g_g, g_b, g_z = block[D_R + i], block[D_G + i], block[D_B + i], block[D_Z + i]
                pull = weight * (g_r * red + g_g * green + g_b * blue + g_z * z)  # T_i alpha_i q_i
                suffix = block[SUFFIX + i] - pull
                block[SUFFIX + i] = suffix
                a_d_a = pull - a * suffix / (f32(1) - a)  # alpha dLoss/dalpha
                a_d_a = a_d_a if goes_on and a_free <= ALPHA_MAX else f32(0)
                sum_r += weight * g_r
                sum_g += weight * g_g
                sum_b += weight * g_b
                sum_z += weight * g_z
                sum_1 += a_d_a
                sum_u += a_d_a * u
                sum_v += a_d_a * v
                sum_uu += a_d_a * u * u
                sum_uv += a_d_a * u * v
                sum_vv += a_d_a * v * v
            moment = moments[rank]
            moment[D_RED] += sum_r
            moment[D_GREEN] += sum_g
            moment[D_BLUE] += sum_b
            moment[D_DEPTH] += sum_z
            moment[SUM] += sum_1
            moment[SUM_U] += sum_u
            moment[SUM_V] += sum_v
            moment[SUM_UU] += sum_uu
            moment[SUM_UV] += sum_uv
            moment[SUM_VV] += sum_vv


# ---------------------------------------------------------------- project backward

# Columns of the gradient of one view.
D_MEAN, D_QUAT, D_SCALE, D_OPACITY, D_COLOR = 0, 3, 7, 10, 11
GRADIENT_COLUMNS = 14


@kernel(inline="always")
def _cross(a, b):
    return a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]


@kernel(inline="always")
def _axis_backward(a, b, R_k, scale, L_ux, L_uy, L_vy, S_uu, S_uv, S_vv):
    """Differentiate axis k on the screen, m_k = s_k (a . R_k, b . R_k): return dLoss/d(m_k / s_k) and dLoss/ds_k.

    dLoss/dS' = L^T S L / 2 with S the second moments, so dLoss/dm_k = L^T S L m_k.
    """
    e_x, e_y = _dot(a, R_k), _dot(b, R_k)
    e_u, e_v = L_ux * e_x + L_uy * e_y, L_vy * e_y
    f_u, f_v = (S_uu * e_u + S_uv * e_v) * scale, (S_uv * e_u + S_vv * e_v) * scale
    return L_ux * f_u * scale, (L_uy * f_u + L_vy * f_v) * scale, f_u * e_u + f_v * e_v


@kernel
def project_backward(
    means, quats, scales, opacities, viewmat, K, width, height, splats, gaussians, moments, gradient, d_means2d
):  # fmt: skip
    """Turn the moments [parts, M, 10] of one view into `gradient` [N, 14] and dLoss/dmu' [N, 2], with 0 if not drawn.

    The parts are summed in a fixed order, so the result does not depend on the number of threads.
    """
    fx, fy = K[0, 0], K[1, 1]
    low_x, high_x, low_y, high_y = _slope_limits(K, width, height)
    gradient[:] = f32(0)
    d_means2d[:] = f32(0)
    for rank in range(gaussians.size):
        i = gaussians[rank]
        splat, moment, out = splats[rank], moments[0, rank], gradient[i]
        for part in range(1, moments.shape[0]):
            for k in range(MOMENT_COLUMNS):
                moment[k] += moments[part, rank, k]
        L_ux, L_uy, L_vy = L_SCALE * splat[L_UX], L_SCALE * splat[L_UY], L_SCALE * splat[L_VY]
        sum_u, sum_v = L_SCALE * moment[SUM_U], L_SCALE * moment[SUM_V]

        out[D_COLOR], out[D_COLOR + 1], out[D_COLOR + 2] = moment[D_RED], moment[D_GREEN], moment[D_BLUE]
        out[D_OPACITY] = moment[SUM] / opacities[i]
        d_mean_x = L_ux * sum_u  # dLoss/dmu' = L^T sum(alpha dLoss/dalpha w)
        d_mean_y = L_uy * sum_u + L_vy * sum_v
        d_means2d[i, 0], d_means2d[i, 1] = d_mean_x, d_mean_y

        # Recompute the forward quantities.
        t_x, t_y, t_z = _to_camera(viewmat, means[i, 0], means[i, 1], means[i, 2])
        inverse_z = f32(1) / t_z
        free_x, free_y = t_x * inverse_z, t_y * inverse_z
        slope_x, slope_y = min(max(free_x, low_x), high_x), min(max(free_y, low_y), high_y)
        J_xx, J_yy = fx * inverse_z, fy * inverse_z
        J_xz, J_yz = -J_xx * slope_x, -J_yy * slope_y
        a_x, a_y, a_z, b_x, b_y, b_z = _screen_rows(viewmat, J_xx, J_xz, J_yy, J_yz)
        a, b = (a_x, a_y, a_z), (b_x, b_y, b_z)
        w, x, y, z, inverse_norm = _unit_quaternion(quats, i)
        R_0, R_1, R_2 = _rotation(w, x, y, z)

        # Through the covariance to the scales and to the rows a, b of J W.
        squared = L_SCALE * L_SCALE
        S_uu, S_uv, S_vv = squared * moment[SUM_UU], squared * moment[SUM_UV], squared * moment[SUM_VV]
        d_x0, d_y0, d_s0 = _axis_backward(a, b, R_0, scales[i, 0], L_ux, L_uy, L_vy, S_uu, S_uv, S_vv)
        d_x1, d_y1, d_s1 = _axis_backward(a, b, R_1, scales[i, 1], L_ux, L_uy, L_vy, S_uu, S_uv, S_vv)
        d_x2, d_y2, d_s2 = _axis_backward(a, b, R_2, scales[i, 2], L_ux, L_uy, L_vy, S_uu, S_uv, S_vv)
        out[D_SCALE], out[D_SCALE + 1], out[D_SCALE + 2] = d_s0, d_s1, d_s2
        d_a = (
            d_x0 * R_0[0] + d_x1 * R_1[0] + d_x2 * R_2[0],
            d_x0 * R_0[1] + d_x1 * R_1[1] + d_x2 * R_2[1],
            d_x0 * R_0[2] + d_x1 * R_1[2] + d_x2 * R_2[2],
        )
        d_b = (
            d_y0 * R_0[0] + d_y1 * R_1[0] + d_y2 * R_2[0],
            d_y0 * R_0[1] + d_y1 * R_1[1] + d_y2 * R_2[1],
            d_y0 * R_0[2] + d_y1 * R_1[2] + d_y2 * R_2[2],
        )

        # A small rotation omega of the Gaussian changes the loss by omega . torque, and q by (0, omega) q / 2. So
        # dLoss/dq, which only has a component tangent to the unit sphere, is 2 (0, torque) q.
        torque_a, torque_b = _cross(d_a, a), _cross(d_b, b)
        torque = (torque_a[0] + torque_b[0], torque_a[1] + torque_b[1], torque_a[2] + torque_b[2])
        turn = _cross(torque, (x, y, z))
        twice = f32(2) * inverse_norm
        out[D_QUAT] = -twice * _dot(torque, (x, y, z))
        out[D_QUAT + 1] = twice * (w * torque[0] + turn[0])
        out[D_QUAT + 2] = twice * (w * torque[1] + turn[1])
        out[D_QUAT + 3] = twice * (w * torque[2] + turn[2])

        # Through mu' and J to the camera-space mean, and on to the world.
        d_J_xx = d_a[0] * viewmat[0, 0] + d_a[1] * viewmat[0, 1] + d_a[2] * viewmat[0, 2]
        d_J_xz = d_a[0] * viewmat[2, 0] + d_a[1] * viewmat[2, 1] + d_a[2] * viewmat[2, 2]
        d_J_yy = d_b[0] * viewmat[1, 0] + d_b[1] * viewmat[1, 1] + d_b[2] * viewmat[1, 2]
        d_J_yz = d_b[0] * viewmat[2, 0] + d_b[1] * viewmat[2, 1] + d_b[2] * viewmat[2, 2]
        d_slope_x = fx * d_mean_x - (J_xx * d_J_xz if slope_x == free_x else f32(0))
        d_slope_y = fy * d_mean_y - (J_yy * d_J_yz if slope_y == free_y else f32(0))
        d_t_x, d_t_y = d_slope_x * inverse_z, d_slope_y * inverse_z
        at_fixed_slope = d_J_xx * J_xx + d_J_xz * J_xz + d_J_yy * J_yy + d_J_yz * J_yz  # J falls off as 1 / t_z
        d_t_z = moment[D_DEPTH] - d_t_x * free_x - d_t_y * free_y - at_fixed_slope * inverse_z
        for k in range(3):
            out[D_MEAN + k] = viewmat[0, k] * d_t_x + viewmat[1, k] * d_t_y + viewmat[2, k] * d_t_z


@kernel
def sum_views(gradients, d_means, d_quats, d_scales, d_opacities, d_colors):
    """Sum gradients [B, N, 14] over the views, in order, into one array per parameter."""
    for i in range(gradients.shape[1]):
        total = gradients[0, i]
        for view in range(1, gradients.shape[0]):
            for k in range(GRADIENT_COLUMNS):
                total[k] += gradients[view, i, k]
        for k in range(3):
            d_means[i, k] = total[D_MEAN + k]
            d_scales[i, k] = total[D_SCALE + k]
            d_colors[i, k] = total[D_COLOR + k]
        for k in range(4):
            d_quats[i, k] = total[D_QUAT + k]
        d_opacities[i] = total[D_OPACITY]
