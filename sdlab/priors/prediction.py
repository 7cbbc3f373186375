"""What a network predicts natively, and eps (Salimans & Ho 2022, "Progressive distillation", appendix D).

epsilon        out = eps
v_prediction   out = alpha eps - sigma x0       eps = alpha out + sigma z_t
sample         out = x0                         eps = (z_t - alpha out) / sigma
"""

from __future__ import annotations

from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def as_eps(kind: str, out: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps [B, C, H, W] from the network's answer of the same shape; alpha, sigma [B, 1, 1, 1]."""
    if kind == "epsilon":
        return out
    if kind == "v_prediction":
        return alpha * out + sigma * z_t
    return (z_t - alpha * out) / sigma


def native_target(kind: str, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network would answer for alpha z0 + sigma noise, if z0 were all there is."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return alpha * noise - sigma * z0
    return z0
