"""The types of the registry: an experiment, a claim that its results decide, and a paper."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.claims.decisions import Verdict

GALLERY, TOYBOX = "gallery", "toybox"


class Plan(NamedTuple):
    """How the experiments run: `prior` is GALLERY, TOYBOX or the path of a network; `quick` shortens them."""

    prior: str = GALLERY
    quick: bool = False


@dataclass(frozen=True)
class Experiment:
    """A command of this program whose JSON file decides claims.

    `command` returns its arguments without --out, which is the folder `folder`, or with `to_file` the file `result` in
    it. `seconds` estimates the time on two cores, quick and whole. `pictures` are files for the page.
    """

    name: str
    folder: str
    result: str
    command: Callable[[Plan], list[str]]
    seconds: tuple[float, float]
    pictures: tuple[str, ...] = ()
    to_file: bool = False

    def out(self, folder: Path) -> Path:
        """Return the value of --out, for results below `folder`."""
        own = folder / self.folder
        return own / self.result if self.to_file else own

    def result_in(self, folder: Path) -> Path:
        return folder / self.folder / self.result

    def pictures_in(self, folder: Path) -> list[Path]:
        return [folder / self.folder / name for name in self.pictures]

    def spelled(self, plan: Plan) -> str:
        """Return the command as one types it in a shell."""
        return shlex.join(["python", "-m", "sdlab", *self.command(plan)])


@dataclass(frozen=True)
class Claim:
    """A statement of a paper. `decide` turns the JSON of `experiment` into a verdict."""

    section: str
    statement: str
    experiment: Experiment
    decide: Callable[[Mapping[str, Any]], Verdict]


class Unmeasured(NamedTuple):
    """A claim that no experiment here can decide, and why."""

    section: str
    statement: str
    why: str


@dataclass(frozen=True)
class Paper:
    key: str
    title: str
    claims: tuple[Claim, ...]
    unmeasured: tuple[Unmeasured, ...] = ()

    @property
    def experiments(self) -> tuple[Experiment, ...]:
        return tuple({claim.experiment.name: claim.experiment for claim in self.claims}.values())
