"""Frames: what viewers see of a run after a step, with the statistics of that step.

Points of the plane are also published as numbers, for a page that draws them itself: where they are, and the value of
each term of the loss at the last step. For images, the frame's preview is enough.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sdlab import lens
from sdlab.guidance import cfg
from sdlab.live.state import Run
from sdlab.losses import GUIDED, NOISE, RESIDUAL, Distillation, first_of
from sdlab.scenes import AnyScene, FlatScene
from sdlab.scenes.gaussian import GaussianScene
from sdlab.scenes.points import PointScene
from sdlab.schedule import weight
from sdlab.step import STAGES, Report
from sdlab.transfer import numbers
from sdlab.types import FlatFrame, Frame, Term

KEPT_ROWS = 40_000  # maximum rows [x, y] of the paths in one frame, to bound its size for any number of points
LATELY = 400  # maximum steps of the paths in one frame

_count = itertools.count(1)
_numbers: WeakKeyDictionary[FlatScene, int] = WeakKeyDictionary()  # by scene, for as long as it exists


def frame_of(run: Run, in_detail: bool) -> Frame:
    """Return the frame of the last step, or of the scene before its first; `in_detail` as for `stats_of`."""
    state, s, prior, bank = run.inputs()
    report, scene = run.trace.report, state.scene
    if report is not None:
        stats = stats_of(run, report, in_detail)
    else:
        stats = {**scene.stats(), "seconds": state.seconds}
    drawn = None if report is None or report.render is None else (report.cams, report.render)
    preview, views = scene.preview(prior, bank, s.prompt, s.camera, drawn)
    flat = flat_frame(scene, report, (run.trace.settings or s).loss)
    return Frame(state.step, state.seconds, scene.snapshot(), preview, views, stats, flat)


def stats_of(run: Run, report: Report, in_detail: bool) -> dict[str, float]:
    """Return the statistics of the last step; with `in_detail` also those of its predictions, which cost a few
    operations on the device."""
    state, s, trace = run.inputs()[0], run.trace.settings, run.trace
    state.read_verdicts()
    tensors = {**report.stats, "t": report.x.t.float().mean()}
    if in_detail and s is not None:
        tensors |= lens.stats_of(report, s.loss)
        tensors |= {f"rms_{name}": value for name, value in lens.sizes_of(report).items()}
        tensors["weight"] = weight(s.schedule, report.x.alpha, report.x.sigma).mean()
    read = numbers(tensors)
    stats = {name: read[name] for name in (*report.stats, "t")}
    stats.update(state.scene.stats())
    stats["seconds"] = state.seconds
    stats["steps_per_s"] = 1 / trace.seconds_per_step if trace.seconds_per_step > 0 else 0.0
    stats["prior_share"] = state.prior_seconds / state.seconds if state.seconds > 0 else 0.0
    stats["skipped"] = float(state.skipped)
    if report.verdict.late:
        stats["launch_times"] = 1.0  # a GPU works later than it is told to: its stages are not timed
    stats.update({f"ms_{stage}": 1e3 * report.stages.get(stage, 0.0) for stage in STAGES if stage != "publish"})
    stats.update({name: float(count) for name, count in report.densified.items()})
    return {**stats, **read}


def film(run: Run, newest: Frame | None) -> None:
    """Add the state of `run` to its timeline's film, if a shot is due. Images of a flat scene may cost a decoder pass:
    only those of the `newest` frame are used."""
    state = run.built
    if not run.timeline.shot_due(state.step):
        return
    if newest is not None and newest.step == state.step:
        run.timeline.show(state.step, newest.preview if newest.scene is None else newest.scene)
    elif (snapshot := state.scene.snapshot()) is not None:
        run.timeline.show(state.step, snapshot)


def flat_frame(scene: AnyScene, report: Report | None, loss: Distillation) -> FlatFrame | None:
    """Return the points of `scene` and the terms of `loss` in the step of `report`; None without points."""
    if isinstance(scene, PointScene):
        way = scene.lately(min(LATELY, KEPT_ROWS // scene.config.n))
    elif isinstance(scene, GaussianScene):
        way = scene.samples()
    else:
        return None
    run = _numbers.get(scene) or _numbers.setdefault(scene, next(_count))
    if report is None:
        return FlatFrame(run, way, np.zeros(0, np.int64), {})
    terms = _terms(report, loss)
    arrays = {term.name: _points(events) for term, events in terms.items()}
    return FlatFrame(run, way, report.x.t.cpu().numpy(), arrays, tuple(terms))


def _terms(report: Report, loss: Distillation) -> dict[Term, Tensor]:
    """Return the terms of the loss in the order of the legend: predictions, guided, subtracted, residual."""
    preds, scale = report.guidance.preds, loss.guidance_scale()
    found = {term: preds[term.name] for term in loss.terms if term.name in preds}
    found |= {loss.term(name): eps for name, eps in preds.items()}  # including those that the loss does not describe
    terms = {term: eps for term, eps in found.items() if not term.subtracted}
    if {"pos", "uncond"} <= preds.keys() and scale not in (None, 1):
        terms[replace(GUIDED, pull=f"guided: s = {scale:g}")] = cfg(preds["uncond"], preds["pos"], scale)
    terms |= {term: eps for term, eps in found.items() if term.subtracted}
    if not first_of(loss.control, preds):
        terms[NOISE] = report.x.noise
    terms[RESIDUAL] = report.guidance.residual
    return terms


def _points(events: Tensor) -> np.ndarray:
    """Convert [B, 2, 1, 1] to float32 [B, 2]."""
    return events.detach().flatten(1).float().cpu().numpy()
