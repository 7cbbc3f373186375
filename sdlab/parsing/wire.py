"""What parent and child of `sdlab.parsing` send each other: a line of JSON, and after it bytes or arrays.

A result is a tree of tuples, NamedTuples, lists, dicts with text keys, arrays of numbers, numbers, texts and None. The
parent reads it without running anything that the child names: a NamedTuple is one of the kinds that the caller expects,
and arrays are bytes of a known type and shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from io import BufferedIOBase
from typing import Any

import numpy as np

READY = {"ready": True}  # the child has its modules: parsing begins
MAX_LINE = 50_000_000  # bytes of JSON in a reply: names of files, captions, remarks
DTYPES = {np.dtype(name).str for name in ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")}


class Garbled(Exception):
    """A reply that no child of this version sends."""


@dataclass(frozen=True)
class Reply:
    """What came of a request: a result, a `message` for the user, or a `failure` that lacks the file's name."""

    result: Any = None
    message: str = ""
    failure: str = ""
    warnings: tuple[str, ...] = ()
    fit: bool = False  # for another file


def send(stream: BufferedIOBase, line: dict[str, Any], *blocks: Any) -> None:
    """Write one line of JSON and the bytes of `blocks`. Raises OSError when nobody reads them."""
    stream.write(json.dumps(line).encode() + b"\n")
    for block in blocks:
        stream.write(block)
    stream.flush()


def receive(stream: BufferedIOBase) -> dict[str, Any]:
    """Read one line of JSON. Raises EOFError at the end of the stream, Garbled for anything else."""
    line = stream.readline(MAX_LINE)
    if not line:
        raise EOFError
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise Garbled from e
    if not isinstance(found, dict):
        raise Garbled
    return found


def exactly(stream: BufferedIOBase, count: int) -> bytes:
    """Read `count` bytes; EOFError if there are fewer."""
    raw = stream.read(count)
    if len(raw) < count:
        raise EOFError
    return raw


# ---- results -------------------------------------------------------------------------------------------------------


def encode(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return a result as JSON; its arrays are appended to `arrays`. TypeError for what a result cannot hold."""
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value)
        if array.dtype.str not in DTYPES:
            raise TypeError(f"an array of {array.dtype}")
        arrays.append(array)
        return {"array": [array.dtype.str, *value.shape]}
    if isinstance(value, np.generic):
        return encode(value.item(), arrays)
    if isinstance(value, tuple | list):
        name = type(value).__name__ if isinstance(value, tuple) else ""
        return {name: [encode(v, arrays) for v in value]}
    if isinstance(value, dict):
        return {"dict": [list(value), [encode(v, arrays) for v in value.values()]]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__}")


class Decoder:
    """Reads a result from a stream, with arrays of at most `most` bytes together."""

    def __init__(self, stream: BufferedIOBase, kinds: Collection[type], most: int) -> None:
        self._stream = stream
        self._kinds = {kind.__name__: kind for kind in kinds}
        self._left = most

    def decode(self, coded: Any) -> Any:
        """Return the value; Garbled if it is none that `encode` returns, EOFError if arrays are cut short."""
        if not isinstance(coded, dict):
            if coded is None or isinstance(coded, bool | int | float | str):
                return coded
            raise Garbled
        if len(coded) != 1:
            raise Garbled
        name, content = next(iter(coded.items()))
        if not isinstance(content, list):
            raise Garbled
        if name == "array":
            return self._array(content)
        if name == "dict":
            return dict(self._pairs(content))
        values = [self.decode(v) for v in content]
        if name in ("", "tuple"):
            return values if name == "" else tuple(values)
        return self._kind(name, values)

    def _pairs(self, content: list[Any]) -> Iterator[tuple[str, Any]]:
        if len(content) != 2 or not all(isinstance(part, list) for part in content):
            raise Garbled
        names, values = content
        if len(names) != len(values) or not all(isinstance(name, str) for name in names):
            raise Garbled
        for name, value in zip(names, values, strict=True):
            yield name, self.decode(value)

    def _kind(self, name: str, values: list[Any]) -> Any:
        kind = self._kinds.get(name)
        if kind is None or len(values) != len(getattr(kind, "_fields", ())):
            raise Garbled
        return kind(*values)

    def _array(self, content: list[Any]) -> np.ndarray:
        dtype, *shape = content or [None]
        if (
            not isinstance(dtype, str)
            or dtype not in DTYPES
            or not all(type(side) is int and side >= 0 for side in shape)
        ):
            raise Garbled
        count = math.prod(shape) * np.dtype(dtype).itemsize
        if count > self._left:
            raise Garbled
        self._left -= count
        array = np.empty(shape, dtype)
        if count:
            self._fill(array.reshape(-1).view(np.uint8).data)
        return array

    def _fill(self, view: memoryview) -> None:
        while view:
            got = self._stream.readinto(view)
            if not got:
                raise EOFError
            view = view[got:]
