"""Turn command-line options into the inputs of a run: settings, a plan of changes, a device."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from sdlab.settings import Settings

DEFAULT_PRESET = "gallery"  # of the page, and of the commands that take --preset
NETWORK_PRESET = "toybox"  # what a network given without a preset starts from

Plan = list[tuple[int, list[tuple[str, Any]]]]  # [(steps done, [(knob, value), ...]), ...]


def settings_for(preset: str, assignments: Sequence[str], **named: Any) -> Settings:
    """Return the settings of a preset or a TOML file, with assignments such as "losses.sds.cfg=20" applied.

    `named` holds further knobs, `__` standing for the dot of a path; None leaves a knob alone. Raises ValueError that
    names what is wrong.
    """
    from sdlab.knobs import parse
    from sdlab.settings import from_toml, preset_names
    from sdlab.settings import preset as by_name

    file = Path(preset)
    is_file = preset not in preset_names() and file.suffix == ".toml" and file.is_file()
    s = from_toml(file.read_text(encoding="utf-8"), preset) if is_file else by_name(preset)
    changes: list[tuple[str, Any]] = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected PATH=VALUE, such as losses.sds.cfg=20")
        changes.append((path.strip(), parse(s.knob(path.strip()), value)))
    changes += [(path.replace("__", "."), value) for path, value in named.items() if value is not None]
    return s.patch_all(changes)


def refuse_reserved(assignments: Sequence[str], reserved: Sequence[str]) -> None:
    """Raise ValueError if an assignment sets a knob that the command sets itself."""
    for text in assignments:
        if text.partition("=")[0].strip() in reserved:
            raise ValueError(f"--set {text!r}: this command sets {' and '.join(reserved)} itself")


def plan_for(s: Settings, given: Sequence[Sequence[str]]) -> Plan:
    """Return the plan that `--at STEP PATH=VALUE` options give a run that starts with the settings `s`.

    Raises ValueError that names what is wrong.
    """
    from sdlab.knobs import parse

    steps: dict[int, list[tuple[str, Any]]] = {}
    for number, text in given:
        path, equals, value = text.partition("=")
        if not number.isdigit() or not equals:
            raise ValueError(f"--at {number} {text!r}: expected STEP PATH=VALUE, such as 200 active=vdm")
        if int(number) >= s.steps:
            raise ValueError(f"--at {number}: the run has {s.steps} steps; allowed are 0 to {s.steps - 1}")
        steps.setdefault(int(number), []).append((path.strip(), parse(s.knob(path.strip()), value)))
    plan = sorted(steps.items())
    for _, changes in plan:
        s = s.patch_all(changes)
    return plan


def choose_device(name: str) -> torch.device:
    """Return the torch device named 'cpu', 'cuda', 'cuda:1' or 'auto'. Raises ValueError if this machine has none."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", name) is None:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda, or cuda:N such as cuda:1")
    device, count = torch.device(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device{'s' * (count > 1)}, numbered from cuda:0" if count else "no CUDA device; use cpu"
        raise ValueError(f"--device {name}: torch finds {found}")
    return device
