"""Colours as files store them, converted to display values (sRGB) in [0, 1].

glTF stores factors and vertex colours as linear values, pictures as sRGB (glTF 2.0, 3.9.2). PLY, OBJ and STL store
display values; PLY in any type and, over the years, under several names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi)): colour = 0.5 + SH_C0 f_dc
NAMES = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"), ("r", "g", "b"))
F_DC = ("f_dc_0", "f_dc_1", "f_dc_2")
HIGHLIGHT = 1.5  # floats up to here are in [0, 1] with overshoot, since a picture in 0 .. 255 is brighter


def to_display(linear: np.ndarray) -> np.ndarray:
    """Convert linear values in [0, 1] to sRGB (IEC 61966-2-1)."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 0) ** (1 / 2.4) - 0.055)


def to_linear(display: np.ndarray) -> np.ndarray:
    """Convert sRGB values in [0, 1] to linear ones."""
    return np.where(display <= 0.04045, display / 12.92, ((np.maximum(display, 0) + 0.055) / 1.055) ** 2.4)


def shares(colours: Any) -> np.ndarray:
    """Return the first three channels of colours [..., 3 or 4] as float64 in [0, 1]; integers by the range of their
    type, as glTF's are."""
    values = np.asarray(colours)[..., :3]
    top = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1.0
    return np.clip(values.astype(np.float64) / top, 0, 1)


def of_columns(columns: Mapping[str, np.ndarray], types: Mapping[str, np.dtype]) -> tuple[np.ndarray | None, str]:
    """Return the colours [n, 3] float32 in [0, 1] of a PLY element, None if it has none, and a remark or "".

    `types` are the declared types. NaN stays NaN.
    """
    if set(F_DC) <= columns.keys():
        return (0.5 + SH_C0 * _stacked(columns, F_DC)).clip(0, 1).astype(np.float32), ""
    names = next((names for names in NAMES if set(names) <= columns.keys()), None)
    if names is None:
        return None, ""
    values = _stacked(columns, names)
    top, remark = _top(values, np.result_type(*(types[name] for name in names)))
    return (values / top).clip(0, 1).astype(np.float32), remark


def _stacked(columns: Mapping[str, np.ndarray], names: tuple[str, ...]) -> np.ndarray:
    return np.stack([columns[name] for name in names], 1).astype(np.float64)


def _top(values: np.ndarray, declared: np.dtype) -> tuple[float, str]:
    """Return the value of full intensity, and a remark where it is a guess from the values' range.

    uchar and ushort span their type; wider integers hold 8 or 16 bits as a rule; floats are in [0, 1] unless they are
    too large.
    """
    if declared in (np.uint8, np.uint16):
        return float(np.iinfo(declared).max), ""
    largest = float(np.max(values, initial=0.0, where=np.isfinite(values)))
    if declared.kind == "f" and largest <= HIGHLIGHT:
        return 1.0, ""
    top = next((top for top in (255.0, 65535.0) if largest <= top), largest)
    guess = f"its colours of type {declared.name} reach {largest:g} and are taken as 0 to {top:g}"
    return top, "" if declared.kind in "iu" and top == 255 else guess
