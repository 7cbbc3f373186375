"""Statistics of images [n, 3, H, W] in [0, 1], one number [n] each. They cover the background, too."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d


def softened(x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n 3 H W"]:
    """Return the mean over 3 x 3 pixels."""
    return avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def saturation(x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n"]:
    """Return the mean of max(R, G, B) - min(R, G, B): 0 for greys, 1 for pure colours everywhere."""
    return (x.amax(1) - x.amin(1)).mean((1, 2))


def sharpness(x: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n"]:
    """Return the mean absolute difference between a pixel and its 3 x 3 mean."""
    return (x - softened(x)).abs().mean((1, 2, 3))
