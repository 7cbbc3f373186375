"""What one visitor of a public server may ask of it: ranges of knobs, and budgets of what a step costs.

The figures suit a server on two CPU cores: within them, every piece of a step that cannot be interrupted takes well
under a second, and eight visitors at their maxima fit into memory. What the server's own presets use is always allowed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sdlab.knobs import Knob
from sdlab.live.clients import NO_LIMIT
from sdlab.live.cost import Load
from sdlab.live.state import Run
from sdlab.settings import Settings
from sdlab.types import Prior

# the largest values that visitors may choose; of losses by the last part of the path, so that new ones are included
MOST: Mapping[str, int] = {
    "camera.views": 8,
    "camera.resolution": 512,
    "scene.n_init": 20_000,
    "scene.max_gaussians": 20_000,
    "scene.trail": 400,
    "scene.samples": 128,
    "scene.hidden": 64,
    "scene.channels": 32,
    "scene.shap_e_steps": 64,
    "losses.rank": 32,
    "losses.lessons": 4,
    "losses.every": 4,
    "losses.warm_up": 500,
    "losses.inversion_steps": 20,
    "losses.leg_steps": 20,
    "losses.reverse_steps": 20,
    "losses.noises": 8,
}
MOST_OF_KIND: Mapping[str, Mapping[str, int]] = {  # of knobs that scenes of several kinds have
    "field": {"scene.resolution": 128},
    "image": {"scene.n": 16},
    "illusion": {"scene.n": 8},
    "points": {"scene.n": 500},
    "gaussian": {"scene.n": 500},
}
COPIED = 50_000_000  # parameters of a network that psi may copy


class Budget(NamedTuple):
    """A limit of what a step costs: `most` of what `cost` returns, in the words of `says`. `knobs` are those that raise
    it, by path, of losses by its last part; a refusal names one of them."""

    cost: Callable[[Load], float]
    most: float
    says: str  # with places for the cost and for what is allowed
    knobs: tuple[str, ...]


DRAWING = (
    *("camera.views", "camera.resolution", "camera.fovy", "camera.distance_min"),
    *("scene.max_gaussians", "scene.n_init", "scene.scale_max", "scene.samples", "scene.hidden"),
    "scene.sh_degree",
)
BUDGETS = (
    Budget(
        lambda load: load.drawing_seconds,
        0.5,
        "drawing a step's views would take about {:.2g} s, and visitors of this server may use {:.2g} s",
        DRAWING,
    ),
    Budget(
        lambda load: load.evaluations,
        200,
        "a step would evaluate the prior on {:,.0f} images, and visitors of this server may have {:,.0f}",
        (
            *("camera.views", "scene.n", "losses.inversion_steps", "losses.leg_steps", "losses.reverse_steps"),
            *("losses.noises", "losses.inner", "active", "guidance.perp_neg"),
        ),
    ),
    Budget(
        lambda load: load.lesson,
        32,
        "a training step of psi would take {:,.0f} images, and visitors of this server may have {:,.0f}",
        ("losses.every", "camera.views", "scene.n", "losses.inner", "active"),
    ),
    Budget(
        lambda load: load.lessons,
        96,
        "psi would train on {:,.0f} images per step, and visitors of this server may have {:,.0f}",
        ("losses.lessons", "losses.every", "camera.views", "scene.n", "losses.inner", "active"),
    ),
)


@dataclass
class Budgets:
    """The limits of one server, raised to what `shipped` settings need, such as those of its presets."""

    shipped: Iterable[Settings] = ()
    _raised: dict[int, list[float]] = field(default_factory=dict)  # budgets by the side of the prior's images

    def __post_init__(self) -> None:
        self.shipped = tuple(self.shipped)
        self._most: dict[tuple[str, str], Any] = {}  # (kind, path) -> the largest value in shipped settings
        for s in self.shipped:
            for path, k in s.knobs().items():
                if (most := _most(path, s.scene.kind)) is not None:
                    key = (_kind(path, s.scene.kind), path)
                    self._most[key] = max(self._most.get(key, most), k.value)

    def range_of(self, k: Knob, kind: str) -> Knob:
        """Return a knob with the range that visitors have, in a run whose scene is of this `kind`."""
        most = self._most.get((_kind(k.path, kind), k.path), _most(k.path, kind))
        return k if most is None or k.hi is None or most >= k.hi else k._replace(hi=most)

    def __call__(self, wanted: Settings, run: Run) -> None:
        """Raise ValueError that names a knob, its value and what is allowed if visitors may not have `wanted`."""
        now = run.settings.knobs()
        for path, k in wanted.knobs().items():
            most = self.range_of(k, wanted.scene.kind).hi
            if k.type is int and most is not None and k.value > most and not _kept(now, k):
                raise ValueError(
                    f"{path} = {k.value:,}: visitors of this server may choose at most {most:,}; {NO_LIMIT}"
                )
        self._must_copy_little(wanted, run)
        before = Load.both(run.settings, run)
        for load in Load.both(wanted, run):
            for budget, most in zip(BUDGETS, self._limits(run.prior), strict=True):
                if budget.cost(load) > max([most, *(budget.cost(other) for other in before)]):
                    raise ValueError(_refusal(budget, most, load, run.settings))

    def _must_copy_little(self, wanted: Settings, run: Run) -> None:
        size = getattr(run.prior, "n_parameters", 0)
        copies = getattr(wanted.loss, "network", "") == "copy" and wanted.loss not in {s.loss for s in self.shipped}
        if copies and size > COPIED:
            name = getattr(wanted.loss, "inner", wanted.active)
            raise ValueError(
                f"losses.{name}.network = 'copy': visitors of this server may copy networks of at most "
                f"{COPIED:,} parameters, and this prior's has {size:,}; choose 'lora'; {NO_LIMIT}"
            )

    def _limits(self, prior: Prior | None) -> list[float]:
        """Return the limit of each of `BUDGETS`, raised to what the shipped settings need with `prior`."""
        key = prior.image_size if prior is not None else 0
        if key not in self._raised:
            loads = [Load.of(s, prior) for s in self.shipped]
            self._raised[key] = [max([b.most, *(b.cost(load) for load in loads)]) for b in BUDGETS]
        return self._raised[key]


@functools.cache
def _family(path: str) -> str:
    """Return the name of a knob in `MOST` and in budgets."""
    return f"losses.{path.rpartition('.')[2]}" if path.startswith("losses.") else path


@functools.cache
def _most(path: str, kind: str) -> int | None:
    return MOST.get(_family(path), MOST_OF_KIND.get(kind, {}).get(path))


def _kind(path: str, kind: str) -> str:
    return kind if path.startswith("scene.") else ""


def _kept(now: Mapping[str, Knob], k: Knob) -> bool:
    """Return whether a knob already has this value: then this change is not at fault."""
    return k.path in now and now[k.path].value == k.value


def _refusal(budget: Budget, most: float, load: Load, before: Settings) -> str:
    """Return why a load breaks a budget. It names the changed knob that matters most, and which value would do."""
    wanted = load.settings
    cost = budget.says.format(budget.cost(load), most)
    changed = [path for path, _ in before.differences(wanted) if _family(path) in budget.knobs]
    knobs, old = wanted.knobs(), before.knobs()

    def with_value(path: str, value: Any) -> float:
        return budget.cost(load._replace(settings=wanted.patch(path, value)))

    changed.sort(key=lambda path: with_value(path, old[path].value) if path in old else most)
    if not changed:
        return f"{cost}; {NO_LIMIT}"
    path, k = changed[0], knobs[changed[0]]
    allowed = ""
    if k.type is int and k.lo is not None and with_value(path, k.lo) <= most:
        allowed = f", which is {path} = {_largest(k, lambda value: with_value(path, value) <= most):,} here"
    return f"{path} = {k.value!r}: {cost}{allowed}; {NO_LIMIT}"


def _largest(k: Knob, fits: Callable[[int], bool]) -> int:
    """Return the largest value of a knob below its own that `fits`; the lowest must."""
    low, high = int(k.lo or 0), int(k.value)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
