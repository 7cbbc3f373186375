"""Errors of libraries, quoted in one line. Free of torch: processes that parse files import it."""

from __future__ import annotations


def first_line(error: BaseException, width: int = 300) -> str:
    """Return the first line of the message of `error` (its type if empty), at most `width` characters.

    For quoting a library's error, which may continue with a trace, in a one-line message.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:width]
