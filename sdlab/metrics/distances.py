"""Distances between two sets of images, computed from their features.

FID  the Frechet distance between Gaussians fitted to the two sets (Heusel et al. 2017, arXiv 1706.08500, eq. 6)
KID  the squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018, arXiv 1801.01401, eq. 4)

FID is biased upwards, more so for fewer images, and is only comparable between sets of equal size. KID is unbiased and
can therefore be negative for equal distributions.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def fid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return |mean_a - mean_b|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) with the unbiased covariances C.

    With n <= d the covariance is singular, but the distance is still defined: the trace of the square root is the sum
    of the singular values of C_a^(1/2) C_b^(1/2), which needs no inverse. Raises ValueError for fewer than two rows.
    """
    _need_two(a, b)
    a, b = a.double(), b.double()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    # C = R^T R, where R has at most d rows and comes from the centred features over (n - 1)^(1/2); the singular values
    # are those of R_a R_b^T
    factors = [torch.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r").R for x in (a, b)]
    shared = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    spread = sum(factor.square().sum() for factor in factors)
    return float((apart + spread - 2 * shared).clamp_min(0))


def kid(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"]) -> float:
    """Return the unbiased estimate over all pairs, with the kernel (x . y / d + 1)^3.

    Raises ValueError for fewer than two rows.
    """
    _need_two(a, b)
    a, b = a.double(), b.double()
    within = sum(_mean_of_others(_cubic(x, x)) for x in (a, b))
    return float(within - 2 * _cubic(a, b).mean())


def _cubic(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def _mean_of_others(kernel: Tensor) -> Tensor:
    """Return the mean of [n, n] without its diagonal; 0-d."""
    n = len(kernel)
    return (kernel.sum() - kernel.diagonal().sum()) / (n * (n - 1))


def _need_two(a: Tensor, b: Tensor) -> None:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"features of {len(a)} and {len(b)} images: at least 2 of each are needed")
