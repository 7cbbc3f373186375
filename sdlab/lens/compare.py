"""The gradients of all losses at one state, camera, t and noise, and how far they agree."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdlab.lens.ask import Ground, ask, ground_of
from sdlab.lens.colours import arrow, decodable, is_plane, no_pictures, push_colours, shown, ways
from sdlab.lens.numbers import cosines
from sdlab.pictures import resize
from sdlab.prompts import PromptBank, names_of, views_of
from sdlab.schedule import weight
from sdlab.settings import Settings
from sdlab.step import State, share_cores
from sdlab.types import Noised, Prior


@dataclass(frozen=True, eq=False)
class Comparison:
    """The gradients w(t) residual of L losses at one state, cameras, t and noise, before scaling and clipping.

    NaN marks a loss that failed or is not evaluated yet. Points of the plane are B views in one picture.
    """

    losses: tuple[str, ...]  # by kind, L
    titles: tuple[str, ...]
    notes: tuple[str, ...]  # for the user, "" for none
    done: int  # losses evaluated so far
    t: tuple[int, ...]  # of each of the B views
    views: tuple[str, ...]  # names of the P pictures; for cameras their view words
    renders: np.ndarray  # uint8 [P, S, S, 3]
    pictures: np.ndarray  # uint8 [L, P, S, S, 3], each from -3 to 3 times its own root mean square
    rms: np.ndarray  # [L], over all views
    cosines: np.ndarray  # [L, L], over all views together
    nfe: tuple[int, ...]  # network evaluations per view
    seconds: tuple[float, ...]
    reason: str = ""  # why there are no pictures; the numbers do not need any


@dataclass
class _Row:
    """The result of one loss: its gradient [B, C, H, W] in float64 on the CPU, None if it failed."""

    note: str = ""
    grad: Tensor | None = None
    picture: np.ndarray | None = None
    nfe: int = 0
    seconds: float = 0.0


def comparison_steps(
    state: State,
    s: Settings,
    prior: Prior,
    prompts: PromptBank,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> Iterator[Comparison]:
    """Compare the gradients of the losses `names` (None: all), each with its own knobs, for the scene as it is now and
    the cameras, t and noise of step number `step` (None: the next).

    Render the scene first, then evaluate one loss per item and yield all results so far; the last item is complete. The
    run may continue in between: the scene stays as rendered, but a psi in training will have moved on. Abandon the
    iterator when the prior or the scene is replaced. A loss that raises is listed with the reason; ValueError for an
    unknown name.
    """
    names = tuple(s.losses) if names is None else tuple(names)
    for name in names:
        s.patch("active", name)  # ValueError for an unknown name
    share_cores(prior)
    with torch.no_grad():
        ground = ground_of(state, s, prior, state.step if step is None else step)
        w = weight(s.schedule, ground.x.alpha, ground.x.sigma)
        reason = no_pictures(prior)
        renders = None
        if is_plane(prior):
            renders = ways(ground.x.z0, ground.x.z0, s, prior)[None]
        elif not reason:
            rgb = prior.decode(decodable(ground.x.z0, prior)) if ground.rgb is None else ground.rgb
            renders = shown(resize(rgb, (prior.image_size, prior.image_size)))
    rows: list[_Row] = []
    for name in names:
        share_cores(prior)
        rows.append(_row(name, ground, w, state, s, prior, prompts, draw=not reason))
        yield _compared(names, rows, ground, s, renders, reason)


@torch.no_grad()
def _row(
    name: str,
    ground: Ground,
    w: Tensor,
    state: State,
    s: Settings,
    prior: Prior,
    prompts: PromptBank,
    draw: bool,
) -> _Row:
    started = time.perf_counter()
    try:
        guidance, nfe, note = ask(name, ground, state, s, prior, prompts)
        grad = w * guidance.residual
        kept = grad.double().cpu() if grad.device.type != "mps" else grad.cpu().double()
        seconds = time.perf_counter() - started
        if not bool(torch.isfinite(kept).all()):
            return _Row(f"not finite at t = {ground.x.t.tolist()}", nfe=nfe, seconds=seconds)
        picture = _pushes(grad, ground.x, s, prior) if draw else None
        return _Row(note, kept, picture, nfe, seconds)
    except Exception as e:
        return _Row(f"{type(e).__name__}: {e}", seconds=time.perf_counter() - started)


def _pushes(grad: Tensor, x: Noised, s: Settings, prior: Prior) -> np.ndarray:
    """Draw the negative of a gradient [B, C, H, W], uint8 [P, s, s, 3]."""
    if is_plane(prior):
        return ways(x.z0, x.z0 + arrow(-grad), s, prior)[None]
    return shown(resize(push_colours(grad, prior), (prior.image_size, prior.image_size), smooth=False))


def _compared(
    names: tuple[str, ...], rows: list[_Row], ground: Ground, s: Settings, renders: np.ndarray | None, reason: str
) -> Comparison:
    """Collect `rows`, the results of the first losses in `names`."""
    n, b = len(names), len(ground.x.z0)
    blank = np.zeros((b, 1, 1, 3), np.uint8) if renders is None else np.full_like(renders, 128)
    rows = rows + [_Row() for _ in range(n - len(rows))]
    drawn = [blank if row.picture is None else row.picture for row in rows]
    flat = torch.full((n, b, ground.x.z0[0].numel()), torch.nan, dtype=torch.float64)
    for i, row in enumerate(rows):
        if row.grad is not None:
            flat[i] = row.grad.flatten(1)
    return Comparison(
        names,
        tuple(s.losses[name].title for name in names),
        tuple(row.note for row in rows),
        sum(row.seconds > 0 for row in rows),
        tuple(ground.x.t.tolist()),
        _names(len(blank), ground, s),
        blank if renders is None else renders,
        np.stack(drawn),
        flat.square().mean((1, 2)).sqrt().numpy(),
        cosines(flat.flatten(1)).numpy(),
        tuple(row.nfe for row in rows),
        tuple(row.seconds for row in rows),
        reason,
    )


def _names(pictures: int, ground: Ground, s: Settings) -> tuple[str, ...]:
    """Return the names of the pictures; points of the plane are views in one picture."""
    if ground.rgb is not None:
        return tuple(views_of(s.prompt, ground.cams))
    names = names_of(s.prompt, ground.cams)
    return names if len(names) == pictures else ("",) * pictures
