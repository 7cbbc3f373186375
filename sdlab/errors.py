"""What to say, and what to lower, when there is too little memory; and memory that nobody needs any more."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Callable, Iterator

import psutil
import torch


def reason(error: BaseException) -> str:
    """Return the message of `error`, preceded by its type unless it is a ValueError or OSError.

    Ours of these types are sentences for users; any other type is a bug or comes from a library, and its name helps.
    """
    text = str(error) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


@contextlib.contextmanager
def memory_explained(
    what: str, device: torch.device, size: Callable[[], int] | None = None, advice: str = ""
) -> Iterator[None]:
    """RuntimeError where `device` has too little memory for `what`, with `advice` or else what to lower; `size` gives
    its bytes."""
    try:
        yield
    except Exception as e:
        if not is_out_of_memory(e):
            raise
        takes = f", which takes {size() / 1e9:.1f} GB" if size else ""
        smaller = "switch prior.low_memory on, set prior.precision to 'fp16', " if device.type != "cpu" else ""
        usual = (
            f"Lower camera.views, {smaller}close what else uses that memory, or take a smaller prior.path, such as "
            "'toybox'"
        )
        raise RuntimeError(
            f"out of memory: {what}{takes}, is too much for the {_free_memory(device)}. {advice or usual}"
        ) from e


def is_out_of_memory(e: BaseException) -> bool:
    """Whether `e` says that memory did not suffice."""
    # torch has a type of its own for this on a GPU, and only words on a processor
    return isinstance(e, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(e)


def _free_memory(device: torch.device) -> str:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(device)
        return f"{free / 1e9:.1f} GB that are free of the graphics card's {total / 1e9:.1f} GB"
    memory = psutil.virtual_memory()
    return f"{memory.available / 1e9:.1f} GB that are free of the computer's {memory.total / 1e9:.1f} GB"


def give_back() -> bool:
    """Hand freed memory back to the system, which Linux' usual allocator (glibc) would keep for this process; whether
    there was any."""
    return bool(_trim()(0))


@functools.cache
def _trim() -> Callable[[int], int]:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (TypeError, OSError, AttributeError):  # another system, or another allocator, which sees to it itself
        return lambda _: 0
