"""CPU kernels compiled by numba."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numba


def kernel(function: Callable[..., Any] | None = None, *, inline: str = "never", finite: bool = False) -> Any:
    """Compile with numba.njit, releasing the GIL, and cache on disk if a cache folder is writable.

    Sums may be reordered and multiply-adds fused, which lets LLVM vectorise reductions. NaN and infinity stay defined:
    with fastmath=True, an index computed from one could crash the process. `finite` promises that there are none, and
    turns fastmath on.

    A kernel that others call must have inline="always". Otherwise there are two copies of it, one of its own and one
    within the caller, which LLVM may vectorise in different ways; the process that compiles takes the first, those that
    load from the cache the second, and a run would not repeat bit for bit.
    """
    if function is None:
        return lambda f: kernel(f, inline=inline, finite=finite)
    plain = inspect.unwrap(function)  # undo the wrapper of a runtime type checker
    options = {
        "nogil": True,
        "inline": inline,
        "error_model": "numpy",
        "fastmath": True if finite else {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        return numba.njit(plain, cache=True, **options)
    except RuntimeError:  # neither the source folder nor the user's cache folder is writable
        return numba.njit(plain, **options)
