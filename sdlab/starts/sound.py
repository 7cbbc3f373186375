"""Make points and Gaussians from files fit for a scene: float32, finite, without stray ones far away.

Each function says what it left out or changed, in remarks that continue "scene.file = 'x': ".
"""

from __future__ import annotations

import math

import numpy as np

from sdlab.meshes.read import LARGEST
from sdlab.meshes.stray import left_out, near, told
from sdlab.shapes import Cloud, RawSplats
from sdlab.starts.decoded import FLAT, HALF_STEP, Gaussians

FAR_OFF = 100.0  # a middle this many times as far from the origin as its points from it costs float32 its detail
OPAQUE = math.log((1 - HALF_STEP) / HALF_STEP)


def sound_cloud(at: np.ndarray, rgbs: np.ndarray, given: str) -> tuple[Cloud, list[str]]:
    """Return the good ones of points [N, 3] float64 with colours [N, 3], and remarks.

    Raises ValueError if there are none.
    """
    good = np.all([(abs(at) < LARGEST).all(1), np.isfinite(rgbs).all(1)], axis=0)
    remarks = _left_out(good, "points", given)
    kept, more = _without_stray(at[good], "points")
    return Cloud(_centred(at[good][kept]), rgbs[good][kept].astype(np.float32)), remarks + more


def sound_splats(found: Gaussians, given: str, keep_stray: bool = False) -> tuple[RawSplats, list[str]]:
    """Return the good ones of Gaussians, and remarks. With `keep_stray`, those far away stay.

    Raises ValueError if there are none.
    """
    opacities, remarks = _finite_opacities(found.opacity_logits)
    log_scales, more = _with_thickness(found.log_scales)
    columns = (found.quats, log_scales, opacities[:, None], found.rgbs)
    good = (abs(found.means) < LARGEST).all(1) & np.all([np.isfinite(c).all(1) for c in columns], axis=0)
    if found.sh is not None:
        good &= np.isfinite(found.sh).all((1, 2))
    remarks = [*found.remarks, *_left_out(good, "Gaussians", given), *remarks, *more]
    kept = np.flatnonzero(good)
    if not keep_stray:
        around, more = _without_stray(found.means[kept], "Gaussians")
        kept = kept[around]
        remarks += more
    rest = (_unit(found.quats[kept]), log_scales[kept], opacities[kept], found.rgbs[kept])
    means = found.means[kept].astype(np.float32) if keep_stray else _centred(found.means[kept])
    sh = None if found.sh is None else found.sh[kept]
    return RawSplats(means, *(column.astype(np.float32, copy=False) for column in rest), sh=sh), remarks


def _left_out(good: np.ndarray, what: str, given: str) -> list[str]:
    """Say how many rows are not `good` [N]. Raises ValueError if none is."""
    bad = int((~good).sum())
    if not len(good):
        raise ValueError(f"{given} holds no {what}")
    if bad == len(good):
        raise ValueError(f"{given} contains NaN or infinity in each of its {bad:,} {what}: repair or re-export it")
    said = told(bad, len(good), what, "contains NaN or infinity and is", "contain NaN or infinity and are")
    return [f"{said} left out"] if bad else []


def _without_stray(at: np.ndarray, what: str) -> tuple[np.ndarray, list[str]]:
    """Return which points [N, 3] are not stray [N], and a remark on the others."""
    distances = np.linalg.norm(at - np.median(at, axis=0), axis=1)
    kept = near(distances, np.ones(len(at)))
    stray = int((~kept).sum())
    return kept, [left_out(stray, len(at), what)] if stray else []


def _centred(at: np.ndarray) -> np.ndarray:
    """Return points as float32, moved to the origin if float32 would lose detail where they are."""
    middle = (at.min(0) + at.max(0)) / 2
    if abs(middle).max() > FAR_OFF * np.ptp(at, axis=0).max():
        at = at - middle
    return at.astype(np.float32)


def _finite_opacities(logits: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return infinite logits as those of a byte of 0 or 255, from which converters make them."""
    count = int(np.isinf(logits).sum())
    limited = f"limited to {HALF_STEP:.1%} and {1 - HALF_STEP:.1%}"
    remark = told(count, len(logits), "opacities", f"is infinite and {limited}", f"are infinite and {limited}")
    return np.where(np.isinf(logits), np.sign(logits) * OPAQUE, logits), [remark] if count else []


def _with_thickness(log_scales: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """Return log-scales of which none is -inf, unless all three are."""
    flat = np.isneginf(log_scales)
    count = int(flat.any(1).sum())
    widest = log_scales.max(1, keepdims=True, initial=-np.inf)
    has, have = (
        "has no thickness and gets a hundredth of its width",
        "have no thickness and get a hundredth of their width",
    )
    remark = told(count, len(log_scales), "Gaussians", has, have)
    return np.where(flat, widest - math.log(FLAT), log_scales), [remark] if count else []


def _unit(quats: np.ndarray) -> np.ndarray:
    """Return quaternions [N, 4] with unit length, those that have it to the bit; zero becomes the identity."""
    lengths = np.linalg.norm(quats, axis=1, keepdims=True)
    divisors = np.where((lengths == 0) | (abs(lengths - 1) < 1e-6), 1, lengths)
    return np.where(lengths > 0, quats / divisors, np.array((1, 0, 0, 0), quats.dtype))
