"""The console has the program's own words only: libraries' warnings, log lines and tracebacks stay out of it.

`say` and `tell` write to it. A command line calls `quieten` first. A server, whose libraries also print directly, runs
inside `own_words`, where everything else that is printed goes to a log file or nowhere.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from sdlab.quoting import reason

Stream = Any  # of text; typing.TextIO and what open() returns are unrelated types
PACKAGE = str(Path(__file__).parent)
VERBOSITY = ("TRANSFORMERS_VERBOSITY", "DIFFUSERS_VERBOSITY", "HF_HUB_VERBOSITY")  # of libraries with own handlers
FRAMEWORKS = frozenset(("uvicorn", "starlette", "fastapi", "gradio", "websockets", "asyncio"))
MOST_KINDS = 100  # of internal errors that are said


class Remark(UserWarning):
    """A warning of this program, for the user. Any other warning is a library's."""


class _Console:
    """The streams that `say` and `tell` write to; None for the present `sys.stdout` and `sys.stderr`."""

    out: Stream = None
    err: Stream = None


def tell(text: str) -> None:
    """Print a line on stdout."""
    _print(text, _Console.out or sys.stdout)


def say(text: str, who: str = "sdlab") -> None:
    """Print a line for the user on stderr, in the name of the program `who`."""
    _print(f"{who}: {text}", _Console.err or sys.stderr)


def _print(text: str, stream: Stream) -> None:
    if stream is not None:
        with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
            print(text, file=stream, flush=True)


def quieten() -> None:
    """Keep what libraries warn and log off the console, for the rest of the process. Remarks are said; so is, in one
    line and once for each kind, an error that a library catches and logs although it comes from this program."""
    for variable in VERBOSITY:
        os.environ.setdefault(variable, "critical")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    warnings.showwarning = _warned
    if not _is_quiet():
        logging.getLogger().addHandler(_Internal())  # without a handler, logging would fall back to stderr
    mute_torch()


def mute_torch() -> None:
    """Let what torch logs go where other libraries' lines go, once it has been imported, if the console is quiet: its
    loggers print them by handlers of their own. With TORCH_LOGS, which asks for them, they stay."""
    if not _is_quiet() or "TORCH_LOGS" in os.environ:
        return
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if name.partition(".")[0] == "torch" and isinstance(logger, logging.Logger):
            for handler in filter(_prints, list(logger.handlers)):
                logger.removeHandler(handler)
                logger.propagate = True


def _is_quiet() -> bool:
    return any(isinstance(handler, _Internal) for handler in logging.getLogger().handlers)


def _prints(handler: logging.Handler) -> bool:
    """Return whether a handler of torch's writes to the console; others write to files."""
    return type(handler) is logging.StreamHandler or getattr(handler, "stream", None) is sys.stderr


@contextlib.contextmanager
def own_words(log: Stream = None) -> Iterator[None]:
    """Within, `quieten`, and let only `say` and `tell` write to the console; all else that is printed or logged goes to
    `log`, or nowhere."""
    nowhere = open(os.devnull, "w", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed below
    sink = log or nowhere
    streams, hook = (sys.stdout, sys.stderr), threading.excepthook
    _Console.out, _Console.err = streams
    quieten()
    handler = logging.StreamHandler(sink)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    sys.stdout, sys.stderr, threading.excepthook = sink, sink, _thread_failed
    try:
        yield
    finally:
        (sys.stdout, sys.stderr), threading.excepthook = streams, hook
        _Console.out = _Console.err = None
        logging.getLogger().removeHandler(handler)
        nowhere.close()


def _warned(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any, **__: Any) -> None:
    if issubclass(category, Remark):
        say(str(message))
    else:
        logging.getLogger("warnings").warning("%s:%d: %s: %s", filename, lineno, category.__name__, message)


class _Internal(logging.Handler):
    """Says the first error of each kind whose traceback passes through this package; drops all else."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self._said: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        place = _place_in_package(error.__traceback__) if error is not None else ""
        kind = (type(error).__name__, place)
        if error is not None and place and kind not in self._said and len(self._said) < MOST_KINDS:
            self._said.add(kind)
            say(f"an internal error was caught ({place}: {reason(error)})")


def _place_in_package(trace: TracebackType | None) -> str:
    """Return file and line of this package's innermost call in a trace, or "" if a framework failed on its own: then
    its calls are inside this package's, if there are any."""
    place = ""
    for frame in traceback.extract_tb(trace):
        if frame.filename.startswith(PACKAGE):
            place = f"{Path(frame.filename).name}:{frame.lineno}"
        elif FRAMEWORKS.intersection(Path(frame.filename).parts):
            place = ""
    return place


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    name = args.thread.name if args.thread is not None else "a thread"
    if args.exc_value is not None and args.exc_type is not SystemExit:
        say(f"{name} has ended because of an internal error ({reason(args.exc_value)})")
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
