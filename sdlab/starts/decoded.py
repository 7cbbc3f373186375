"""What decoders of Gaussians return, and what their formats have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdlab.meshes.kinds import Unsupported

MOST = 2_000_000  # Gaussians in a file: as many as scene.max_gaussians can allow
FLAT = 100.0  # a disc (2DGS) becomes this many times as wide as it is thick
HALF_STEP = 0.5 / 255  # an opacity stored in a byte as 0 or 255 is this far from 0 or 1, on average


class Gaussians(NamedTuple):
    """Gaussians as a file stores them; floats, infinite or NaN where the file is."""

    means: np.ndarray  # [N, 3] float64
    quats: np.ndarray  # [N, 4] wxyz, of any length
    log_scales: np.ndarray  # [N, 3]
    opacity_logits: np.ndarray  # [N]
    rgbs: np.ndarray  # [N, 3] in [0, 1]
    remarks: tuple[str, ...] = ()
    sh: np.ndarray | None = None  # [N, K, 3] float32


def must_be_allowed(count: int) -> None:
    """Raise ValueError if a file says that it holds more Gaussians than any scene may have."""
    if count > MOST:
        raise Unsupported(f"holds {count:,} Gaussians; the limit is {MOST:,}")


def logit(share: np.ndarray) -> np.ndarray:
    """Return the logits of opacities in [0, 1]; those of 0 and 1 as of the values between which a byte cannot tell."""
    share = np.clip(share, HALF_STEP, 1 - HALF_STEP)
    return np.log(share / (1 - share))


def with_largest(smallest: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Return unit quaternions [n, 4] from all components but the largest [n, 3], in order, and its index [n]."""
    quats = np.empty((len(smallest), 4))
    others = np.array([[j for j in range(4) if j != i] for i in range(4)])[largest]
    np.put_along_axis(quats, others, smallest, 1)
    rest = np.sqrt(np.maximum(1 - np.square(smallest).sum(1), 0))
    np.put_along_axis(quats, largest[:, None], rest[:, None], 1)
    return quats
