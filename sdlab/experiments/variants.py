"""Variants of losses, runs of a given duration, and a check that two runs drew the same random numbers.

A variant is a loss with some of its own knobs set, such as "esd:lam=0.5". It starts from the preset `toybox-<loss>` if
that exists, since it has tuned settings, and from `toybox` otherwise. Another family of presets can be chosen.

A run lasts a given number of seconds, including the warm-up of its auxiliary but not loading and compilation. Its
schedules are fractions of that time: at every step, the planned number of steps is extrapolated from the rate so far.
If a number of steps is given, that is the plan. No frames are published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import hashlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from sdlab.experiments.objects import Case, Outcome, Runner
from sdlab.prompts import PromptBank
from sdlab.settings import Settings, losses, preset_names
from sdlab.step import Report, State, needs_warm_up, step, warm_up

PRESET = "toybox"
# what a step draws -> prefixes of the knobs that it depends on
DEPENDS = {
    "cameras": ("seed", "camera."),
    "t": (
        "seed",
        "camera.views",
        "schedule.kind",
        "schedule.t_",
        "schedule.per_view",
        "schedule.start",
        "schedule.switch",
    ),
    "noise": ("seed", "camera.views", "prior."),
}


class Variant(NamedTuple):
    """A loss with settings; `label` is its spelling on the command line."""

    label: str
    preset: str
    settings: Settings

    @property
    def title(self) -> str:
        """The name shown to users, such as "ESD lam=0.5"."""
        return " ".join([self.settings.loss.title, *self.label.split(":")[1:]])


def parse_variant(label: str, option: str) -> tuple[str, list[str]]:
    """Split "esd:lam=0.5" into "esd" and ["losses.esd.lam=0.5"].

    Raises ValueError that names `option` for an unknown loss or anything but KNOB=VALUE after it.
    """
    loss, *changes = (part.strip() for part in label.split(":"))
    known = tuple(losses())
    if loss not in known:
        near = difflib.get_close_matches(loss, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{option} {label}: {hint}losses are {', '.join(known)}")
    for change in changes:
        if "=" not in change:
            raise ValueError(f"{option} {label}: expected LOSS:KNOB=VALUE, such as esd:lam=0.5")
    return loss, [f"losses.{loss}.{change}" for change in changes]


def preset_for(loss: str, family: str = PRESET) -> str:
    """Return the preset that `loss` starts from: `family`-<loss> if it exists, otherwise `family`."""
    tuned = f"{family}-{loss}"
    return tuned if tuned in preset_names() else family


def describe(variant: Variant, base: Settings) -> dict[str, Any]:
    """Return the variant for the JSON file, with its differences from `base`."""
    return {"variant": variant.label, "preset": variant.preset, "changes": dict(base.differences(variant.settings))}


# ---- runs ------------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """Fingerprints of the random numbers of one step."""

    cameras: bytes
    t: bytes
    noise: bytes


class TracedRun(NamedTuple):
    """A finished run with the fingerprints of every step."""

    outcome: Outcome
    warm_up_seconds: float  # part of outcome.seconds
    evaluations: int  # network evaluations per view in the last step
    skipped: int  # steps with a non-finite gradient
    draws: list[Draw]
    aux: Any  # the auxiliary of the loss at the end, None without one


def run_case(runner: Runner, case: Case, planned: int | None) -> TracedRun | None:
    """Run `case` for `planned` steps, or with None for `runner.seconds`, which is the time limit in either case.

    Returns None once `runner.stop` is set. An error in a step ends the run, and the outcome's note describes it.
    """
    if runner.stop.is_set():
        return None
    rehearse(runner, case.settings)
    session = runner.session(case.settings)
    state, s, prior, bank = session.state, session.effective, session.prior, PromptBank(session.prior)
    draws: list[Draw] = []
    note, warmed, evaluations = "", 0.0, 0
    started = time.perf_counter()
    try:
        while planned is None or state.step < planned:
            seconds = time.perf_counter() - started
            if runner.stop.is_set():
                return None
            if seconds >= runner.seconds:
                note = _ended_early(state, s, runner.seconds, planned)
                break
            if needs_warm_up(state, s):
                warm_up(state, s, prior, bank)
                warmed = time.perf_counter() - started
                continue
            plan = planned or _projected_steps(state.step, (seconds - warmed) / (runner.seconds - warmed))
            report = step(state, dataclasses.replace(s, steps=plan), prior, bank)
            draws.append(draw_of(report))
            evaluations = report.nfe
    except Exception as e:
        note = f"failed at step {state.step}: {type(e).__name__}: {e}"
    state.read_verdicts()
    outcome = Outcome(case, state.scene, state.step, time.perf_counter() - started, note)
    return TracedRun(outcome, warmed, evaluations, state.skipped, draws, state.aux.get(s.loss.aux_name()))


def _ended_early(state: State, s: Settings, seconds: float, planned: int | None) -> str:
    if needs_warm_up(state, s):
        done, of = state.aux[s.loss.aux_name()].fitted, s.loss.warm_up_steps()
        return f"after {seconds:g} s the warm-up of its network was at step {done} of {of}"
    return f"stopped after {seconds:g} s at step {state.step} of {planned}" if planned else ""


def rehearse(runner: Runner, s: Settings) -> None:
    """Take one step and one warm-up step on a throwaway scene, since the first of each kind compiles and imports."""
    session = runner.session(s)
    state, bank = session.state, PromptBank(session.prior)
    with contextlib.suppress(Exception):  # the run itself will report it
        if needs_warm_up(state, s):
            warm_up(state, s, session.prior, bank)
        step(state, s, session.prior, bank)


def _projected_steps(steps: int, share: float) -> int:
    """Return the projected number of steps when `steps` steps took this share of the time."""
    return max(round(steps / max(share, 1e-6)), steps + 1)


def draw_of(report: Report) -> Draw:
    return Draw(_digest(report.cams.viewmats, report.cams.Ks), _digest(report.x.t), _digest(report.x.noise))


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


# ---- random numbers ------------------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How one run's draws compare with those of the first run, over the steps that both took."""

    label: str
    steps: int  # number of steps that both took
    differs: Mapping[str, str]  # what was drawn differently -> from which step, and why
    unexplained: bool  # whether something differs although no knob explains it

    def row(self) -> dict[str, Any]:
        same = dict.fromkeys(DEPENDS, "equal")
        return {"variant": self.label, "steps_compared": self.steps, **same, **self.differs}


def agreements(runs: Sequence[tuple[Variant, Sequence[Draw]]]) -> list[Agreement]:
    """Compare each run after the first with the first."""
    return [_agreement(runs[0], run) for run in runs[1:]]


def _agreement(first: tuple[Variant, Sequence[Draw]], other: tuple[Variant, Sequence[Draw]]) -> Agreement:
    (a, mine), (b, theirs) = first, other
    differs, unexplained = {}, False
    for name in DEPENDS:
        pairs = zip(mine, theirs, strict=False)
        at = next((i for i, (x, y) in enumerate(pairs) if getattr(x, name) != getattr(y, name)), None)
        if at is not None:
            reasons = _reasons(name, a.settings, b.settings)
            unexplained = unexplained or not reasons
            differs[name] = f"differs from step {at}: {'; '.join(reasons) or 'no knob explains it'}"
    return Agreement(b.label, min(len(mine), len(theirs)), differs, unexplained)


def _reasons(name: str, a: Settings, b: Settings) -> list[str]:
    """Return the knobs that make two runs draw `name` differently on purpose."""
    before = a.knobs()
    reasons = [
        f"{path} = {before[path].value if path in before else None} and {value}"
        for path, value in a.differences(b)
        if path.startswith(DEPENDS[name])
    ]
    if name == "t" and not reasons and a.schedule.kind != "uniform":
        reasons.append(f"schedule.kind = {a.schedule.kind}: t depends on the progress of the run")
    return reasons


def digests(draws: Sequence[Draw]) -> dict[str, str]:
    """Return one fingerprint for all steps in `draws`."""
    return {
        name: hashlib.blake2b(b"".join(getattr(draw, name) for draw in draws), digest_size=8).hexdigest()
        for name in DEPENDS
    }
