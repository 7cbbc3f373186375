"""The renders' own score, trained alongside the scene; VSD, ESD and ASD subtract it from the prior's.

psi starts as the prior, or from scratch if the prior has no network, and is trained on the renders (Wang et al. 2023,
ProlificDreamer, eq. 9), given the camera c or, for a fraction p_null of the renders, without it (ESD, Algorithm 1):

    min_psi E || eps_psi(alpha z0 + sigma noise, t, y, c or none) - noise ||^2

with its own timestep from 0 .. 999 and its own noise, as in the released code, and in the units of the network's native
prediction. y is the prompt without a view word, since c already gives the viewpoint.

The camera is the 4 x 4 matrix from camera to world, its translation in units of the scene's radius, which is 1 here;
"none" is sixteen zeros.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sdlab.auxiliary.fitted import FittedNet, initialised
from sdlab.channel import rest
from sdlab.knobs import knob
from sdlab.rng import StepRng
from sdlab.transfer import upload
from sdlab.types import (
    CAMERA_WIDTH,
    N_TIMESTEPS,
    BoundPrior,
    Cameras,
    Cond,
    Guidance,
    Noised,
    Prior,
    Term,
    cat_conds,
    cond_rows,
)

EXACT = "exact"
NETWORKS = ("lora", "copy", EXACT)
ROLE = "plain"
PSI = Term(
    "psi",
    "psi_c",
    "psi, camera",
    "the estimate of psi, trained on the renders, given this camera",
    "minus the renders' score, by camera",
    subtracted=True,
    colour="teal",
    formula="eps_psi(camera)",
)
PSI_NULL = Term(
    "psi_null",
    "psi",
    "psi, no camera",
    "the estimate of psi, not given the camera",
    "minus the renders' score, over all",
    subtracted=True,
    colour="lime",
    formula="eps_psi(none)",
)
AUX_NAME = "score"  # shared by the losses that train psi in the same way


class Score(FittedNet):
    """eps_psi with its AdamW (betas as in the released code)."""

    def __init__(self, prior: Prior, how: str, rank: int, lr: float, rng: StepRng) -> None:
        self._psi: Any = initialised(lambda: prior.trainable(how, rank), rng, "score")
        super().__init__(self._psi, lr, betas=(0.9, 0.99), weight_decay=0.01)

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """Return eps_psi at x.z_t with the camera (True) or without it, one [B, C, H, W] per entry of `cameras`,
        without gradient."""
        model.nfe += len(cameras)
        seen = _cameras_of(x.z0, model)
        batches = [_Batch(x.z_t, x.t, seen if with_camera else torch.zeros_like(seen)) for with_camera in cameras]
        with torch.no_grad():
            return [self._psi.eps(out, x.z_t, x.t) for out in self._predict(batches, model)]

    def learn(
        self,
        x: Noised,
        model: BoundPrior,
        lr: float,
        p_null: float,
        lessons: int,
        every: int = 1,
        gamma: float = 0.0,
    ) -> None:
        """Take `lessons` training steps on the renders x.z0, hiding each render's camera with probability `p_null`.

        With `every` = n above 1, psi trains only in every n-th step of the scene, and then on n noises per render: one
        large batch costs far less than n small ones. `gamma` weights the distance to the prior's own prediction (ASD).
        """
        if model.rng.step > 0 and model.rng.step % every:  # steps below 0 belong to the warm-up
            return
        seen = _cameras_of(x.z0, model)
        for k in range(lessons):
            rest()
            draws = [self._draw(x, model, seen, k * every + j, p_null, gamma) for j in range(every)]
            self._lesson(x.z0, draws, cat_conds([model.conds[ROLE]] * every), lr, gamma)
            model.nfe += every

    def _lesson(
        self, z0: Tensor, draws: Sequence[tuple[_Batch, Tensor, Tensor | None]], cond: Cond, lr: float, gamma: float
    ) -> None:
        """Take one training step on the draws from the renders z0."""
        batches, noises, rivals = zip(*draws, strict=True)
        z_t, t, camera = _joined(batches)
        z0, noise = z0.repeat(len(draws), 1, 1, 1), torch.cat(noises)
        rival = None if gamma == 0.0 else torch.cat(rivals)

        def error(rows: slice) -> Tensor:
            """Return the share of some rows in the training loss."""
            out = self._psi.predict(z_t[rows], t[rows], cond_rows(cond, rows), camera[rows])
            other = None if rival is None else rival[rows]
            errors = self._psi.errors(out, z0[rows], noise[rows], t[rows], other, gamma)
            # a sum over entries, so that half-precision gradients do not vanish; Adam is invariant to the factor
            return errors.sum() / len(z0) * z0[0].numel()

        half = len(z0) // 2
        if half and self._psi.learns_in_two():
            self.descend_in_two(lambda: error(slice(0, half)), lambda: error(slice(half, None)), lr)
        else:
            with torch.enable_grad():
                self.descend(error(slice(None)), lr)

    @staticmethod
    def _draw(
        x: Noised, model: BoundPrior, seen: Tensor, i: int, p_null: float, gamma: float
    ) -> tuple[_Batch, Tensor, Tensor | None]:
        """Draw a training batch from the renders x.z0 with cameras `seen`. Return it, its noise, and the prior's
        prediction if `gamma` needs it."""
        t = upload(torch.randint(N_TIMESTEPS, x.z0.shape[:1], generator=model.rng(f"score t {i}")), x.z0.device)
        noise = model.rng.randn(f"score noise {i}", x.z0)
        kept = torch.rand(x.z0.shape[:1], generator=model.rng(f"score camera {i}")) >= p_null
        alpha, sigma = model.marginal(t)
        z_t = alpha * x.z0 + sigma * noise
        batch = _Batch(z_t, t, seen * upload(kept, x.z0.device).to(x.z0.dtype)[:, None])
        return batch, noise, model.eps(z_t, t, "pos")[0] if gamma != 0.0 else None

    def _predict(self, batches: Sequence[_Batch], model: BoundPrior) -> list[Tensor]:
        """Return psi's native prediction for each of `batches`, in one forward pass."""
        z_t, t, camera = _joined(batches)
        cond = cat_conds([model.conds[ROLE]] * len(batches))
        return list(self._psi.predict(z_t, t, cond, camera).chunk(len(batches)))


class FixedScores:
    """A psi that is not trained."""

    fitted: int

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """As `Score.ask`."""
        raise NotImplementedError

    def learn(self, x: Noised, model: BoundPrior, *how: float) -> None:
        """Nothing to learn."""

    def to(self, device: torch.device) -> None:
        """Nothing to move."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class UntrainedScores(FixedScores):
    """psi before its first training step, when it equals the prior, with a camera or without; nothing is built."""

    fitted = 0

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """As `Score.ask`."""
        (answer,) = model.eps(x.z_t, x.t, ROLE)
        model.nfe += len(cameras) - 1
        return [answer] * len(cameras)


class ExactScores(FixedScores):
    """Closed-form psi: the exact score of this step's renders x.z0. With the camera, each render is a distribution of
    one point; without, all are one mixture of points. Only meaningful for many particles of few dimensions."""

    fitted = sys.maxsize  # nothing to train, so no warm-up

    def ask(self, x: Noised, model: BoundPrior, cameras: Sequence[bool]) -> list[Tensor]:
        """As `Score.ask`."""
        offsets = x.z_t[:, None] - x.alpha[:, None] * x.z0[None]  # [B, N, C, H, W]
        share = torch.softmax(-0.5 * offsets.square().sum((2, 3, 4)) / x.sigma.view(-1, 1) ** 2, 1)
        together = torch.einsum("bn,bnchw->bchw", share, offsets) / x.sigma
        own = offsets.diagonal(dim1=0, dim2=1).movedim(-1, 0) / x.sigma
        return [own if with_camera else together for with_camera in cameras]


Psi = Score | FixedScores


class _Batch(NamedTuple):
    """Inputs of psi."""

    z_t: Tensor
    t: Tensor
    camera: Tensor


def _joined(batches: Sequence[_Batch]) -> _Batch:
    """Concatenate into one batch."""
    return _Batch(*(torch.cat(parts) for parts in zip(*batches, strict=True)))


def _cameras_of(z: Tensor, model: BoundPrior) -> Tensor:
    """Return camera vectors [B, 16] with the dtype and device of z; zeros if there are no cameras."""
    if model.cams is None:
        return torch.zeros(z.shape[0], CAMERA_WIDTH, dtype=z.dtype, device=z.device)
    return upload(camera_vectors(model.cams), z.device).to(z.dtype)


def camera_vectors(cams: Cameras) -> Tensor:
    """Return the matrices from camera to world, row by row [B, 16], translations in units of the scene's radius."""
    return torch.linalg.inv(cams.viewmats).flatten(1)


def square_error(eps: Tensor, noise: Tensor) -> Tensor:
    """Return the mean square error over all entries; 0-d."""
    return (eps - noise).square().mean()


class TrainsScore:
    """A loss that trains psi. Subclasses declare these knobs, made by the functions below, after their own."""

    fits_guidance: ClassVar[bool] = False

    network: str
    rank: int
    lr: float
    p_null: float
    lessons: int
    every: int

    def aux_key(self) -> tuple:
        """Knobs that must match for an existing psi to be reused; a copy has no rank."""
        return self.network, self.rank if self.network == "lora" else 0

    def init_aux(self, prior: Prior, rng: StepRng) -> Score | ExactScores:
        if self.network == EXACT:
            return ExactScores()
        return Score(prior, self.network, self.rank, self.lr, rng)

    def untrained_aux(self, prior: Prior, rng: StepRng) -> Psi:
        if self.network == EXACT:
            return ExactScores()
        if getattr(prior, "trains_from_scratch", False):  # its `trainable` is small, and does not start as the prior
            return self.init_aux(prior, rng)
        return UntrainedScores()

    def answers(self) -> int:
        """Return the number of psi's predictions in `gradient`."""
        return 1

    def evaluations(self) -> tuple[int, int]:
        if self.network == EXACT:
            return 2, 0
        return 2 + self.answers(), self.lessons

    def fit(self, x: Noised, model: BoundPrior, aux: Psi, guidance: Guidance) -> None:
        aux.learn(x, model, self.lr, self.p_null, self.lessons, self.every)


# ---- knobs shared by the losses that train psi -----------------------------------------------------------------


def network_knob() -> Any:
    return knob(
        "lora",
        help="how psi is made: LoRA on the prior's attention (paper); a copy of all its weights, for small priors; "
        "exact: not trained, the closed-form score of this step's renders (2-D playground). A prior without weights "
        "trains a small network for both lora and copy",
        apply="rebuild",
        choices=NETWORKS,
    )


def rank_knob() -> Any:
    return knob(4, 1, 256, "rank of the LoRA (released code: 4)", apply="rebuild")


def lr_knob() -> Any:
    return knob(1e-4, 0.0, 0.1, "learning rate of psi (paper: 1e-4)", log=True)


def p_null_knob() -> Any:
    return knob(0.1, 0.0, 1.0, "fraction of the renders that psi learns without their camera (released code: 0.1)")


def lessons_knob() -> Any:
    return knob(1, 1, 16, "training steps of psi per step of the scene (paper: 1)")


def every_knob() -> Any:
    return knob(1, 1, 16, "train psi only every n-th step, then on n noises per render (paper: 1)")


def warm_up_knob() -> Any:
    return knob(100, 0, 2000, "training steps of a new psi before the scene moves")
