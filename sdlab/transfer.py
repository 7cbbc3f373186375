"""Copies between the computer's memory and a GPU for which nobody waits, or everybody once.

A copy from pageable memory to a GPU waits for all work before it, and so does every number that is read back: a step
that reads ten numbers leaves the GPU idle ten times. On a CPU nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

TOGETHER = 1 << 16  # bytes up to which a tensor is gathered with others before it is copied
GATHERED = 1 << 26  # bytes gathered at a time, which takes as much memory of the GPU


def upload(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on `device`; from the computer's memory to a GPU without waiting."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_numpy(x: Tensor) -> Any:
    """Return a float32 copy in the computer's memory, as an array."""
    return x.detach().float().cpu().clone().numpy()


def numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the 0-d `values` as numbers, read all at once."""
    if not values:
        return {}
    return dict(zip(values, torch.stack([v.double() for v in values.values()]).tolist(), strict=True))


def download(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return `tensors` in the computer's memory, those that are there as they are. Small ones are copied together."""
    found = list(tensors)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, x in enumerate(tensors):
        if x.device.type == "cuda" and x.nbytes <= TOGETHER:
            groups.setdefault((x.device, x.dtype), []).append(i)
        else:
            found[i] = x.cpu()
    for group in groups.values():
        while group:
            part, group = _up_to(group, tensors)
            joined = torch.cat([tensors[i].flatten() for i in part]).cpu()
            pieces = joined.split([tensors[i].numel() for i in part])
            for i, piece in zip(part, pieces, strict=True):
                found[i] = piece.clone().view(tensors[i].shape)  # memory of its own, which is freed when it goes
    return found


def _up_to(group: list[int], tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Split `group` after the tensors that are gathered at once."""
    size = 0
    for n, i in enumerate(group):
        size += tensors[i].nbytes
        if size > GATHERED and n:
            return group[:n], group[n:]
    return group, []


class Soon:
    """A number on its way from a GPU; it can be asked whether it has arrived."""

    def __init__(self, x: Tensor) -> None:
        """Send for the 0-d `x`."""
        self._arrived: torch.cuda.Event | None = None
        self._value = x.detach()
        if x.device.type == "cuda":
            self._value = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
            self._value.copy_(x.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(x.device))

    def is_here(self) -> bool:
        """Return whether reading it costs no wait."""
        return self._arrived is None or self._arrived.query()

    def value(self) -> float:
        """Return the number; wait for it if it has not arrived."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return float(self._value)
