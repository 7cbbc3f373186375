"""A flat scene in numbers, for a page that draws it itself: where the points of the plane are, and what each term of
the loss said of them at the last step. Pictures need no more than a frame's preview.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sdlab.guidance import cfg
from sdlab.losses import GUIDED, NOISE, RESIDUAL, Distillation, first_of
from sdlab.scenes import AnyScene, FlatScene
from sdlab.scenes.gaussian import GaussianScene
from sdlab.scenes.points import PointScene
from sdlab.step import Report
from sdlab.types import FlatFrame, Term

KEPT_ROWS = 40_000  # rows [x, y] of the ways in one frame, so that it stays small however many points there are
LATELY = 400  # steps of the ways in one frame at most

_count = itertools.count(1)
_numbers: WeakKeyDictionary[FlatScene, int] = WeakKeyDictionary()  # of the scenes there are


def flat_frame(scene: AnyScene, report: Report | None, loss: Distillation) -> FlatFrame | None:
    """What there is to draw of `scene` after the step of `report`, taken with `loss`; None unless it is points."""
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
    """What the loss combined, as the legend lists it: predictions, the guided one, what is subtracted, the sum."""
    preds, scale = report.guidance.preds, loss.guidance_scale()
    found = {term: preds[term.name] for term in loss.terms if term.name in preds}
    found |= {loss.term(name): eps for name, eps in preds.items()}  # with those that the loss does not describe
    terms = {term: eps for term, eps in found.items() if not term.subtracted}
    if {"pos", "uncond"} <= preds.keys() and scale not in (None, 1):
        terms[replace(GUIDED, pull=f"guided: s = {scale:g}")] = cfg(preds["uncond"], preds["pos"], scale)
    terms |= {term: eps for term, eps in found.items() if term.subtracted}
    if not first_of(loss.control, preds):
        terms[NOISE] = report.x.noise
    terms[RESIDUAL] = report.guidance.residual
    return terms


def _points(events: Tensor) -> np.ndarray:
    """[B, 2, 1, 1] -> [B, 2] in float32."""
    return events.detach().flatten(1).float().cpu().numpy()
