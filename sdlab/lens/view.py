"""One view of one step: render, z_t, x0-hat of every prediction, residual and push."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdlab.lens.ask import ask, ground_of
from sdlab.lens.colours import (
    WIDTHS,
    arrow,
    decodable,
    false_colours,
    heat_map,
    is_pixels,
    is_plane,
    no_pictures,
    round_up,
    shown,
    ways,
)
from sdlab.lens.numbers import SILENT, Place, places
from sdlab.lens.truth import Exact, exact_ones, said
from sdlab.losses import Distillation
from sdlab.pictures import resize, to_uint8
from sdlab.priors.truth import Truth
from sdlab.prompts import PromptBank, prompts_of, views_of
from sdlab.schedule import weight
from sdlab.settings import Settings
from sdlab.step import Report, State, share_cores
from sdlab.types import N_TIMESTEPS, Cameras, Guidance, Noised, Prior

WIDE = 20.0  # the heat map decodes a residual of -20 to 20 times its rms, so wide that nothing is clipped


@dataclass(frozen=True, eq=False)
class LensPictures:
    """One view of one step, or all points of the plane. If there are no pictures, `reason` says why."""

    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()  # a sentence or two each
    pictures: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))  # [K, S, S, 3]
    loss: str = ""
    view: str = ""  # its view word, "" without cameras
    t: int = 0  # of this view or point, like the next three
    alpha: float = 1.0
    sigma: float = 0.0
    weight: float = 0.0  # w(t)
    scale: float = 0.0  # of the heat map, in units of eps: its colours end at plus and minus this; 0 without one
    rms: float = 0.0  # of w(t) residual in this view
    note: str = ""  # for the user
    reason: str = ""
    renders: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))  # all B views [B, S, S, 3]
    views: tuple[str, ...] = ()  # their view words


@torch.no_grad()
def views_of_step(report: Report, s: Settings, prior: Prior, row: int = 0, truth: Truth | None = None) -> LensPictures:
    """Show view `row` of the step of `report`, taken under `s`, with the exact predictions that `truth` has in memory.
    ValueError for a view that does not exist."""
    note = f"skipped: {report.skipped} was not finite" if report.skipped else ""
    rgb = report.render.rgb if report.render is not None else None
    return _seen(report.x, report.cams, rgb, report.guidance, s, prior, row, note, truth)


@torch.no_grad()
def probe(
    state: State,
    s: Settings,
    prior: Prior,
    prompts: PromptBank,
    t: int,
    row: int = 0,
    step: int | None = None,
    truth: Truth | None = None,
) -> LensPictures:
    """Evaluate the active loss on the scene as it is, at timestep `t` in 0 .. 999, with the cameras and the noise of
    step number `step` (None: the next), and show it like `views_of_step`. Nothing is trained. ValueError for a t or
    view that does not exist."""
    if not 0 <= t < N_TIMESTEPS:
        raise ValueError(f"t = {t}: allowed is 0 to {N_TIMESTEPS - 1}")
    share_cores(prior)
    ground = ground_of(state, s, prior, state.step if step is None else step, t)
    guidance, _, note = ask(s.active, ground, state, s, prior, prompts)
    return _seen(ground.x, ground.cams, ground.rgb, guidance, s, prior, row, note, truth)


def _seen(
    x: Noised,
    cams: Cameras,
    rgb: Tensor | None,
    guidance: Guidance,
    s: Settings,
    prior: Prior,
    row: int,
    note: str,
    truth: Truth | None,
) -> LensPictures:
    """Draw view `row` and add what all cameras saw; a scene without cameras has no `rgb`."""
    if not 0 <= row < len(x.z0):
        raise ValueError(f"view {row}: this step has {len(x.z0)}, the first is 0")
    if is_plane(prior):
        return _drawn_on_plane(x, guidance, s, prior, row, note)
    if cams.prompts:
        s = replace(s, prompt=prompts_of(s.prompt, cams)[row])
    if rgb is None:
        return _drawn(x, None, "", guidance, s, prior, row, note, truth)
    views = tuple(views_of(s.prompt, cams))
    drawn = _drawn(x, rgb, views[row], guidance, s, prior, row, note, truth)
    return replace(drawn, renders=to_uint8(rgb), views=views)


class Item(NamedTuple):
    """A picture to be decoded: z [1, C, H, W]."""

    label: str
    caption: str
    z: Tensor


def _drawn(
    x: Noised,
    rgb: Tensor | None,
    view: str,
    guidance: Guidance,
    s: Settings,
    prior: Prior,
    row: int,
    note: str,
    truth: Truth | None,
) -> LensPictures:
    """Draw view `row`, decoding everything in one pass."""
    one = slice(row, row + 1)
    t = int(x.t[row])
    reason = no_pictures(prior)
    if reason:
        return LensPictures(loss=s.active, view=view, t=t, reason=reason)

    asked_at = places(x, guidance, prior)
    exact = {} if truth is None else exact_ones(guidance.preds, asked_at, one, view, s, truth)
    note = "; ".join(n for n in (note, said(exact, s.loss)) if n)
    items = [*_noisy(x, asked_at, s.loss, one), *_guesses(x, guidance, asked_at, s.loss, one, exact)]
    if rgb is None:
        items.insert(0, Item("picture", "as it is", x.z0[one]))
    target = s.loss.one_step_target(x, guidance.residual)[one]
    items.append(Item("one-step target", "where the residual points, all the way in one step", target))

    residual = guidance.residual[one]
    rms = float(residual.square().mean().sqrt())
    wide = max(WIDE * rms, SILENT)
    push = -residual / max(WIDTHS * rms, SILENT)
    linear = [-residual / wide, push] if is_pixels(prior) else []
    decoded = prior.decode(torch.cat([decodable(item.z, prior) for item in items] + linear))
    if linear:
        brightness = wide * (2 * decoded[-2].mean(0) - 1)
        scale = round_up(2.5 * float(brightness.square().mean().sqrt()))
        heat, push = heat_map(brightness / scale, "RdBu_r"), decoded[-1:]
        meaning = f"red: should become brighter, blue: darker; the colours end at {scale:g}"
    else:
        scale = round_up(2 * rms)
        heat, push = heat_map((residual / scale).square().mean((0, 1)).sqrt(), "magma"), false_colours(push)
        meaning = f"its strength at each place; the colours end at {scale:g}"

    w = float(weight(s.schedule, x.alpha, x.sigma)[row])
    size = prior.image_size
    rows = [decoded[: len(items)], *(resize(p.to(decoded), (size, size), smooth=False) for p in (heat, push))]
    words = [
        *((item.label, item.caption) for item in items),
        ("residual", f"in units of eps, root mean square {rms:.2g}: {meaning}"),
        (
            "push",
            f"-w(t) residual, w = {w:.2g}, root mean square {w * rms:.2g}: the change of the image, in colours "
            f"from -{WIDTHS:g} to {WIDTHS:g} times that",
        ),
    ]
    if rgb is not None:
        rows.insert(0, resize(rgb[one].to(decoded), (size, size)))
        words.insert(0, ("render", f"the scene as the loss sees it, {view}"))
    labels, captions = zip(*words, strict=True)
    pictures = shown(torch.cat(rows))
    alpha, sigma = float(x.alpha[row]), float(x.sigma[row])
    return LensPictures(labels, captions, pictures, s.active, view, t, alpha, sigma, w, scale, w * rms, note)


def _drawn_on_plane(x: Noised, guidance: Guidance, s: Settings, prior: Prior, row: int, note: str) -> LensPictures:
    """Draw all points together; t, alpha, sigma and w are those of point `row`."""
    every = slice(None)
    asked_at = places(x, guidance, prior)
    w = weight(s.schedule, x.alpha, x.sigma)
    push = -w * guidance.residual
    items = [
        Item("points", "where they are", x.z0),
        *_noisy(x, asked_at, s.loss, every),
        *_guesses(x, guidance, asked_at, s.loss, every, {}),
        Item(
            "one-step target",
            "where the residual points, all the way in one step",
            s.loss.one_step_target(x, guidance.residual),
        ),
        Item(
            "push",
            f"-w(t) residual, root mean square {float(push.square().mean().sqrt()):.2g}: where the points are pushed, "
            "drawn at the same length for every loss",
            x.z0 + arrow(push),
        ),
    ]
    pictures = np.stack([ways(x.z0, item.z, s, prior) for item in items])
    if bool((x.t != x.t[row]).any()):
        note = "; ".join(
            n for n in (note, f"every point has its own t; t, alpha, sigma and w are those of no. {row}") if n
        )
    labels, captions = zip(*((item.label, item.caption) for item in items), strict=True)
    alpha, sigma, own, rms = (float(v[row]) for v in (x.alpha, x.sigma, w, push.square().mean((1, 2, 3)).sqrt()))
    return LensPictures(labels, captions, pictures, s.active, "", int(x.t[row]), alpha, sigma, own, 0.0, rms, note)


def _noisy(x: Noised, asked_at: dict[str, Place], loss: Distillation, one: slice) -> Iterator[Item]:
    """Yield each distinct noised input of the prior once."""
    drawn: list[Tensor] = []
    for name, place in asked_at.items():
        if any(torch.equal(place.z_t, z) for z in drawn):
            continue
        low, high = int(place.t[one].min()), int(place.t[one].max())
        t = f"{low}" if low == high else f"{low} to {high}"
        what = "with this step's noise" if torch.equal(place.z_t, x.z_t) else loss.term(name).noisy
        label = f"noisy, {loss.term(name).title}" if drawn else "noisy"
        yield Item(label, f"z_t, {what}: the prior's input at t = {t}", place.z_t[one])
        drawn.append(place.z_t)


def _guesses(
    x: Noised,
    guidance: Guidance,
    asked_at: dict[str, Place],
    loss: Distillation,
    one: slice,
    exact: Mapping[str, Exact],
) -> Iterator[Item]:
    """Yield x0-hat of every prediction, followed by its exact counterpart if there is one."""
    for name, place in asked_at.items():
        x0 = ((place.z_t - place.sigma * guidance.preds[name]) / place.alpha)[one]
        term = loss.term(name)
        far = float((x0 - x.z0[one]).square().mean().sqrt())
        yield Item(f"x0: {term.title}", f"x0-hat, {term.caption}; {far:.2g} away from the image", x0)
        if name in exact:
            true = exact[name]
            images = f"images of {true.text!r}" if true.text else "all kinds of images"
            caption = f"E[x0 | z_t] over {images}; the eps beside it is {true.error:.0%} off"
            yield Item(f"exact: {term.title}", caption, true.x0)
