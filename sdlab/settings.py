"""The frozen tree of all settings, patched by dotted path, read from and written to TOML.

Files contain only differences from the defaults. Prior and scene are selected by their `kind`. Every loss keeps its
own knobs, and `active` names the one in use, so that switching back restores its values.
"""

from __future__ import annotations

import contextlib
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
from sdlab.knobs import FrozenDict, Knob, check, knob, knobs_of, shown
from sdlab.losses import Distillation
from sdlab.optim import OptimSettings
from sdlab.priors import PriorConfig
from sdlab.prompts import PromptSettings
from sdlab.scenes import SceneConfig
from sdlab.schedule import ScheduleSettings

PRESETS = Path(__file__).parents[1] / "presets"
MAX_LEVELS = 30  # of a key in a settings file
OWN = "own"  # kind of the loss in the file that --own-loss names, see `sdlab.own_loss`
NO_OWN = "this is a loss that somebody wrote, and its code is not part of the program: start it with --own-loss FILE"


T = TypeVar("T")


def family(package: ModuleType, base: type[T]) -> dict[str, type[T]]:
    """Return kind -> class for every concrete member of a family; the folder is the registry.

    Raises RuntimeError naming a file that cannot be imported.
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


_adopted: dict[str, type[Distillation]] = {}


@functools.cache
def losses() -> dict[str, type[Distillation]]:
    """Return all losses by name; adopted ones last."""
    return {**family(sdlab.losses, Distillation), **_adopted}  # type: ignore[type-abstract]


def adopt(loss: type[Distillation]) -> None:
    """Make a loss that has no file in the folder a member of the family, in place of an earlier one of its kind."""
    _adopted[loss.kind] = loss
    losses.cache_clear()


def disown() -> None:
    """Remove all adopted losses."""
    _adopted.clear()
    losses.cache_clear()


@functools.cache
def priors() -> dict[str, type[PriorConfig]]:
    """Return all prior configurations by kind."""
    return family(sdlab.priors, PriorConfig)  # type: ignore[type-abstract]


@functools.cache
def scenes() -> dict[str, type[SceneConfig]]:
    """Return all scene configurations by kind."""
    return family(sdlab.scenes, SceneConfig)  # type: ignore[type-abstract]


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run: equal settings give equal runs."""

    active: str = knob("sds", help="the active loss")
    steps: int = knob(800, 1, 1_000_000, "planned length of the run; schedules are relative to it")
    seed: int = knob(0, 0, 2**31 - 1, "random seed", apply="restart")
    start_seed: int = knob(-1, -1, 2**31 - 1, "random seed of the starting scene alone; -1: as seed", apply="restart")
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
            if self.active == OWN:
                raise ValueError(f"active = {shown(OWN)}: {NO_OWN}")
            raise ValueError(
                f"active = {shown(self.active)}: must be one of {', '.join(sorted(self.losses))} (the active loss)"
            )

    @property
    def loss(self) -> Distillation:
        """The active loss, around that which it wraps, if it does."""
        return self.losses[self.active].among(self.losses)

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the scene's views; one for all of them unless the scene is an illusion."""
        return self.prompt.texts[: self.scene.prompts]

    @property
    def perp_neg(self) -> bool:
        """Whether Perp-Neg is active; it needs view words."""
        return self.guidance.perp_neg and self.prompt.view_dependent

    @property
    def planned_end(self) -> int:
        """The step at which the planned run ends."""
        return self.schedule.start + self.steps

    @property
    def seed_of_start(self) -> int:
        """The seed of the starting scene: runs with the same one and other seeds differ only in the noise of the steps,
        as in section 5.3 of the JSD paper."""
        return self.seed if self.start_seed < 0 else self.start_seed

    def progress(self, step: int) -> float:
        """Return the position of `step` in the planned run, from 0 (start) to 1 (end); above 1 after the end."""
        return max(step - self.schedule.start, 0) / self.steps

    def groups(self) -> dict[str, Any]:
        """Return dotted prefix -> dataclass with the knobs below it, in display order."""
        plain = {
            name: getattr(self, name)
            for name in ("prompt", "camera", "schedule", "guidance", "optim", "prior", "scene")
        }
        return {"": self, **plain, **{f"losses.{name}": loss for name, loss in self.losses.items()}}

    def knobs(self) -> dict[str, Knob]:
        """Return all knobs by path."""
        return {k.path: k for prefix, group in self.groups().items() for k in knobs_of(group, prefix)}

    def knob(self, path: str) -> Knob:
        """Return one knob; ValueError with suggestions if the path is unknown."""
        return self._knob(self.knobs(), path)

    def _knob(self, knobs: dict[str, Knob], path: str) -> Knob:
        if path not in knobs:
            if path.startswith(f"losses.{OWN}.") and OWN not in self.losses:
                raise ValueError(f"{path}: {NO_OWN}")
            own = f"losses.{self.active}."
            same_name = sorted(
                (p for p in knobs if p.rpartition(".")[2] == path.rpartition(".")[2]),
                key=lambda p: p[: len(own)] != own,
            )
            near = difflib.get_close_matches(path[:100], knobs, n=3, cutoff=0.4)
            hints = list(dict.fromkeys(same_name + near))[:3]
            hint = f"did you mean {' or '.join(hints)}?" if hints else "see `python -m sdlab list knobs`"
            raise ValueError(f"there is no knob {shown(path)}; {hint}")
        return knobs[path]

    def patch(self, path: str, value: Any) -> Settings:
        """Return a copy with one knob set; ValueError names the knob, the value and what is allowed."""
        return self.patch_all([(path, value)])

    def patch_all(self, changes: Iterable[tuple[str, Any]]) -> Settings:
        """Return a copy with several knobs set at once.

        Each group is rebuilt once, so that a pair such as camera.distance_min and distance_max can change together even
        if changing one alone would be invalid.
        """
        knobs = self.knobs()
        by_prefix: dict[str, dict[str, Any]] = {}
        for path, value in changes:
            if path in ("prior.kind", "scene.kind"):
                raise ValueError(f"{path} cannot be changed: choose another preset instead")
            checked = check(self._knob(knobs, path), value)
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

    def with_loss(self, loss: type[Distillation]) -> Settings:
        """Return a copy in which `loss` has the place of the loss of its kind, and the values of its knobs as far as it
        has the same ones and allows these values."""
        new, before = loss(), self.losses.get(loss.kind)
        kept = {}
        for k in knobs_of(new, ""):
            with contextlib.suppress(ValueError):
                kept[k.path] = check(k, getattr(before, k.path, k.value))
        return dataclasses.replace(self, losses=self.losses.replace(loss.kind, dataclasses.replace(new, **kept)))

    def with_losses_of(self, other: Settings) -> Settings:
        """Return a copy with the versions of the losses that `other` has, if any of them differ."""
        new = self
        for kind, loss in other.losses.items():
            if type(loss) is not type(self.losses.get(kind)):
                new = new.with_loss(type(loss))
        return new

    def differences(self, other: Settings) -> list[tuple[str, Any]]:
        """Return (path, value in `other`) wherever the two differ."""
        mine, theirs = self.knobs(), other.knobs()
        return [(p, k.value) for p, k in theirs.items() if p not in mine or mine[p].value != k.value]


def codes_of(s: Settings) -> dict[str, str]:
    """Return the code of the losses that are not part of the program, by file name, for runs to keep beside their
    settings."""
    return {f"{kind}_loss.py": loss.code for kind, loss in s.losses.items() if loss.code}


def to_toml(s: Settings) -> str:
    """Write what differs from the defaults, and the kinds of prior and scene, as TOML."""
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
    """Return the defaults for these kinds; ValueError lists the known kinds."""
    return Settings(prior=_member("prior", priors(), prior_kind)(), scene=_member("scene", scenes(), scene_kind)())


def _member(group: str, members: Mapping[str, type], kind: str) -> type:
    if kind not in members:
        raise ValueError(f"{group}.kind = {shown(kind)}: must be one of {', '.join(members)}")
    return members[kind]


def from_toml(text: str, where: str = "settings") -> Settings:
    """Parse TOML on top of the defaults, or of the preset that its [about] table names as `base`; ValueError names the
    file (`where`) and the knob."""
    if any(line.partition("=")[0].count(".") > MAX_LEVELS for line in text.splitlines()):  # tomllib would take seconds
        raise ValueError(f"{where}: tables are nested too deeply")
    try:
        doc = tomllib.loads(text.removeprefix("\ufeff"))  # the byte order mark of a Windows editor
    except (ValueError, RecursionError) as e:
        odd = "; it is not encoded in UTF-8, save it as UTF-8" if any(c in text for c in "\ufffd\0") else ""
        raise ValueError(f"{where} is not valid TOML: {e}{odd}") from e
    told = doc.pop("about", None)  # title and description of a preset, see `about`
    kinds = {}
    try:
        start = preset(str(told["base"])) if isinstance(told, dict) and told.get("base") else default_settings()
    except ValueError as e:
        raise ValueError(f"{where}: {e}") from e
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
        raise ValueError(f"{where}: tables are nested too deeply") from e
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
    """Return the names of all presets, sorted."""
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def _preset_text(name: str) -> str:
    names = preset_names()
    if name not in names:
        near = difflib.get_close_matches(name[:100], names, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise ValueError(
            f"there is no preset {shown(name)}; {hint}`python -m sdlab list presets` shows all {len(names)}"
        )
    return (PRESETS / f"{name}.toml").read_text(encoding="utf-8")


def preset(name: str) -> Settings:
    """Load a preset by name; ValueError lists the known presets.

    `base` in its [about] table names another preset that it builds on.
    """
    return from_toml(_preset_text(name), f"preset {name}")


def with_prompt_of(wanted: Settings, now: Settings) -> Settings:
    """Return the `wanted` settings of a preset with the prompt of `now`, unless the preset has a prompt of its own or
    another kind of prior, which may not know the words."""
    if wanted.prior.kind != now.prior.kind or wanted.prompt.text != Settings().prompt.text:
        return wanted
    return wanted.patch("prompt.text", now.prompt.text)


def needs_new_run(wanted: Settings, now: Settings) -> bool:
    """Return whether a run cannot turn from settings `now` into the `wanted` ones. Points and pictures always start a
    new run: they are over in seconds, and such presets are about where the run starts."""
    if (wanted.prior.kind, wanted.scene.kind) != (now.prior.kind, now.scene.kind):
        return True
    return wanted.scene.kind != Settings().scene.kind and (wanted.scene, wanted.prior) != (now.scene, now.prior)


def about(name: str) -> dict[str, str]:
    """Return `title` and `text` of a preset."""
    table = _about(_preset_text(name))
    return {"title": str(table.get("title", name)), "text": str(table.get("text", ""))}


def uploads_of(text: str) -> str:
    """Return which uploaded files the run had whose settings were saved as `text`, "" if it had none."""
    return str(_about(text).get("uploads", ""))[:200]


def _about(text: str) -> dict[str, Any]:
    found = tomllib.loads(text.removeprefix("\ufeff")).get("about", {})
    return found if isinstance(found, dict) else {}
