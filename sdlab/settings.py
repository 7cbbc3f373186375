"""The frozen tree of everything that can be set; patches by dotted path; TOML in and out.

Files hold only what differs from the defaults. A family member (prior, scene) is chosen by its `kind`; every loss
keeps its own knobs at all times, and `active` names the one in force, so that toggling back restores them.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import tomlkit

import sdlab.losses
import sdlab.priors
import sdlab.scenes
from sdlab.cameras import CameraSettings
from sdlab.guidance import GuidanceSettings
from sdlab.knobs import FrozenDict, Knob, check, knob, knobs_of
from sdlab.losses import Distillation
from sdlab.optim import OptimSettings
from sdlab.priors import PriorConfig
from sdlab.prompts import PromptSettings
from sdlab.scenes import SceneConfig
from sdlab.schedule import ScheduleSettings

PRESETS = Path(__file__).parents[1] / "presets"


T = TypeVar("T")


def family(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """kind -> class of every final member of a family: the folder is the registry.

    Raises RuntimeError naming the file that cannot be imported.
    """
    members: dict[str, type[T]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except Exception as e:
            where = f"{package.__name__.replace('.', '/')}/{info.name}.py"
            raise RuntimeError(f"{where} cannot be imported: {type(e).__name__}: {e}") from e
        for _, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base) and not inspect.isabstract(cls) and cls.__module__ == module.__name__:
                members[cls.kind] = cls  # pyright: ignore[reportAttributeAccessIssue]  # every base declares it
    return dict(sorted(members.items()))


@functools.cache
def losses() -> dict[str, type[Distillation]]:
    return family(sdlab.losses, Distillation)  # type: ignore[type-abstract]


@functools.cache
def priors() -> dict[str, type[PriorConfig]]:
    return family(sdlab.priors, PriorConfig)  # type: ignore[type-abstract]


@functools.cache
def scenes() -> dict[str, type[SceneConfig]]:
    return family(sdlab.scenes, SceneConfig)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run. Two equal trees give the same run."""

    active: str = knob("sds", help="the loss in force")
    steps: int = knob(800, 1, 1_000_000, "planned length of the run; schedules are fractions of it")
    seed: int = knob(0, 0, 2**31 - 1, "of every random draw", apply="restart")
    prompt: PromptSettings = field(default_factory=PromptSettings)
    camera: CameraSettings = field(default_factory=CameraSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    guidance: GuidanceSettings = field(default_factory=GuidanceSettings)
    optim: OptimSettings = field(default_factory=OptimSettings)
    prior: PriorConfig = field(default_factory=lambda: priors()["diffusers"]())
    scene: SceneConfig = field(default_factory=lambda: scenes()["splats"]())
    losses: FrozenDict[str, Distillation] = field(
        default_factory=lambda: FrozenDict({name: cls() for name, cls in losses().items()})
    )

    def __post_init__(self) -> None:
        if self.active not in self.losses:
            raise ValueError(f"active = {self.active!r}: allowed is one of {', '.join(sorted(self.losses))} (the loss)")

    @property
    def loss(self) -> Distillation:
        """The loss in force."""
        return self.losses[self.active]

    @property
    def perp_neg(self) -> bool:
        """Whether Perp-Neg is in force: without view words there is nothing to keep apart."""
        return self.guidance.perp_neg and self.prompt.view_dependent

    @property
    def planned_end(self) -> int:
        """The step at which the planned run is over."""
        return self.schedule.start + self.steps

    def progress(self, step: int) -> float:
        """Where `step` lies in the planned run, 0 at its beginning and 1 at its end; above 1 after it."""
        return max(step - self.schedule.start, 0) / self.steps

    def groups(self) -> dict[str, Any]:
        """Dotted prefix -> the dataclass whose knobs live there, in the order in which people read them."""
        plain = {
            name: getattr(self, name)
            for name in ("prompt", "camera", "schedule", "guidance", "optim", "prior", "scene")
        }
        return {"": self, **plain, **{f"losses.{name}": loss for name, loss in self.losses.items()}}

    def knobs(self) -> dict[str, Knob]:
        """Every knob by path."""
        return {k.path: k for prefix, group in self.groups().items() for k in knobs_of(group, prefix)}

    def knob(self, path: str) -> Knob:
        """One knob; ValueError with near misses when there is none of that path."""
        knobs = self.knobs()
        if path not in knobs:
            own = f"losses.{self.active}."
            same_name = sorted(
                (p for p in knobs if p.rpartition(".")[2] == path.rpartition(".")[2]),
                key=lambda p: p[: len(own)] != own,
            )
            near = difflib.get_close_matches(path, knobs, n=3, cutoff=0.4)
            hints = list(dict.fromkeys(same_name + near))[:3]
            hint = f"did you mean {' or '.join(hints)}?" if hints else "see `python -m sdlab list knobs`"
            raise ValueError(f"there is no knob {path!r}; {hint}")
        return knobs[path]

    def patch(self, path: str, value: Any) -> Settings:
        """A copy with one knob set; ValueError says what was given, what is allowed and which knob."""
        return self.patch_all([(path, value)])

    def patch_all(self, changes: Iterable[tuple[str, Any]]) -> Settings:
        """A copy with several knobs set as one change: each group is rebuilt once, so that a pair such as
        camera.distance_min and distance_max may pass through values that are not allowed singly."""
        by_prefix: dict[str, dict[str, Any]] = {}
        for path, value in changes:
            if path in ("prior.kind", "scene.kind"):
                raise ValueError(f"{path} cannot be patched: choose another preset instead")
            checked = check(self.knob(path), value)
            prefix, _, name = path.rpartition(".")
            by_prefix.setdefault(prefix, {})[name] = checked
        new = self
        groups = self.groups()
        for prefix, values in by_prefix.items():
            if prefix == "":
                new = dataclasses.replace(new, **values)
            elif prefix.startswith("losses."):
                name = prefix.removeprefix("losses.")
                new = dataclasses.replace(
                    new, losses=new.losses.replace(name, dataclasses.replace(groups[prefix], **values))
                )
            else:
                new = dataclasses.replace(new, **{prefix: dataclasses.replace(groups[prefix], **values)})
        return new

    def differences(self, other: Settings) -> list[tuple[str, Any]]:
        """(path, value of `other`) wherever the two trees differ; both must have the same kinds of prior and scene."""
        mine, theirs = self.knobs(), other.knobs()
        return [(p, k.value) for p, k in theirs.items() if p not in mine or mine[p].value != k.value]


def to_toml(s: Settings) -> str:
    """TOML of what differs from the defaults (and the kinds of prior and scene)."""
    doc = tomlkit.document()
    base = default_settings(s.prior.kind, s.scene.kind)
    defaults = base.knobs()
    for path, k in s.knobs().items():
        if k.value == defaults[path].value:
            continue
        node: Any = doc
        *parents, name = path.split(".")
        for parent in parents:
            if parent not in node:
                node[parent] = tomlkit.table()
            node = node[parent]
        node[name] = k.value
    for group in ("prior", "scene"):
        if group not in doc:
            doc[group] = tomlkit.table()
        doc[group]["kind"] = getattr(s, group).kind  # type: ignore[index]
    return tomlkit.dumps(doc)


def default_settings(prior_kind: str = "diffusers", scene_kind: str = "splats") -> Settings:
    """Defaults with the given family members; ValueError names the members there are."""
    return Settings(prior=_member("prior", priors(), prior_kind)(), scene=_member("scene", scenes(), scene_kind)())


def _member(group: str, members: Mapping[str, type], kind: str) -> type:
    if kind not in members:
        raise ValueError(f"{group}.kind = {kind!r}: allowed is one of {', '.join(members)}")
    return members[kind]


def from_toml(text: str, where: str = "settings", base: Settings | None = None) -> Settings:
    """Settings from TOML, where it is silent those of `base` (None: the defaults); ValueError names the file (`where`)
    and the knob that is wrong."""
    try:
        doc = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where} is not valid TOML: {e}") from e
    doc.pop("about", None)  # a preset's title and description, read by `about`
    kinds = {}
    start = base or default_settings()
    for group in ("prior", "scene"):
        table, kind = doc.get(group, {}), getattr(start, group).kind
        kinds[group] = str(table.pop("kind", kind)) if isinstance(table, dict) else kind
    try:
        members = default_settings(kinds["prior"], kinds["scene"])
        for group in ("prior", "scene"):
            if kinds[group] != getattr(start, group).kind:
                start = dataclasses.replace(start, **{group: getattr(members, group)})
        return start.patch_all(_flatten(doc))
    except RecursionError as e:
        raise ValueError(f"{where}: its tables are nested too deeply") from e
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e


def _flatten(node: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    flat: list[tuple[str, Any]] = []
    for key, value in node.items():
        path = f"{prefix}.{key}" if prefix else key
        flat += _flatten(value, path) if isinstance(value, Mapping) else [(path, value)]
    return flat


# ---- presets ---------------------------------------------------------------------------------------------


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def _preset_text(name: str) -> str:
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"there is no preset {name!r}; {hint}presets are {', '.join(names)}")
    return (PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def preset(name: str) -> Settings:
    """The settings of a preset by name; ValueError lists the presets there are. `base` in its [about] names a preset
    from which it differs only in what it says."""
    text = _preset_text(name)
    base = _about(text).get("base")
    return from_toml(text, f"preset {name}", preset(base) if base else None)


def about(name: str) -> dict[str, str]:
    """`title` and `text` of a preset."""
    table = _about(_preset_text(name))
    return {"title": str(table.get("title", name)), "text": str(table.get("text", ""))}


def _about(text: str) -> dict[str, Any]:
    return tomllib.loads(text).get("about", {})
