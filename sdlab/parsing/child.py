"""The child process of `sdlab.parsing`: reads requests on stdin, and answers on what was its stdout.

It imports numpy and what parsers need, never torch.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import time
import warnings
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from sdlab.parsing import wire
from sdlab.quoting import first_line

KEPT = 250_000_000  # bytes of memory up to which a child is used again
SLACK = 50_000_000  # bytes of address space that allocators reserve and do not use

try:
    import resource
except ImportError:  # Windows
    resource = None


def main() -> None:
    """Answer requests until the parent closes stdin."""
    questions, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1):  # a parser that reads or prints must not touch the pipes
        os.dup2(null, stream)
    with contextlib.suppress(EOFError, OSError):  # the parent has closed its end
        while serve(questions, answers):
            pass


def serve(questions: BufferedIOBase, answers: BufferedIOBase) -> bool:
    """Answer one request; return whether this process is fit for another."""
    request = wire.receive(questions)
    lift_limits()
    raw = wire.exactly(questions, request["bytes"])
    module, _, name = request["target"].partition(":")
    function = getattr(importlib.import_module(module), name)
    for needed in request["needs"]:
        importlib.import_module(needed)
    limit(request["seconds"], request["memory"])
    wire.send(answers, wire.READY)
    arrays: list[np.ndarray] = []
    line: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            line["result"] = wire.encode(function(raw, *request["args"]), arrays)
        except Exception as e:
            arrays = []
            line = refusal(e)
    line["warnings"] = [str(w.message) for w in said if w.category is UserWarning]
    line["fit"] = psutil.Process().memory_info().rss <= KEPT
    wire.send(answers, line, *(array.reshape(-1).view(np.uint8).data for array in arrays if array.size))
    return line["fit"]


def refusal(e: Exception) -> dict[str, Any]:
    """Return what the reply says of an error. Parsers turn any error into a ValueError, also that of a full memory."""
    cause: BaseException | None = e
    while cause is not None:
        if isinstance(cause, MemoryError):
            return {"out_of_memory": True}
        cause = cause.__cause__ or cause.__context__
    if isinstance(e, ValueError):
        return {"message": str(e)}
    return {"failure": f"cannot be read: {first_line(e, 200)}"}  # of a library, on content that nobody thought of


def limit(seconds: float, memory: int) -> None:
    """Let the system limit the rest of this process: CPU time, address space where it can, and no files written."""
    if resource is None:
        return
    sys.dont_write_bytecode = True  # modules imported from here on could not be written whole
    _limit(resource.RLIMIT_CPU, int(time.process_time() + seconds) + 2)
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time, to the millisecond; it ends the process
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_CORE, 0)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * os.sysconf("SC_PAGE_SIZE") + memory + SLACK)


def lift_limits() -> None:
    """Lift the limits of the previous file on time and memory, which do not hold for receiving the next."""
    if resource is not None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        _limit(resource.RLIMIT_CPU, None)
        _limit(resource.RLIMIT_AS, None)


def _limit(kind: int, value: int | None) -> None:
    """Set a soft limit, at most the hard one; None for the hard one."""
    assert resource is not None
    hard = resource.getrlimit(kind)[1]
    if value is None or (hard != resource.RLIM_INFINITY and value > hard):
        value = hard
    resource.setrlimit(kind, (value, hard))
