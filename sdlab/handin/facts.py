"""What the bits of a run depend on besides its settings, and the key with which this computer seals hand-ins."""

from __future__ import annotations

import contextlib
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sdlab import machine

KEY = "hand-in.key"  # in the cache folder
KEY_BYTES = 32
MATTERS = ("sdlab", "torch", "numpy", "numba", "openvino", "diffusers", "transformers", "gsplat")  # of the versions
ABOUT = ("device", "processor", "instructions", "cores", "batching")  # of the machine


def facts(device: torch.device, batching: bool = False) -> dict[str, Any]:
    """Return what to record of this computer: versions, device, processor and how its cores are used. With `batching`,
    pages share forward passes, and their bits depend on each other."""
    return {
        "versions": machine.versions(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": machine.n_cores(),
        "batching": batching,
    }


def differing(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Return in words what differs between two computers so that the bits of a run may."""
    pairs = [(name, _version(mine, name), _version(theirs, name)) for name in MATTERS]
    pairs += [(name, mine.get(name), theirs.get(name)) for name in ABOUT]
    found = [
        f"{name} {theirs or 'none'} there, {mine or 'none'} here" for name, mine, theirs in pairs if mine != theirs
    ]
    if mine.get("batching") and theirs.get("batching"):
        found.append("pages shared forward passes")
    return found


def _version(facts: Mapping[str, Any], name: str) -> Any:
    versions = facts.get("versions")
    return versions.get(name) if isinstance(versions, Mapping) else None


def _processor() -> str:
    """Return the model of the processor."""
    with contextlib.suppress(OSError, StopIteration):  # absent outside Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def key() -> bytes:
    """Return the key of this computer, made when it is first asked for; one for this process where it cannot be
    kept."""
    path = machine.cache_folder() / KEY
    with contextlib.suppress(OSError):
        found = path.read_bytes()
        if len(found) == KEY_BYTES:
            return found
    fresh = secrets.token_bytes(KEY_BYTES)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(fresh)
    return fresh
