"""What files and other starts hold, as plain arrays. Free of torch: processes that parse files import it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class RawSplats(NamedTuple):
    """A Gaussian scene as splat files store it, in float32 numpy, before activation."""

    means: np.ndarray  # [N, 3]
    quats: np.ndarray  # [N, 4] wxyz, unit length
    log_scales: np.ndarray  # [N, 3]
    opacity_logits: np.ndarray  # [N]
    rgbs: np.ndarray  # [N, 3] in [0, 1]
    sh: np.ndarray | None = None  # [N, K, 3], what depends on the direction of view: see `sdlab.harmonics`

    def rows(self, chosen: np.ndarray | slice) -> RawSplats:
        """Return some of the Gaussians."""
        means, quats, log_scales, opacity_logits, rgbs = (column[chosen] for column in self[:5])
        return RawSplats(means, quats, log_scales, opacity_logits, rgbs, None if self.sh is None else self.sh[chosen])


class Cloud(NamedTuple):
    """Coloured points on a surface, float32."""

    points: np.ndarray  # [n, 3]
    rgbs: np.ndarray  # [n, 3] in [0, 1]
