"""Errors in words. Free of torch: processes that parse files, and the command line, import it."""

from __future__ import annotations


def reason(error: BaseException) -> str:
    """Return the message of `error`, preceded by its type unless it is a ValueError or OSError.

    Our own errors of these two types are written for users; any other is a bug or a library's, and its type helps.
    """
    text = str(error) or type(error).__name__
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


def first_line(error: BaseException, width: int = 300) -> str:
    """Return the first line of the message of `error` (its type if empty), at most `width` characters.

    For quoting a library's error, which may continue with a trace, in a one-line message.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:width]
