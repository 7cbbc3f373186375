"""Kernels compiled for the processor by numba."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any] | None = None, *, inline: str = "never") -> Any:
    """numba.njit without the GIL, cached on disk where a folder can be written.

    Sums may be reordered and multiply-adds fused, which is what lets LLVM vectorise the reductions; NaN and
    infinity keep their meaning (fastmath=True would make them undefined, and an index computed from one a crash).
    """
    if function is None:
        return lambda f: kernel(f, inline=inline)
    plain = inspect.unwrap(function)  # a run-time type checker may have wrapped it
    options = {
        "nogil": True,
        "inline": inline,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # neither this folder nor the user's cache folder can be written
        return numba.njit(plain, **options)
