"""Parse files that are not trusted in processes of their own, with limits on time and memory.

`parsed(function, raw, ...)` calls a function of this package in a child process, with the bytes of a file, and returns
its result: plain arrays, numbers and texts (`sdlab.parsing.wire`), never pickles. A file that takes too long, needs too
much memory or crashes its parser costs only that child, and is refused in one sentence. Several files are parsed at
once. A child that has stayed small is used again; an idle one ends.

The parent measures time and memory every `TICK` and ends a child beyond its limits, on every system. On Linux the
kernel limits memory as well (RLIMIT_AS), so that one allocation cannot get far ahead of the measurement; on macOS and
Windows the measurement is all there is. A child whose parent was killed reads the end of its input, or runs into
RLIMIT_CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from typing import Any

from sdlab.parsing.children import CHILDREN, Limits, Request

OWN = Limits(120.0, 6_000_000_000)  # for files that the user of this machine names
VISITOR = Limits(1.8, 360_000_000, 400_000_000)  # for files that visitors of a public server upload


def parsed(
    function: Callable[..., Any],
    raw: bytes,
    *args: Any,
    given: str,
    kinds: Collection[type] = (),
    needs: Collection[str] = (),
    limits: Limits = OWN,
) -> Any:
    """Return `function(raw, *args)`, called in a child process; `args` must be JSON.

    `kinds` are the NamedTuples that may occur in the result, `needs` modules that the function imports late (importing
    them does not count as parsing). Its UserWarnings are given here. Raises its ValueErrors, and a ValueError that
    starts with `given` for a file that exceeds `limits`, crashes the child, or raises any other error.
    """
    target = f"{function.__module__}:{function.__qualname__}"
    reply = CHILDREN.ask(Request(target, args, tuple(needs), raw), kinds, limits)
    for text in reply.warnings:
        warnings.warn(text, stacklevel=3)
    if reply.message:
        raise ValueError(reply.message)
    if reply.failure:
        raise ValueError(f"{given} {reply.failure}".lstrip())
    return reply.result


def stand_by(count: int) -> None:
    """Keep `count` processes ready to parse any kind of file, from now until `close`."""
    CHILDREN.stand_by(count, ("trimesh", "PIL.Image", "sdlab.starts.clouds", "sdlab.folders"))


def close() -> None:
    """End all processes that parse files."""
    CHILDREN.close()
