"""CPU kernels compiled by numba."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any] | None = None, *, inline: str = "never") -> Any:
    """Compile with numba.njit, releasing the GIL, and cache on disk if a cache folder is writable.

    Sums may be reordered and multiply-adds fused, which lets LLVM vectorise reductions. NaN and infinity stay defined:
    with fastmath=True, an index computed from one could crash the process.
    """
    if function is None:
        return lambda f: kernel(f, inline=inline)
    plain = inspect.unwrap(function)  # undo the wrapper of a runtime type checker
    options = {
        "nogil": True,
        "inline": inline,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # neither the source folder nor the user's cache folder is writable
        return numba.njit(plain, **options)
