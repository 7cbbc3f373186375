"""Error messages for users, with advice when memory runs out; and the return of freed memory to the system."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

import psutil
import torch

from sdlab.quoting import first_line as first_line
from sdlab.quoting import reason as reason


@contextlib.contextmanager
def memory_explained(
    what: str, device: torch.device, size: Callable[[], int] | None = None, advice: str = ""
) -> Iterator[None]:
    """Turn out-of-memory errors on `device` into a RuntimeError that says what did not fit and what to change.

    `what` is the work that needs the memory, `size` returns its bytes; `advice` replaces the usual advice. Other
    errors pass through unchanged.
    """
    try:
        yield
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        needs = f" (needs {size() / 1e9:.1f} GB)" if size else ""
        smaller = "turn on prior.low_memory, set prior.precision to 'fp16', " if device.type != "cpu" else ""
        usual = (
            f"Lower camera.views, {smaller}close other programs that use this memory, or choose a smaller prior.path, "
            "such as 'toybox'"
        )
        raise RuntimeError(f"out of memory: {what}{needs}; {_free_memory(device)}. {advice or usual}") from e


def is_out_of_memory(e: BaseException) -> bool:
    """Return whether `e` was raised because memory ran out."""
    # torch has an exception type for a full GPU; for a full main memory it raises a RuntimeError with these words
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(e)


def _free_memory(device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return f"{free / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} GB are free"
    memory = psutil.virtual_memory()
    return f"{memory.available / 1e9:.1f} GB of the computer's {memory.total / 1e9:.1f} GB are free"


def give_back() -> bool:
    """Return freed memory to the system; glibc's allocator (usual on Linux) would keep it for this process.

    Return whether there was any.
    """
    return bool(_trim()(0))


@functools.cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # other systems and allocators need no such call
        return lambda _: 0
