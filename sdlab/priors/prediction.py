"""Convert between eps and what a network predicts natively (Salimans & Ho 2022, "Progressive distillation", app. D).

epsilon        out = eps
v_prediction   out = alpha eps - sigma x0       eps = alpha out + sigma z_t
sample         out = x0                         eps = (z_t - alpha out) / sigma
"""

from __future__ import annotations

from torch import Tensor

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def as_eps(kind: str, out: Tensor, z_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Convert the network's output [B, C, H, W] to eps; alpha, sigma [B, 1, 1, 1]."""
    if kind == "epsilon":
        return out
    if kind == "v_prediction":
        return alpha * out + sigma * z_t
    return (z_t - alpha * out) / sigma


def native_target(kind: str, z0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the training target for alpha z0 + sigma noise in the network's native parametrisation."""
    if kind == "epsilon":
        return noise
    if kind == "v_prediction":
        return alpha * noise - sigma * z0
    return z0
