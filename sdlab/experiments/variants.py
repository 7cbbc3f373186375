"""Losses beside each other: how a variant is spelled, runs that follow the clock, and whether they drew the same.

A variant is a loss with some of its own knobs set: "esd:lam=0.5". It starts from the preset `toybox-<loss>` where
there is one, where tuned settings would be, and from `toybox` otherwise.

A run has a number of seconds, the warm-up of its auxiliary included, loading and compilation not. Its schedules are
fractions of that time: the plan is revised at every step to what the rate so far promises. With a number of steps
given, the plan is that. Nothing is published meanwhile.
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

from sdlab.experiments.objects import Bench, Case, Outcome
from sdlab.prompts import PromptBank
from sdlab.settings import Settings, losses, preset_names
from sdlab.step import Report, State, needs_warm_up, step, warm_up

PRESET = "toybox"
# what a step draws -> the knobs on which that depends, by the beginnings of their paths
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
    """A loss as it is to be run; `label` is how it was spelled."""

    label: str
    preset: str
    settings: Settings

    @property
    def title(self) -> str:
        """For people: "ESD lam=0.5"."""
        return " ".join([self.settings.loss.title, *self.label.split(":")[1:]])


def spelled(label: str, option: str) -> tuple[str, list[str]]:
    """ "esd:lam=0.5" -> "esd", ["losses.esd.lam=0.5"]; ValueError, naming `option`, when there is no such loss or what
    follows is no KNOB=VALUE."""
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


def preset_of(loss: str) -> str:
    """The preset that `loss` starts from."""
    tuned = f"{PRESET}-{loss}"
    return tuned if tuned in preset_names() else PRESET


def described(variant: Variant, base: Settings) -> dict[str, Any]:
    """For the JSON: what it differs in from `base`."""
    return {"variant": variant.label, "preset": variant.preset, "changes": dict(base.differences(variant.settings))}


# ---- a run -----------------------------------------------------------------------------------------------


class Draw(NamedTuple):
    """Fingerprints of what one step drew."""

    cameras: bytes
    t: bytes
    noise: bytes


class Course(NamedTuple):
    """One run done, with what it drew in every step."""

    outcome: Outcome
    warm_up_seconds: float  # of outcome.seconds
    evaluations: int  # of networks, per view, in the last step
    skipped: int  # steps whose gradient was not finite
    draws: list[Draw]


def follow(bench: Bench, case: Case, planned: int | None) -> Course | None:
    """Run `case` for `planned` steps or, with None, for `bench.seconds`, which are the limit in either case. None once
    `bench.stop` is set; an error of a step ends the run, and the outcome's note says so."""
    if bench.stop.is_set():
        return None
    rehearse(bench, case.settings)
    session = bench.session(case.settings)
    state, s, prior, bank = session.state, session.effective, session.prior, PromptBank(session.prior)
    draws: list[Draw] = []
    note, warmed, evaluations = "", 0.0, 0
    started = time.perf_counter()
    try:
        while planned is None or state.step < planned:
            seconds = time.perf_counter() - started
            if bench.stop.is_set():
                return None
            if seconds >= bench.seconds:
                note = _ended_early(state, s, bench.seconds, planned)
                break
            if needs_warm_up(state, s):
                warm_up(state, s, prior, bank)
                warmed = time.perf_counter() - started
                continue
            plan = planned or _promised(state.step, (seconds - warmed) / (bench.seconds - warmed))
            report = step(state, dataclasses.replace(s, steps=plan), prior, bank)
            draws.append(drawn(report))
            evaluations = report.nfe
    except Exception as e:
        note = f"failed at step {state.step}: {type(e).__name__}: {e}"
    outcome = Outcome(case, state.scene, state.step, time.perf_counter() - started, note)
    return Course(outcome, warmed, evaluations, state.skipped, draws)


def _ended_early(state: State, s: Settings, seconds: float, planned: int | None) -> str:
    if needs_warm_up(state, s):
        done, of = state.aux[s.loss.aux_name()].fitted, s.loss.warm_up_steps()
        return f"after {seconds:g} s its own network was at {done} of {of} steps of its warm-up"
    return f"stopped after {seconds:g} s at step {state.step} of {planned}" if planned else ""


def rehearse(bench: Bench, s: Settings) -> None:
    """One step and one lesson on a scene that is thrown away: the first of a kind compiles and imports."""
    session = bench.session(s)
    state, bank = session.state, PromptBank(session.prior)
    with contextlib.suppress(Exception):  # the run itself will say what is wrong
        if needs_warm_up(state, s):
            warm_up(state, s, session.prior, bank)
        step(state, s, session.prior, bank)


def _promised(steps: int, share: float) -> int:
    """How many steps there will be in all when `steps` took this share of the time."""
    return max(round(steps / max(share, 1e-6)), steps + 1)


def drawn(report: Report) -> Draw:
    return Draw(_digest(report.cams.viewmats, report.cams.Ks), _digest(report.x.t), _digest(report.x.noise))


def _digest(*tensors: Tensor) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.digest()


# ---- did they draw the same? ---------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """How one run's draws compare with those of the first, over the steps that both took."""

    label: str
    steps: int  # that both took
    differs: Mapping[str, str]  # what was drawn differently -> from which step, and why
    unexplained: bool  # whether something differs that should not

    def row(self) -> dict[str, Any]:
        same = dict.fromkeys(DEPENDS, "equal")
        return {"variant": self.label, "steps_compared": self.steps, **same, **self.differs}


def agreements(runs: Sequence[tuple[Variant, Sequence[Draw]]]) -> list[Agreement]:
    """Each run after the first, against the first."""
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
            differs[name] = f"differs from step {at}: {'; '.join(reasons) or 'no knob says so'}"
    return Agreement(b.label, min(len(mine), len(theirs)), differs, unexplained)


def _reasons(name: str, a: Settings, b: Settings) -> list[str]:
    """The knobs that make two runs draw `name` differently on purpose."""
    before = a.knobs()
    reasons = [
        f"{path} = {before[path].value if path in before else None} and {value}"
        for path, value in a.differences(b)
        if path.startswith(DEPENDS[name])
    ]
    if name == "t" and not reasons and a.schedule.kind != "uniform":
        reasons.append(f"schedule.kind = {a.schedule.kind}: t follows the share of the run that is over")
    return reasons


def digests(draws: Sequence[Draw]) -> dict[str, str]:
    """One fingerprint for all the steps in `draws`."""
    return {
        name: hashlib.blake2b(b"".join(getattr(draw, name) for draw in draws), digest_size=8).hexdigest()
        for name in DEPENDS
    }
