"""Knobs: dataclass fields that carry what a form, a command line and an error message need to know.

A frozen dataclass of knobs is at once the configuration, the file format and the form. `apply` says when a change
takes effect:
  live     at the next step;
  rebuild  at the next step, after something that depends on it was built anew (an auxiliary model, a prior);
  restart  at the next reset, because it describes how a run begins.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Literal, TypeVar

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
    """A dataclass field with a range [lo, hi] or `choices`, a help text and the moment at which a change applies.

    For a string, `hi` is the greatest number of characters. `log` asks for a logarithmic slider.
    """
    meta = {"lo": lo, "hi": hi, "help": help, "apply": apply, "choices": choices, "log": log}
    return dataclasses.field(default=default, metadata=meta)


class Knob(typing.NamedTuple):
    """A knob as the outside sees it: `path` is dotted, as in `losses.sds.cfg`."""

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
    """Every knob of one dataclass instance, in order of declaration, with paths below `prefix`."""
    types = _field_types(type(group))
    found = []
    for f in dataclasses.fields(group):
        if "apply" in f.metadata:
            m = f.metadata
            value = getattr(group, f.name)
            path = f"{prefix}.{f.name}" if prefix else f.name
            found.append(
                Knob(
                    path,
                    types[f.name],
                    value,
                    m["lo"],
                    m["hi"],
                    m["help"],
                    m["apply"],
                    m["choices"],
                    m["log"],
                )
            )
    return found


def allowed(k: Knob) -> str:
    """What may be given for a knob, in words."""
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


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}... ({len(str(value))} characters)"


def check(k: Knob, value: Any) -> Any:
    """`value` as the knob's type, or ValueError that names the knob, what was given and what is allowed."""
    problem = ValueError(f"{k.path} = {_shown(value)}: allowed is {allowed(k)} ({k.help})")
    if k.type is bool:
        if not isinstance(value, bool):
            raise problem
        return value
    if k.type is str:
        too_long = isinstance(value, str) and k.hi is not None and len(value) > k.hi
        if not isinstance(value, str) or too_long or (k.choices and value not in k.choices):
            raise problem
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise problem
    if (k.lo is not None and value < k.lo) or (k.hi is not None and value > k.hi):
        raise problem
    try:
        if not math.isfinite(value) or (k.type is int and value != int(value)):
            raise problem
        return k.type(value)
    except OverflowError as e:  # a whole number that no float can hold
        raise problem from e


def parse(k: Knob, text: str) -> Any:
    """The value that a command-line `text` means for a knob; ValueError as `check`."""
    if k.type is str:
        return check(k, text)
    if k.type is bool:
        return check(k, {"true": True, "false": False}.get(text.strip().lower(), text))
    try:
        number = float(text)
    except ValueError:
        return check(k, text)
    return check(k, int(number) if number.is_integer() else number)


class FrozenDict(Mapping[K, V], Generic[K, V]):
    """A mapping that can be hashed, compared and pickled."""

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
        """A copy with one entry set."""
        return FrozenDict({**self._items, key: value})
