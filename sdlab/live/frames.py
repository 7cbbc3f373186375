"""A flat scene in numbers, for a page that draws it itself: where the points of the plane are, and what each term of
the loss said of them at the last step. Pictures need no more than a frame's preview.
"""

from __future__ import annotations

import itertools
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from sdlab.guidance import cfg
from sdlab.losses import Distillation
from sdlab.scenes import AnyScene, FlatScene
from sdlab.scenes.gaussian import GaussianScene
from sdlab.scenes.points import PointScene
from sdlab.step import Report
from sdlab.types import FlatFrame

KEPT_ROWS = 40_000  # rows [x, y] of the ways in one frame, so that it stays small however many points there are
LATELY = 400  # steps of the ways in one frame at most
# what losses set against the prediction in place of the drawn noise
RIVALS = {"psi", "psi_null", "minority", "inversion", "interval", "operator", "ref", "source", "neg"}
OWN_MIXTURES = {"neg", "ref"}  # losses with these combine their predictions in ways of their own

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
    terms = {name: _points(events) for name, events in _terms(report, loss).items()}
    return FlatFrame(run, way, report.x.t.cpu().numpy(), terms)


def _terms(report: Report, loss: Distillation) -> dict[str, Tensor]:
    preds = dict(report.guidance.preds)
    terms = dict(preds)
    scale: float = getattr(loss, "cfg", getattr(loss, "sds_cfg", 1.0))
    if {"pos", "uncond"} <= preds.keys() and not preds.keys() & OWN_MIXTURES and scale != 1:
        terms["guided"] = cfg(preds["uncond"], preds["pos"], scale)
    if not preds.keys() & RIVALS:
        terms["noise"] = report.x.noise
    terms["residual"] = report.guidance.residual
    return terms


def _points(events: Tensor) -> np.ndarray:
    """[B, 2, 1, 1] -> [B, 2] in float32."""
    return events.detach().flatten(1).float().cpu().numpy()
