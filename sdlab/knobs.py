"""Knobs: dataclass fields with the metadata that forms, command lines and error messages need.

A frozen dataclass of knobs defines a part of the configuration, its file format and its form. `apply` says when a
change takes effect:
  live     at the next step;
  rebuild  at the next step, after whatever depends on the knob (an auxiliary model, a prior) has been rebuilt;
  restart  at the next reset, because the knob describes the start of a run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

MOST_SHOWN = 60  # characters of a value that a message quotes

Apply = Literal["live", "rebuild", "restart"]
K = TypeVar("K")
V = TypeVar("V")


def knob(
    default: Any,
    lo: float | int | None = None,
    hi: float | int | None = None,
    help: str = "",
    apply: Apply = "live",
    choices: tuple[str, ...] | None = None,
    log: bool = False,
) -> Any:
    """Declare a dataclass field as a knob with a range [lo, hi] or `choices`, a help text and when a change applies.

    For a string, `hi` is the maximum number of characters. `log` requests a logarithmic slider.
    """
    meta = {"lo": lo, "hi": hi, "help": help, "apply": apply, "choices": choices, "log": log}
    return dataclasses.field(default=default, metadata=meta)


class Knob(typing.NamedTuple):
    """One knob with its current value; `path` is dotted, as in `losses.sds.cfg`."""

    path: str
    type: type
    value: Any
    lo: float | int | None
    hi: float | int | None
    help: str
    apply: Apply
    choices: tuple[str, ...] | None
    log: bool


_field_types = functools.cache(typing.get_type_hints)


def knobs_of(group: Any, prefix: str) -> list[Knob]:
    """Return the knobs of one dataclass instance in order of declaration, with paths below `prefix`."""
    types = _field_types(type(group))
    dot = f"{prefix}." if prefix else ""
    return [
        Knob(dot + f.name, types[f.name], getattr(group, f.name), **f.metadata)
        for f in dataclasses.fields(group)
        if "apply" in f.metadata
    ]


def allowed(k: Knob) -> str:
    """Describe the allowed values of a knob in words."""
    if k.choices:
        return "one of " + ", ".join(repr(c) for c in k.choices)
    if k.type is bool:
        return "true or false"
    if k.type is str:
        return f"a text of at most {int(k.hi)} characters" if k.hi is not None else "a text"
    kind = "a whole number" if k.type is int else "a number"
    if k.lo is not None and k.hi is not None:
        return f"{kind} from {_plain(k.lo)} to {_plain(k.hi)}"
    if k.lo is not None:
        return f"{kind} of at least {_plain(k.lo)}"
    if k.hi is not None:
        return f"{kind} of at most {_plain(k.hi)}"
    return kind


def _plain(number: float | int) -> str:
    return str(int(number)) if number == int(number) else f"{number:g}"


def shown(value: Any) -> str:
    """Return a value that a user gave as messages quote it, a long one cut."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}... ({len(str(value))} characters)"


def check(k: Knob, value: Any) -> Any:
    """Return `value` as the knob's type; ValueError names the knob, the value and what is allowed."""
    problem = ValueError(f"{k.path} = {shown(value)}: must be {allowed(k)} ({k.help})")
    if k.type is bool:
        if not isinstance(value, bool):
            raise problem
        return value
    if k.type is str:
        too_long = isinstance(value, str) and k.hi is not None and len(value) > k.hi
        if not isinstance(value, str) or too_long or (k.choices and value not in k.choices):
            raise problem
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as e:  # a lone surrogate: no file of settings could hold it
            raise ValueError(f"{k.path} = {shown(value)}: this text is not valid Unicode ({k.help})") from e
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise problem
    if (k.lo is not None and value < k.lo) or (k.hi is not None and value > k.hi):
        raise problem
    try:
        if not math.isfinite(value) or (k.type is int and value != int(value)):
            raise problem
        return k.type(value)
    except OverflowError as e:  # an int beyond the range of float
        raise problem from e


def parse(k: Knob, text: str) -> Any:
    """Parse a command-line argument as the value of a knob; ValueError as in `check`."""
    if k.type is str:
        return check(k, text)
    if k.type is bool:
        return check(k, {"true": True, "false": False}.get(text.strip().lower(), text))
    number = _number(text)
    return check(k, text if number is None else number)


def _number(text: str) -> int | float | None:
    """Return the number that a text is, None if it is none; a large whole one exactly, which a float would round."""
    with contextlib.suppress(ValueError):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return int(number) if number.is_integer() else number


def path_hint(given: str) -> str:
    """Return what to change about `given`, which names no file, if it has quotes or blanks around it; else ""."""
    bare = given.strip().strip("'\"").strip()
    return f"; without the quotes or blanks around it, it is {shown(bare)}" if bare not in ("", given) else ""


def read_file(path: Path, limit: int, given: str) -> bytes:
    """Read a file that a user named; ValueError, starting with `given`, if unreadable or longer than `limit` bytes."""
    try:
        path = path.expanduser()
        size = path.stat().st_size
        raw = path.read_bytes() if size <= limit else b""
    except OSError as e:
        raise ValueError(f"{given} cannot be read: {e.strerror or e}{path_hint(str(path))}") from e
    except (RuntimeError, ValueError) as e:  # the home of an unknown user; a null character
        raise ValueError(f"{given} is no path: {e}") from e
    if size > limit:
        raise ValueError(f"{given} has {size:,} bytes; the limit is {limit:,}")
    return raw


class FrozenDict(Mapping[K, V], Generic[K, V]):
    """An immutable mapping that can be hashed, compared and pickled."""

    def __init__(self, items: Mapping[K, V] | None = None) -> None:
        self._items: dict[K, V] = dict(items or {})

    def __getitem__(self, key: K) -> V:
        return self._items[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FrozenDict) and self._items == other._items

    def __repr__(self) -> str:
        return f"FrozenDict({self._items!r})"

    def replace(self, key: K, value: V) -> FrozenDict[K, V]:
        """Return a copy with one entry set."""
        return FrozenDict({**self._items, key: value})
