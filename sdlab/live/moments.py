"""A moment of a run: everything needed to continue from there bit for bit, in the computer's memory.

A checkpoint is a moment on disk. Rolling back a failed patch, jumping on the timeline and branching start from a
moment. Moments never change, so threads and moments may share their tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdlab.live.tape import Place
from sdlab.settings import Settings
from sdlab.transfer import download


@dataclass(frozen=True, eq=False)
class Moment:
    """A run after `step` steps. `parts` are nested dicts of tensors and JSON values, as in a checkpoint."""

    step: int
    settings: Settings  # as requested, including knobs that wait for a reset
    begun: Settings  # as of the last reset
    parts: Mapping[str, Any]
    place: Place | None = None  # on the tape; None for a checkpoint's


def held(parts: Mapping[str, Any], like: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return `parts`, whose tensors are copies already, on the CPU. Equal tensors are taken from `like`, so that what
    stays the same between two moments takes memory once."""
    copies = iter(download(list(_tensors(parts))))
    return _held(parts, like, copies)


def _held(parts: Mapping[str, Any], like: Mapping[str, Any] | None, copies: Iterator[Tensor]) -> dict[str, Any]:
    """As `held`; `copies` are the tensors on the CPU, in the order of `_tensors`."""
    kept: dict[str, Any] = {}
    for key, value in parts.items():
        known = like.get(key) if like is not None else None
        if isinstance(value, Mapping):
            kept[key] = _held(value, known if isinstance(known, Mapping) else None, copies)
        elif isinstance(value, Tensor):
            value = next(copies)
            kept[key] = known if isinstance(known, Tensor) and _same(known, value) else value
        else:
            kept[key] = value
    return kept


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def bytes_of(moments: Iterable[Moment]) -> int:
    """Return the bytes of the tensors of `moments`, counting shared ones once."""
    return sum({id(t): t.nbytes for moment in moments for t in _tensors(moment.parts)}.values())


def _tensors(node: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in node.values():
        if isinstance(value, Mapping):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
