"""Turn command-line options into the inputs of a run: settings, a plan of changes, a device."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdlab.console import mute_torch, say
from sdlab.machine import has_nvidia_gpu

if TYPE_CHECKING:
    import torch

    from sdlab.settings import Settings

DEFAULT_PRESET = "gallery"  # of the page, and of the commands that take --preset
NETWORK_PRESET = "toybox"  # what a network given without a preset starts from
PATHS = ("prior.path", "scene.file", "scene.picture", "scene.shap_e")  # knobs that name files or folders

Plan = list[tuple[int, list[tuple[str, Any]]]]  # [(steps done, [(knob, value), ...]), ...]


def settings_for(preset: str, assignments: Sequence[str], **named: Any) -> Settings:
    """Return the settings of a preset or a TOML file, with assignments such as "losses.sds.cfg=20" applied.

    `named` holds further knobs, `__` standing for the dot of a path; None leaves a knob alone. Raises ValueError that
    names what is wrong.
    """
    from sdlab.knobs import parse
    from sdlab.settings import from_toml
    from sdlab.settings import preset as by_name

    s = from_toml(text_of(Path(preset)), preset) if is_settings_file(preset) else by_name(preset)
    changes: list[tuple[str, Any]] = []
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r}: expected PATH=VALUE, such as losses.sds.cfg=20")
        changes.append((path.strip(), parse(s.knob(path.strip()), value)))
    changes += [(path.replace("__", "."), value) for path, value in named.items() if value is not None]
    s = s.patch_all(changes)
    knobs = s.knobs()
    if named.get("prior__path") is not None and "prior.source" in knobs and knobs["prior.source"].value == "toybox":
        raise ValueError(
            f"--prior {named['prior__path']}: the prior of {preset} draws the toybox's images and reads no files; add "
            f"--set prior.source=folder or prior.source=mesh, or use a preset with a network, such as {NETWORK_PRESET}"
        )
    _check_paths(paths_in(s))
    return s


def is_settings_file(preset: str) -> bool:
    """Return whether `preset` is the path of a TOML file, rather than the name of a preset."""
    from sdlab.settings import preset_names

    return preset not in preset_names() and preset.lower().endswith(".toml")


def text_of(file: Path) -> str:
    """Return the text of a settings file; ValueError that names the file if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8-sig")  # Windows editors begin a file with a byte order mark
    except UnicodeDecodeError as e:
        raise ValueError(f"{file} is not encoded in UTF-8: save it as UTF-8 ({e.reason} at byte {e.start})") from e
    except (OSError, ValueError) as e:
        raise ValueError(f"{file} cannot be read ({getattr(e, 'strerror', None) or e})") from e


def paths_in(s: Settings) -> list[tuple[str, str]]:
    """Return the knobs whose value may be a path, with their values, except empty ones."""
    knobs = s.knobs()
    return [(path, knobs[path].value) for path in PATHS if path in knobs and knobs[path].value]


def _check_paths(knobs: Iterable[tuple[str, Any]]) -> None:
    """Raise ValueError, naming the knob, if no file could have the name that a knob gives. Whether there is one is left
    to those who read it: it may be a model on the Hub, too."""
    for path, value in knobs:
        try:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
                Path(value).expanduser().stat()
        except (OSError, ValueError, RuntimeError) as e:
            why = getattr(e, "strerror", None) or e
            raise ValueError(f"{path} = {_shortened(value)} is no possible path: {why}") from e


def _shortened(value: str) -> str:
    return repr(value if len(value) <= 60 else f"{value[:57]}...")


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
        if not re.fullmatch("[0-9]{1,9}", number) or not equals:
            raise ValueError(f"--at {number} {text!r}: expected STEP PATH=VALUE, such as 200 active=vdm")
        steps.setdefault(int(number), []).append((path.strip(), parse(s.knob(path.strip()), value)))
    plan = sorted(steps.items())
    for number, changes in plan:
        if number >= s.planned_end:
            raise ValueError(
                f"--at {number}: the run ends at step {s.planned_end}; allowed are 0 to {s.planned_end - 1}"
            )
        s = s.patch_all(changes)
        _check_paths(change for change in changes if change[0] in PATHS)
    return plan


def planned_end(s: Settings, plan: Plan, done: int = 0) -> int:
    """Return the step at which a run ends that has settings `s` after `done` steps, and the rest of `plan` before it.

    A change of steps or schedule.start moves the end.
    """
    for number, changes in sorted(plan, key=lambda entry: entry[0]):
        if done <= number < s.planned_end:
            with contextlib.suppress(ValueError):  # the run will refuse it, too
                s = s.patch_all(changes)
    return s.planned_end


def unused_gpu() -> str:
    """Return why torch does not use the NVIDIA GPU of this machine and what to do, "" if there is none."""
    import torch

    if not has_nvidia_gpu():
        return ""
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} was installed without CUDA; install it as docs/deploy.md says"
    else:
        why = f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}; update NVIDIA's driver"
    return f"this machine has an NVIDIA GPU, but runs on the CPU: {why}, or give --device cpu"


def choose_device(name: str) -> torch.device:
    """Return the torch device named 'cpu', 'cuda', 'cuda:1' or 'auto'. Raises ValueError if this machine has none."""
    import torch

    mute_torch()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        unused = unused_gpu() if name == "cpu" else ""
        if unused:
            say(unused)
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", name) is None:
        raise ValueError(f"--device {name}: expected auto, cpu, cuda, or cuda:N such as cuda:1")
    device, count = torch.device(name), torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device{'s' * (count > 1)}, numbered from cuda:0" if count else "no CUDA device; use cpu"
        raise ValueError(f"--device {name}: torch finds {found}")
    return device
