"""Read the tables of a PLY file: any element, property, type and encoding.

The format: Greg Turk, The PLY Polygon File Format (1994). A file is not trusted: nothing is allocated for rows that it
only claims to have.
"""

from __future__ import annotations

import re
import struct
from typing import Any, Literal, NamedTuple

import numpy as np

Order = Literal["<", ">", "="]
TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"},
    **{"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"},
}
ORDERS: dict[str, Order] = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": "="}
PACKED = tuple(f"packed_{name}" for name in ("position", "rotation", "scale", "color"))
MAX_HEADER = 1_000_000  # bytes
MAX_PROPERTIES = 1000  # of an element


class Lists(NamedTuple):
    """The values of a list property; row i has flat[begins[i] : begins[i + 1]]."""

    flat: np.ndarray  # [K]
    begins: np.ndarray  # [n + 1] int64


class Table(NamedTuple):
    """An element: its scalar properties as columns [n], with the declared types, and its list properties."""

    columns: dict[str, np.ndarray]
    types: dict[str, np.dtype]
    lists: dict[str, Lists]
    count: int


class Ply(NamedTuple):
    """The content of a file."""

    comments: tuple[str, ...]
    tables: dict[str, Table]  # by element


class _Property(NamedTuple):
    name: str
    type: np.dtype
    counts: np.dtype | None  # type of a list's length, None for a scalar


class _Element(NamedTuple):
    name: str
    count: int
    properties: tuple[_Property, ...]


def read(raw: bytes) -> Ply:
    """Parse a file. Raises ValueError with what is wrong, to be put into a sentence."""
    lines, at = _header(raw)
    order, comments, elements = _declared(lines)
    tables: dict[str, Table] = {}
    data: Any = raw
    if order == "=":
        data, at = _numbers(raw[at:]).view(np.uint8).data, 0
    for element in elements:
        if order == "=":
            table, at = _rows(data, at, _all_doubles(element), order)
            tables[element.name] = _as_declared(table, element)
        else:
            tables[element.name], at = _rows(data, at, element, order)
    return Ply(comments, tables)


def is_packed(file: Ply) -> bool:
    """Return whether a file is SuperSplat's compressed PLY, which holds Gaussians."""
    vertex = file.tables.get("vertex")
    return vertex is not None and "chunk" in file.tables and set(PACKED) <= vertex.columns.keys()


# ---- the header ---------------------------------------------------------------------------------------------------


def _header(raw: bytes) -> tuple[list[str], int]:
    """Return the lines between "ply" and "end_header", and where the data begin."""
    newline = rb"\r\n" if raw.startswith(b"ply\r\n") else rb"\r" if raw.startswith(b"ply\r") else rb"\r?\n"
    end = re.compile(rb"(?:\r|\n)end_header[ \t]*" + newline).search(raw, 0, MAX_HEADER)
    if end is None:
        raise ValueError("its header has no end")
    return re.split(r"[\r\n]+", raw[: end.start()].decode("utf-8", "replace"))[1:], end.end()


def _declared(lines: list[str]) -> tuple[Order, tuple[str, ...], list[_Element]]:
    """Return the byte order ("=" for ASCII), the comments and the elements that a header declares."""
    order, comments = None, []
    elements: list[_Element] = []
    for line in lines:
        keyword, _, rest = line.strip().partition(" ")
        words = rest.split()
        if keyword == "format" and words and words[0] in ORDERS:
            order = ORDERS[words[0]]
        elif keyword in ("comment", "obj_info"):
            comments.append(rest.strip())
        elif keyword == "element" and len(words) == 2 and words[1].isdecimal():
            elements.append(_Element(words[0], int(words[1]), ()))
        elif keyword == "property" and elements:
            last = elements[-1]
            elements[-1] = last._replace(properties=(*last.properties, _property(words, line)))
        elif keyword:
            raise ValueError(f"its header has the line {line[:60]!r}")
    if order is None:
        raise ValueError("its header names no known encoding")
    if any(len(e.properties) > MAX_PROPERTIES for e in elements):
        raise ValueError(f"an element has more than {MAX_PROPERTIES} properties")
    return order, tuple(comments), elements


def _property(words: list[str], line: str) -> _Property:
    """Parse "TYPE NAME" or "list TYPE TYPE NAME"."""
    if len(words) == 2 and words[0] in TYPES:
        return _Property(words[1], np.dtype(TYPES[words[0]]), None)
    if len(words) == 4 and words[0] == "list" and TYPES.get(words[1], "f")[0] in "iu" and words[2] in TYPES:
        return _Property(words[3], np.dtype(TYPES[words[2]]), np.dtype(TYPES[words[1]]))
    raise ValueError(f"its header has the line {line[:60]!r}")


def _table(element: _Element, scalars: dict[str, np.ndarray], lists: dict[str, Lists]) -> Table:
    return Table(scalars, {p.name: p.type for p in element.properties if p.counts is None}, lists, element.count)


def _missing(element: _Element) -> ValueError:
    return ValueError(f"it ends before the last of its {element.count:,} rows of {element.name!r}")


# ---- the rows -----------------------------------------------------------------------------------------------------


def _rows(data: Any, at: int, element: _Element, order: Order) -> tuple[Table, int]:
    """Read the rows at byte `at`; return them and where they end."""
    if not element.properties:
        return _table(element, {}, {}), at
    lengths = _first_lengths(data, at, element, order) if element.count else [0] * len(element.properties)
    layout = _layout(element, order, lengths)
    end = at + layout.itemsize * element.count
    if end <= len(data):
        rows = np.frombuffer(data, layout, element.count, at)
        counted = [i for i, p in enumerate(element.properties) if p.counts is not None]
        if all((rows[f"n{i}"] == lengths[i]).all() for i in counted):
            scalars = {p.name: rows[f"v{i}"] for i, p in enumerate(element.properties) if p.counts is None}
            lists = {element.properties[i].name: _even(rows[f"v{i}"], lengths[i], element.count) for i in counted}
            return _table(element, scalars, lists), end
    elif all(p.counts is None for p in element.properties):
        raise _missing(element)
    return _uneven(data, at, element, order)


def _layout(element: _Element, order: Order, lengths: list[int]) -> np.dtype:
    """Return the type of a row whose lists have these lengths."""
    fields: list[Any] = []
    for i, p in enumerate(element.properties):
        if p.counts is None:
            fields.append((f"v{i}", p.type.newbyteorder(order)))
        else:
            fields.append((f"n{i}", p.counts.newbyteorder(order)))
            fields.append((f"v{i}", p.type.newbyteorder(order), (lengths[i],)))
    return np.dtype(fields)


def _first_lengths(data: Any, at: int, element: _Element, order: Order) -> list[int]:
    """Return the lengths of the lists in the first row; 0 for scalars."""
    lengths = []
    for p in element.properties:
        length = 0
        if p.counts is None:
            at += p.type.itemsize
        else:
            length = _length(data, at, struct.Struct(order + p.counts.char), element)
            at += p.counts.itemsize + length * p.type.itemsize
        lengths.append(length)
    return lengths


def _length(data: Any, at: int, count: struct.Struct, element: _Element) -> int:
    """Return the length of the list at byte `at`."""
    if at + count.size > len(data):
        raise _missing(element)
    length = count.unpack_from(data, at)[0]
    if not 0 <= length <= len(data) - at:  # nor for NaN
        raise _missing(element)
    return int(length)


def _even(values: np.ndarray, length: int, count: int) -> Lists:
    """Return lists [count, length] of one length."""
    return Lists(values.reshape(-1), np.arange(count + 1, dtype=np.int64) * length)


def _uneven(data: Any, at: int, element: _Element, order: Order) -> tuple[Table, int]:
    """Read rows with lists of different lengths, one by one."""
    if element.count > len(data) - at:  # each row has a byte at least
        raise _missing(element)
    counts = [None if p.counts is None else struct.Struct(order + p.counts.char) for p in element.properties]
    places: list[list[int]] = [[] for _ in element.properties]
    lengths: list[list[int]] = [[] for _ in element.properties]
    for _ in range(element.count):
        for i, p in enumerate(element.properties):
            length, count = 1, counts[i]
            if count is not None:
                length = _length(data, at, count, element)
                at += count.size
            places[i].append(at)
            lengths[i].append(length)
            at += length * p.type.itemsize
        if at > len(data):
            raise _missing(element)
    scalars, lists = {}, {}
    for p, begin, length in zip(element.properties, places, lengths, strict=True):
        found = _gathered(data, np.array(begin, np.int64), np.array(length, np.int64), p.type.newbyteorder(order))
        if p.counts is None:
            scalars[p.name] = found.flat
        else:
            lists[p.name] = found
    return _table(element, scalars, lists), at


def _gathered(data: Any, places: np.ndarray, lengths: np.ndarray, kind: np.dtype) -> Lists:
    """Return the values that begin at bytes `places` [n], `lengths` [n] of them each."""
    begins = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    within = np.arange(begins[-1]) - np.repeat(begins[:-1], lengths)
    starts = np.repeat(places, lengths) + within * kind.itemsize
    packed = np.frombuffer(data, np.uint8)[starts[:, None] + np.arange(kind.itemsize)]
    return Lists(np.ascontiguousarray(packed).view(kind)[:, 0], begins)


# ---- ASCII: read as one array of doubles --------------------------------------------------------------------------


def _numbers(text: bytes) -> np.ndarray:
    """Return all numbers of a text as float64, which holds every integer type of PLY."""
    if b"\x00" in text:
        raise ValueError("it is declared as text, but its data are not")
    return np.fromstring(text, sep=" ")  # pyright: ignore[reportCallIssue, reportArgumentType]


def _all_doubles(element: _Element) -> _Element:
    double = np.dtype("f8")
    properties = (p._replace(type=double, counts=p.counts and double) for p in element.properties)
    return element._replace(properties=tuple(properties))


def _as_declared(table: Table, element: _Element) -> Table:
    """Return integers in their type, and floats as they are: text may have more digits than its type."""

    def cast(values: np.ndarray, kind: np.dtype) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return values if kind.kind == "f" else values.astype(np.int64).astype(kind)

    types = {p.name: p.type for p in element.properties}
    return table._replace(
        columns={name: cast(values, types[name]) for name, values in table.columns.items()},
        types={name: types[name] for name in table.types},
        lists={name: Lists(cast(found.flat, types[name]), found.begins) for name, found in table.lists.items()},
    )
