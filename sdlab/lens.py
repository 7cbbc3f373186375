"""The lens: what a loss saw in a step, what it would see at another t, and what the other losses would have said.

    views_of_step   render, z_t, x0-hat of every prediction that the loss used, residual: one view of a step just taken
    probe           the same at a timestep of one's choice, for the scene as it is
    comparison_steps  the gradients of all losses at one state, camera, t and noise, and how far they agree
    figures_of      what a step's predictions have in common, for charts

Everything here looks and changes nothing: a run goes on after it as it would have without, bit for bit. The functions
belong to the thread that owns the state, between two steps.

Colours of a push, w(t) residual with its sign turned: grey stays as it is, what is coloured is pushed towards that
colour. Latents have no colours; there each channel is given one, and the picture is nothing but a pattern. Points of
the plane are drawn where they are, all of a step together, with a line to where they would go.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdlab.auxiliary import score
from sdlab.losses import Distillation
from sdlab.pictures import to_uint8
from sdlab.plane import draw_plane
from sdlab.prompts import PromptBank, views_of
from sdlab.rng import StepRng
from sdlab.scenes import FlatScene
from sdlab.schedule import weight
from sdlab.settings import Settings
from sdlab.step import BUILD_STEP, Reference, Report, State, Stopwatch, bound, look, noised, share_cores
from sdlab.types import N_TIMESTEPS, PERP_ROLES, BoundPrior, Cameras, Guidance, Noised, Prior

LEAST, MOST = 128, 256  # pixels of a picture: smaller ones are enlarged by a whole factor, larger ones reduced
WIDTHS = 3.0  # a push is drawn from -3 to 3 times its root mean square
WIDE = 20.0  # the same for a residual that is decoded to be measured: nothing is cut off
LATENT_REACH = 6.0  # latents beyond it are cut before they are decoded: a VAE in half precision would overflow
FAR = 10.0  # a point of the plane is drawn no farther away
ARROW = 0.3  # how long a push of the plane's points is drawn, in their root mean square
SILENT = 1e-9  # a gradient of this root mean square has no direction

# predictions by name -> what they are called, what they are
PREDICTIONS = {
    "pos": ("prompt", "what the prior makes of it, told the prompt"),
    "uncond": ("no prompt", "what the prior makes of it, told nothing"),
    "neg": ("negative prompt", "what the prior makes of it, told the negative prompt"),
    "target": ("target prompt", "what the prior makes of it, told the target prompt"),
    "source": ("source prompt", "what the prior makes of it, told the source prompt"),
    "psi": ("psi, camera", "what psi, which learns the renders, takes it for from this camera"),
    "psi_null": ("psi, no camera", "what psi takes it for, not told the camera"),
    "operator": ("operator M", "with the noise that M, which learns the renders' noise, finds in it"),
    "minority": ("minority", "what the prior makes of the less likely version, guided"),
    "inversion": ("own noise", "with the noise that the inversion found: the picture itself"),
    "interval": ("an interval before", "what the prior makes of the less noisy picture, told nothing"),
    "ref": ("reference", "what the prior makes of the reference, told its prompt"),
}
# what else than the picture with noise the prior is asked about
NOISY = {
    "ref": "the reference with this step's noise",
    "minority": "the less likely version, noised afresh",
    "interval": "with less of the noise that the loss found for it",
}
# what a loss sets against the prediction, the first that there is; the noise itself where there is none of them
CONTROLS = ("psi", "psi_null", "operator", "minority", "inversion", "interval", "ref", "source", "uncond")
ASKED_ELSEWHERE = ("interval", "minority")  # beside these a step does not keep the z_t that it asked about


@dataclass(frozen=True, eq=False)
class LensPictures:
    """One view of one step, or all points of the plane. Without pictures `reason` says why there are none."""

    labels: tuple[str, ...] = ()
    captions: tuple[str, ...] = ()  # a sentence or two each, for people
    pictures: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))  # [K, S, S, 3]
    loss: str = ""
    view: str = ""  # its view word, "" without cameras
    t: int = 0  # of this view or point, as are the next three
    alpha: float = 1.0
    sigma: float = 0.0
    weight: float = 0.0  # w(t)
    scale: float = 0.0  # of the heat map: its colours end at plus and minus this, in units of eps; 0 without one
    rms: float = 0.0  # of w(t) residual in this view
    note: str = ""  # what one has to know to read it
    reason: str = ""
    renders: np.ndarray = field(default_factory=lambda: np.zeros((0, 1, 1, 3), np.uint8))  # of all B views [B, S, S, 3]
    views: tuple[str, ...] = ()  # their view words


@dataclass(frozen=True, eq=False)
class Comparison:
    """The gradients w(t) residual of L losses at one state, cameras, t and noise, before they are scaled or clipped.
    A loss that could not answer, or that is still to come, has NaN. Points of the plane are B views in one
    picture."""

    losses: tuple[str, ...]  # by kind, L
    titles: tuple[str, ...]
    notes: tuple[str, ...]  # what one has to know of each, "" for nothing
    done: int  # of the L losses
    t: tuple[int, ...]  # of each of the B views
    views: tuple[str, ...]  # what each of the P pictures is called, for cameras their view words
    renders: np.ndarray  # uint8 [P, S, S, 3]
    pictures: np.ndarray  # uint8 [L, P, S, S, 3], each from -3 to 3 times its own root mean square
    rms: np.ndarray  # [L], over all views
    rms_of_views: np.ndarray  # [L, B]
    cosines: np.ndarray  # [L, L], over all views together
    cosines_of_views: np.ndarray  # [B, L, L]
    nfe: tuple[int, ...]  # evaluations of networks for each view
    seconds: tuple[float, ...]
    reason: str = ""  # why there are no pictures, which the figures do not need


class Call(NamedTuple):
    """One forward of the prior: where it was asked and the answers by role."""

    z_t: Tensor
    t: Tensor
    answers: list[Tensor]


class Asked(NamedTuple):
    """What a loss answered, and all that it asked the prior for that."""

    guidance: Guidance
    calls: Sequence[Call]


class Place(NamedTuple):
    """Where a prediction was asked: z_t [B, C, H, W], t [B] and its alpha, sigma [B, 1, 1, 1]."""

    z_t: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


class Ground(NamedTuple):
    """What all losses are shown alike."""

    x: Noised
    cams: Cameras
    rgb: Tensor | None  # [B, 3, H, W], None for a scene of the prior's space
    rng: StepRng
    progress: float


class Watched(BoundPrior):
    """A `BoundPrior` that keeps what it was asked. It asks the network in the batches that the loss in force has
    (`widths` roles at a time, the last filled up), for which it is compiled: a new size would stop the run for long."""

    def __init__(self, plain: BoundPrior, widths: Sequence[int]) -> None:
        super().__init__(
            plain.prior, plain.conds, plain.cams, plain.rng, plain.progress, plain.rescale, plain.perp_weights
        )
        self.calls: list[Call] = []
        self._widths = widths

    def eps(self, z_t: Tensor, t: Tensor, *roles: str) -> list[Tensor]:
        width = len(roles) if len(roles) in self._widths else max(self._widths)
        answers: list[Tensor] = []
        for first in range(0, len(roles), width):
            some = roles[first : first + width]
            answers += super().eps(z_t, t, *some, *some[-1:] * (width - len(some)))[: len(some)]
            self.nfe -= width - len(some)  # what a batch is filled up with is no need of the loss
        self.calls.append(Call(z_t, t, answers))
        return answers


class Untrained:
    """psi before its first lesson, when it answers as the prior does, with a camera or without; nothing is built."""

    fitted = 0

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """As `sdlab.auxiliary.score.Score.ask`."""
        (answer,) = model.eps(x.z_t, x.t, score.ROLE)
        model.nfe += len(cameras) - 1
        return [answer] * len(cameras)


# ---- one loss ---------------------------------------------------------------------------------------------------


@torch.no_grad()
def views_of_step(report: Report, s: Settings, prior: Prior, row: int = 0, asked: Asked | None = None) -> LensPictures:
    """View `row` of the step that `report` tells of, taken under `s`. ISM and JSD ask about pictures that a step does
    not keep: their predictions are shown with what `asked_again` answers only. ValueError for a view that there is
    not."""
    ground = Ground(report.x, report.cams, report.render.rgb if report.render is not None else None, StepRng(0, 0), 0.0)
    guidance, calls, note = report.guidance, (), ""
    if asked is not None and _same(asked.guidance, guidance):
        guidance, calls = asked
    elif any(name in guidance.preds for name in ASKED_ELSEWHERE):
        note = "this loss asks about pictures of its own, which its step does not keep"
    if report.skipped:
        note = "; ".join(n for n in (f"skipped: {report.skipped} was not finite", note) if n)
    return _among_all_views(_drawn(ground, guidance, calls, s, prior, row, note), ground, s)


@torch.no_grad()
def asked_again(report: Report, s: Settings, prior: Prior, prompts: PromptBank, step: int) -> Asked | None:
    """The question of step number `step`, which `report` tells of, put once more, to see all that was asked: of the
    losses that need it, None for the others, whose report says it all. As dear as the step's own predictions."""
    if not any(name in report.guidance.preds for name in ASKED_ELSEWHERE):
        return None
    share_cores(prior)
    model = bound(prior, s, prompts, report.cams, StepRng(s.seed, step), s.progress(step))
    watched = Watched(model, _widths(s))
    return Asked(s.loss.gradient(report.x, watched, None), watched.calls)


@torch.no_grad()
def probe(
    state: State, s: Settings, prior: Prior, prompts: PromptBank, t: int, row: int = 0, step: int | None = None
) -> LensPictures:
    """What the loss in force makes of the scene as it is at timestep `t` in 0 .. 999, with the cameras and the noise
    of step number `step` (None: of the next). Nothing is trained. ValueError for a t or a view that there is not."""
    if not 0 <= t < N_TIMESTEPS:
        raise ValueError(f"t = {t}: allowed is 0 to {N_TIMESTEPS - 1}")
    share_cores(prior)
    ground = _ground(state, s, prior, state.step if step is None else step, t)
    asked, _, note = _ask(s.active, ground, state, s, prior, prompts)
    return _among_all_views(_drawn(ground, asked.guidance, asked.calls, s, prior, row, note), ground, s)


def _among_all_views(seen: LensPictures, ground: Ground, s: Settings) -> LensPictures:
    """With what all cameras saw; scenes without cameras have nothing to add."""
    if ground.rgb is None:
        return seen
    return replace(seen, renders=to_uint8(ground.rgb), views=tuple(views_of(s.prompt, ground.cams)))


def _ground(state: State, s: Settings, prior: Prior, step: int, t: int | None = None) -> Ground:
    """The scene through the cameras of `step`, noised to `t` or to what the schedule draws."""
    rng, progress = StepRng(s.seed, step), s.progress(step)
    # a scene of the prior's space may remember what it drew last
    scene = copy.deepcopy(state.scene) if isinstance(state.scene, FlatScene) else state.scene
    cams, render, z = look(scene, s, prior, rng, Stopwatch())
    x = noised(z, s, rng, prior, progress)
    if t is not None:
        levels = torch.full_like(x.t, t)
        alpha, sigma = prior.marginal(levels)
        x = x._replace(t=levels, alpha=alpha, sigma=sigma, z_t=alpha * x.z0 + sigma * x.noise)
    return Ground(x, cams, render.rgb if render is not None else None, rng, progress)


def _ask(
    name: str, ground: Ground, state: State, s: Settings, prior: Prior, prompts: PromptBank
) -> tuple[Asked, int, str]:
    """What the loss `name` answers with its own knobs, how many evaluations that took, and what one has to know."""
    own = s.patch("active", name)
    loss, notes = own.loss, []
    x, reference = ground.x, None
    if loss.needs_reference:
        reference = state.reference if state.reference is not None and state.reference.key == loss.aux_key() else None
        if reference is None:
            x = x._replace(ref=x.z0)
            reference = Reference(state.scene, s.prompt, loss.aux_key())
            notes.append("compares with the scene as it is now: zero")
        else:
            x = x._replace(ref=look(reference.scene, s, prior, ground.rng, Stopwatch()).z)
    model = bound(prior, own, prompts, ground.cams, ground.rng, ground.progress, reference)
    watched = Watched(model, _widths(s))
    aux = _auxiliary(loss, state, prior, s)
    if aux is not None and (aux.fitted == 0 or aux.fitted < loss.warm_up_steps()):
        learnt = f"has learnt {aux.fitted} of {loss.warm_up_steps()} steps" if aux.fitted else "is not trained yet"
        notes.append(f"its own network {learnt}")
    parked = loss.aux_name() != s.loss.aux_name()  # a session keeps it in the computer's memory then
    with _lent(aux, prior.device, back=torch.device("cpu") if parked else prior.device):
        guidance = loss.gradient(x, watched, aux)
    return Asked(guidance, watched.calls), watched.nfe, "; ".join(notes)


def _auxiliary(loss: Distillation, state: State, prior: Prior, s: Settings) -> Any:
    """The auxiliary of `loss`: the state's, or a new one that the state does not get to see."""
    if state.aux_keys.get(loss.aux_name()) == loss.aux_key():
        return state.aux.get(loss.aux_name())
    if isinstance(loss, score.TrainsScore) and loss.network != score.EXACT:
        return Untrained()
    return loss.init_aux(prior, StepRng(s.seed, BUILD_STEP))


@contextmanager
def _lent(aux: Any, device: torch.device, back: torch.device) -> Iterator[None]:
    """`aux` on `device` for a while; it comes `back` without what it remembers of the answers that it gave."""
    if aux is None or isinstance(aux, Untrained):
        yield
        return
    before = dict(vars(aux))
    aux.to(device)
    try:
        yield
    finally:
        aux.to(back)
        vars(aux).clear()
        vars(aux).update(before)


def _widths(s: Settings) -> tuple[int, ...]:
    """How many roles at a time the network is compiled for under `s`."""
    return (*s.loss.calls(), *([1 + len(PERP_ROLES)] if s.perp_neg else []))


def _same(a: Guidance, b: Guidance) -> bool:
    """Whether both are answers of one loss to one question; on a GPU twice the same is not the same to the last bit."""
    if a.preds.keys() != b.preds.keys() or a.residual.shape != b.residual.shape:
        return False
    error = (a.residual - b.residual).square().mean().sqrt()
    return bool(error <= 1e-2 * b.residual.square().mean().sqrt())


# ---- where predictions were asked, and what follows --------------------------------------------------------------


def places(x: Noised, guidance: Guidance, calls: Sequence[Call], prior: Prior) -> dict[str, Place]:
    """Where each of the predictions was asked, so that x0-hat = (z_t - sigma eps) / alpha; those of which that is not
    known are left out."""
    here = Place(x.z_t, x.t, x.alpha, x.sigma)
    own = "inversion" if "inversion" in guidance.preds else "source" if "displacement" in guidance.stats else ""
    if own:  # the loss found noise for the picture, and asked about the two together
        here = here._replace(z_t=x.alpha * x.z0 + x.sigma * guidance.preds[own])
    elsewhere = any(name in guidance.preds for name in ASKED_ELSEWHERE)
    found: dict[str, Place] = {}
    for name, eps in guidance.preds.items():
        call = None if own else next((c for c in calls if any(eps is answer for answer in c.answers)), None)
        if call is None and name == "minority" and calls:
            call = calls[-1]  # a guided prediction, which is made of the last answers
        if call is not None:
            found[name] = Place(call.z_t, call.t, *prior.marginal(call.t))
        elif name == "ref" and x.ref is not None:
            found[name] = here._replace(z_t=x.alpha * x.ref + x.sigma * x.noise)
        elif not elsewhere:
            found[name] = here
    return found


def one_step_target(x: Noised, loss: Distillation, residual: Tensor) -> Tensor:
    """z0 less the residual, as far as a difference of two eps says that the two x0-hat lie apart [B, C, H, W]. For SDS
    and SDI this is x0-hat of the guided prediction."""
    ratio = x.sigma / x.alpha
    if loss.kind == "sdi" or (loss.kind == "jsd" and getattr(loss, "form", "") == "code"):
        return x.z0 - residual  # which holds sigma / alpha already
    if loss.kind == "jsd":  # which holds alpha / sigma
        return x.z0 - ratio**2 * residual
    return x.z0 - ratio * residual


def figures_of(report: Report) -> dict[str, Tensor]:
    """What a step's predictions have in common, 0-d each and left on the device:

    noise_correlation    Pearson's, of the prediction told the prompt and the noise in z_t
    control_correlation  of it and what the loss sets against it: the noise (SDS), psi, M, the minority sample, ...
                         (a control variate: the closer to 1, the calmer their difference; Do and Hua 2025)
    guidance_rms         root mean square of what the prompt changes, eps_c - eps_u
    guidance_share       cosine of that and the residual: 1 where guidance is all there is to the gradient
    """
    preds = report.guidance.preds
    eps = preds.get("pos", preds.get("target"))
    if eps is None:
        return {}
    has_own_noise = "displacement" in report.guidance.stats or "inversion" in preds
    figures = {}
    if not has_own_noise and not any(name in preds for name in ASKED_ELSEWHERE):
        figures["noise_correlation"] = correlation(eps, report.x.noise)
    controls = CONTROLS if "neg" in preds else CONTROLS[:-1]  # where a negative prompt is asked, noise has no part
    control = next((preds[name] for name in controls if name in preds), report.x.noise)
    figures["control_correlation"] = correlation(eps, control)
    without = next((preds[name] for name in ("uncond", "source", "neg") if name in preds), None)
    if without is not None:
        shift = eps - without
        figures["guidance_rms"] = shift.square().mean().sqrt()
        figures["guidance_share"] = _cosine(shift, report.guidance.residual)
    return figures


def sizes_of(report: Report) -> dict[str, Tensor]:
    """The root mean square of every prediction of a step by its name, and of the "noise"; 0-d each."""
    named = {**report.guidance.preds, "noise": report.x.noise}
    return {name: eps.square().mean().sqrt() for name, eps in named.items()}


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's over everything; 0-d, 0 where one of the two is the same everywhere."""
    return _cosine(a - a.mean(), b - b.mean())


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    a, b = a.float(), b.float()
    return (a * b).sum() / (a.square().sum() * b.square().sum()).sqrt().clamp_min(1e-20)


# ---- pictures ---------------------------------------------------------------------------------------------------


def is_pixels(prior: Prior) -> bool:
    """Whether the prior's space is made of pixels, or of blocks of them, so that decoding is linear."""
    channels, height, width = prior.shape
    block = prior.image_size // max(height, width)
    return channels == 3 * block**2 and block * max(height, width) == prior.image_size


def is_plane(prior: Prior) -> bool:
    """Whether events are points of the plane."""
    return tuple(prior.shape) == (2, 1, 1)


def _no_pictures(prior: Prior) -> str:
    """Why events of this prior cannot be seen, "" if they can."""
    if prior.shape[0] != 3 and prior.name == "mixture" and not is_plane(prior):
        return f"events of {prior.shape[0]} channels are not pictures: prior.channels = 3 makes them so"
    return ""


class Item(NamedTuple):
    """A picture to come: z [1, C, H, W]."""

    label: str
    caption: str
    z: Tensor


def _drawn(
    ground: Ground,
    guidance: Guidance,
    calls: Sequence[Call],
    s: Settings,
    prior: Prior,
    row: int,
    note: str,
) -> LensPictures:
    """View `row`; all that must be decoded goes through the prior at once."""
    x = ground.x
    if not 0 <= row < len(x.z0):
        raise ValueError(f"view {row}: this step has {len(x.z0)}, the first is 0")
    if is_plane(prior):
        return _drawn_on_plane(x, guidance, calls, s, prior, row, note)
    one = slice(row, row + 1)
    t = int(x.t[row])
    view = "" if ground.rgb is None else views_of(s.prompt, ground.cams[one])[0]
    reason = _no_pictures(prior)
    if reason:
        return LensPictures(loss=s.active, view=view, t=t, reason=reason)

    asked_at = places(x, guidance, calls, prior)
    items = [*_noisy(x, asked_at, one), *_guesses(x, guidance, asked_at, one)]
    if ground.rgb is None:
        items.insert(0, Item("picture", "as it is", x.z0[one]))
    target = one_step_target(x, s.loss, guidance.residual)[one]
    items.append(Item("one-step target", "where the residual points, all the way in one step", target))

    residual = guidance.residual[one]
    rms = float(residual.square().mean().sqrt())
    wide = max(WIDE * rms, SILENT)
    push = -residual / max(WIDTHS * rms, SILENT)
    linear = [-residual / wide, push] if is_pixels(prior) else []
    decoded = prior.decode(torch.cat([_decodable(item.z, prior) for item in items] + linear))
    if linear:
        brightness = wide * (2 * decoded[-2].mean(0) - 1)
        scale = _round_up(2.5 * float(brightness.square().mean().sqrt()))
        heat, push = _heat(brightness / scale, "RdBu_r"), decoded[-1:]
        meaning = f"red: to become brighter, blue: darker; the colours end at {scale:g}"
    else:
        scale = _round_up(2 * rms)
        heat, push = _heat((residual / scale).square().mean((0, 1)).sqrt(), "magma"), false_colours(push)
        meaning = f"how strong it is at each place; the colours end at {scale:g}"

    w = float(weight(s.schedule, x.alpha, x.sigma)[row])
    size = prior.image_size
    rgb = [decoded[: len(items)], *(_of_size(p.to(decoded), size, "nearest") for p in (heat, push))]
    words = [
        *((item.label, item.caption) for item in items),
        ("residual", f"in units of eps, root mean square {rms:.2g}: {meaning}"),
        (
            "push",
            f"-w(t) residual, w = {w:.2g}, root mean square {w * rms:.2g}: what is added to the picture, in colours "
            f"from -{WIDTHS:g} to {WIDTHS:g} times that",
        ),
    ]
    if ground.rgb is not None:
        rgb.insert(0, _of_size(ground.rgb[one].to(decoded), size))
        words.insert(0, ("render", f"the scene as the loss sees it, {view}"))
    labels, captions = zip(*words, strict=True)
    pictures = _shown(torch.cat(rgb))
    alpha, sigma = float(x.alpha[row]), float(x.sigma[row])
    return LensPictures(labels, captions, pictures, s.active, view, t, alpha, sigma, w, scale, w * rms, note)


def _drawn_on_plane(
    x: Noised, guidance: Guidance, calls: Sequence[Call], s: Settings, prior: Prior, row: int, note: str
) -> LensPictures:
    """All points together; t and what follows from it are those of point `row`."""
    every = slice(None)
    asked_at = places(x, guidance, calls, prior)
    w = weight(s.schedule, x.alpha, x.sigma)
    push = -w * guidance.residual
    items = [
        Item("points", "where they are", x.z0),
        *_noisy(x, asked_at, every),
        *_guesses(x, guidance, asked_at, every),
        Item(
            "one-step target",
            "where the residual points, all the way in one step",
            one_step_target(x, s.loss, guidance.residual),
        ),
        Item(
            "push",
            f"-w(t) residual, root mean square {float(push.square().mean().sqrt()):.2g}: where the points are pushed, "
            "drawn at one length for all losses",
            x.z0 + _arrow(push),
        ),
    ]
    pictures = np.stack([_ways(x.z0, item.z, s, prior) for item in items])
    if bool((x.t != x.t[row]).any()):
        note = "; ".join(
            n for n in (note, f"every point has a t of its own; t, alpha, sigma and w are of no. {row}") if n
        )
    labels, captions = zip(*((item.label, item.caption) for item in items), strict=True)
    alpha, sigma, own, rms = (float(v[row]) for v in (x.alpha, x.sigma, w, push.square().mean((1, 2, 3)).sqrt()))
    return LensPictures(labels, captions, pictures, s.active, "", int(x.t[row]), alpha, sigma, own, 0.0, rms, note)


def _arrow(push: Tensor) -> Tensor:
    """A push of the plane's points [B, 2, 1, 1] as long as it is drawn."""
    return push * (ARROW / push.square().mean().sqrt().clamp_min(SILENT))


def _ways(start: Tensor, end: Tensor, s: Settings, prior: Prior) -> np.ndarray:
    """Points of the plane [B, 2, 1, 1] with the straight way to `end`: uint8 [s, s, 3]."""
    way = torch.stack([start, end.clamp(-FAR, FAR)]).flatten(2).float().cpu().numpy()
    return _reduced(draw_plane(prior, prior.embed(s.prompt.text), way))


def _noisy(x: Noised, asked_at: dict[str, Place], one: slice) -> Iterator[Item]:
    """What the prior was asked about, each of it once."""
    drawn: list[Tensor] = []
    for name, place in asked_at.items():
        if any(torch.equal(place.z_t, z) for z in drawn):
            continue
        low, high = int(place.t[one].min()), int(place.t[one].max())
        t = f"{low}" if low == high else f"{low} to {high}"
        if torch.equal(place.z_t, x.z_t):
            what = "with this step's noise"
        else:
            what = NOISY.get(name, "with the noise that the loss found for it")
        label = f"noisy, {PREDICTIONS.get(name, (name,))[0]}" if drawn else "noisy"
        yield Item(label, f"z_t, {what}: what the prior is asked about at t = {t}", place.z_t[one])
        drawn.append(place.z_t)


def _guesses(x: Noised, guidance: Guidance, asked_at: dict[str, Place], one: slice) -> Iterator[Item]:
    """x0-hat of every prediction of which it is known where it was asked."""
    for name, place in asked_at.items():
        x0 = ((place.z_t - place.sigma * guidance.preds[name]) / place.alpha)[one]
        label, what = PREDICTIONS.get(name, (name, f"with the prediction {name}"))
        far = float((x0 - x.z0[one]).square().mean().sqrt())
        yield Item(f"x0: {label}", f"x0-hat, {what}; {far:.2g} away from the picture", x0)


def _decodable(z: Tensor, prior: Prior) -> Tensor:
    return z if is_pixels(prior) else z.clamp(-LATENT_REACH, LATENT_REACH)


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, ..., so that colours keep their meaning from step to step; 1 for what is not above 0."""
    if not np.isfinite(value) or value <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(value))
    return float(next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9)))


def _heat(values: Tensor, colours: str) -> Tensor:
    """[H, W] in [-1, 1] for RdBu_r, in [0, 1] for magma -> rgb [1, 3, H, W]."""
    from matplotlib import colormaps

    at = values.float().cpu().nan_to_num().numpy()
    rgb = colormaps[colours](at / 2 + 0.5 if colours == "RdBu_r" else at)[..., :3]
    return torch.from_numpy(np.ascontiguousarray(rgb)).float().permute(2, 0, 1)[None]


def false_colours(z: Tensor) -> Tensor:
    """[B, C, H, W] -> rgb [B, 3, H, W], grey for 0: each channel has a colour of its own, spread by three cosines."""
    channels = z.shape[1]
    waves = torch.tensor([1, channels // 2, channels - 1], device=z.device)
    at = (torch.arange(channels, device=z.device) + 0.5) / channels
    colours = torch.cos(torch.pi * waves[:, None] * at) * (2 / channels) ** 0.5
    return (0.5 + 0.5 * torch.einsum("kc,bchw->bkhw", colours.to(z), z)).clamp(0, 1)


def push_colours(grad: Tensor, prior: Prior) -> Tensor:
    """A gradient [B, C, H, W] with its sign turned as rgb [B, 3, h, w], each in units of its own root mean square."""
    push = -grad / (WIDTHS * grad.square().mean((1, 2, 3), keepdim=True).sqrt()).clamp_min(SILENT)
    return prior.decode(push) if is_pixels(prior) else false_colours(push)


def _of_size(rgb: Tensor, size: int, mode: str = "bilinear") -> Tensor:
    if tuple(rgb.shape[-2:]) == (size, size):
        return rgb
    if mode == "nearest":
        return F.interpolate(rgb, (size, size), mode="nearest")
    return F.interpolate(rgb, (size, size), mode="bilinear", align_corners=False, antialias=True)


def _shown(rgb: Tensor) -> np.ndarray:
    """rgb [K, 3, S, S] -> uint8 [K, s, s, 3] with LEAST <= s <= MOST, or a little more."""
    size = rgb.shape[-1]
    if size > MOST:
        rgb = _of_size(rgb.float(), MOST)
    pictures = to_uint8(rgb)
    times = -(-LEAST // pictures.shape[1])
    return pictures.repeat(times, 1).repeat(times, 2)


def _reduced(picture: np.ndarray) -> np.ndarray:
    """uint8 [S, S, 3], of at most MOST pixels."""
    return _shown(torch.from_numpy(picture.copy()).permute(2, 0, 1)[None] / 255)[0]


# ---- all losses -------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """What one loss answered: its gradient [B, C, H, W] in float64 on the CPU, None where it could not."""

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
    """The gradients of the losses `names` (None: of all), each with its own knobs, for the scene as it is now and the
    cameras, t and noise of step number `step` (None: of the next).

    Looks at the scene first, then asks one loss for each item: what has been found so far, the last one is whole. The
    run may go on in between; the scene stays what it was, only a psi that is learning meanwhile has learnt more. To be
    given up when the prior or the scene is another one. A loss that raises is listed with its reason; ValueError for a
    name that is none of a loss.
    """
    names = tuple(s.losses) if names is None else tuple(names)
    for name in names:
        s.patch("active", name)  # ValueError for one that there is not
    share_cores(prior)
    with torch.no_grad():
        ground = _ground(state, s, prior, state.step if step is None else step)
        w = weight(s.schedule, ground.x.alpha, ground.x.sigma)
        reason = _no_pictures(prior)
        renders = None
        if is_plane(prior):
            renders = _ways(ground.x.z0, ground.x.z0, s, prior)[None]
        elif not reason:
            rgb = prior.decode(_decodable(ground.x.z0, prior)) if ground.rgb is None else ground.rgb
            renders = _shown(_of_size(rgb, prior.image_size))
    rows: list[_Row] = []
    for name in names:
        share_cores(prior)
        rows.append(_row(name, ground, w, state, s, prior, prompts, draw=not reason))
        yield _compared(names, rows, ground, s, renders, reason)


def compare_losses(
    state: State,
    s: Settings,
    prior: Prior,
    prompts: PromptBank,
    names: Sequence[str] | None = None,
    step: int | None = None,
) -> Comparison:
    """All of `comparison_steps` at once. ValueError when no loss is named."""
    found = list(comparison_steps(state, s, prior, prompts, names, step))
    if not found:
        raise ValueError("no loss to compare: name one at least")
    return found[-1]


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
        asked, nfe, note = _ask(name, ground, state, s, prior, prompts)
        grad = w * asked.guidance.residual
        kept = grad.double().cpu() if grad.device.type != "mps" else grad.cpu().double()
        seconds = time.perf_counter() - started
        if not bool(torch.isfinite(kept).all()):
            return _Row(f"not finite at t = {ground.x.t.tolist()}", nfe=nfe, seconds=seconds)
        picture = _pushes(grad, ground.x, s, prior) if draw else None
        return _Row(note, kept, picture, nfe, seconds)
    except Exception as e:
        return _Row(f"{type(e).__name__}: {e}", seconds=time.perf_counter() - started)


def _pushes(grad: Tensor, x: Noised, s: Settings, prior: Prior) -> np.ndarray:
    """A gradient [B, C, H, W] with its sign turned as pictures, uint8 [P, s, s, 3]."""
    if is_plane(prior):
        return _ways(x.z0, x.z0 + _arrow(-grad), s, prior)[None]
    return _shown(_of_size(push_colours(grad, prior), prior.image_size, "nearest"))


def _compared(
    names: tuple[str, ...], rows: list[_Row], ground: Ground, s: Settings, renders: np.ndarray | None, reason: str
) -> Comparison:
    """What is known after the losses of `rows`, the first of `names`."""
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
        ("",) * len(blank) if ground.rgb is None else tuple(views_of(s.prompt, ground.cams)),
        blank if renders is None else renders,
        np.stack(drawn),
        flat.square().mean((1, 2)).sqrt().numpy(),
        flat.square().mean(2).sqrt().numpy(),
        cosines(flat.flatten(1)).numpy(),
        cosines(flat.transpose(0, 1)).numpy(),
        tuple(row.nfe for row in rows),
        tuple(row.seconds for row in rows),
        reason,
    )


def cosines(rows: Tensor) -> Tensor:
    """[..., L, D] -> [..., L, L]; NaN for rows that are zero or not numbers."""
    rms = rows.square().mean(-1, keepdim=True).sqrt()
    unit = torch.where(rms > SILENT, rows / rms, torch.nan) / rows.shape[-1] ** 0.5
    between = (unit @ unit.mT).clamp(-1, 1)
    own = between.diagonal(dim1=-2, dim2=-1)
    own.copy_(torch.where(own.isnan(), own, 1.0))  # not a rounding error less
    return between
