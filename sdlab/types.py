"""Core types and every convention of the project, stated once.

Letters in shapes: B views of one step, N Gaussians, C H W the prior's space, L D tokens and their width.

World      right-handed, +z up; an object's front faces +x. Azimuth in degrees, 0 on +x (front), 90 on +y,
           counter-clockwise seen from above. Elevation in degrees above the horizon, 90 straight overhead.
Cameras    OpenCV: x right, y down, z forward. `viewmats` map world to camera, `Ks` camera to pixels.
           The centre of pixel (i, j) lies at (i + 0.5, j + 0.5).
Quaternions  (w, x, y, z), need not be normalised.
Pictures   [B, 3, H, W], RGB in [0, 1]. Depth is accumulated (alpha-weighted), not normalised.
Prior's space  z [B, C, H, W]; for a pixel prior z = 2 rgb - 1 (k x k blocks of pixels may be its places, C = 3 k^2),
           for a latent one the scaled VAE latent.
Timesteps  integers t in 0 .. 999; z_t = alpha_t z0 + sigma_t noise with alpha^2 + sigma^2 = 1.
Guidance   classifier-free guidance in form A: eps_u + s (eps_c - eps_u). DreamFusion's form B(s) is A(s + 1).
Residual   what a loss returns, in units of eps: d loss / d z0 = w(t) * residual, summed over pixels, mean over views.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdlab.rng import StepRng

N_TIMESTEPS = 1000
PERP_ROLES = ("perp pos", "perp neg 1", "perp neg 2")  # of Perp-Neg, bound when it is on


@dataclass(frozen=True, eq=False)
class Cameras:
    """B cameras looking at the scene; angles in degrees, distance in world units."""

    viewmats: Float[Tensor, "B 4 4"]
    Ks: Float[Tensor, "B 3 3"]
    width: int
    height: int
    azimuth: Float[Tensor, " B"]
    elevation: Float[Tensor, " B"]
    distance: Float[Tensor, " B"]

    def __len__(self) -> int:
        return int(self.viewmats.shape[0])

    def __getitem__(self, rows: slice) -> Cameras:
        """Some of the cameras."""
        return replace(
            self,
            viewmats=self.viewmats[rows],
            Ks=self.Ks[rows],
            azimuth=self.azimuth[rows],
            elevation=self.elevation[rows],
            distance=self.distance[rows],
        )


class ScreenInfo:
    """What density control needs of one render: where each Gaussian fell on the screen and how it was pulled.

    radii [B, N] in pixels, 0 where a Gaussian was not drawn; means2d [B, N, 2] in pixels; means2d_grad [B, N, 2]
    is the gradient of the loss with respect to means2d, None until the backward pass has run.
    """

    def __init__(self, radii: Tensor, means2d: Tensor) -> None:
        self.radii = radii
        self.means2d = means2d
        self._means2d_grad: Tensor | None = None

    @property
    def means2d_grad(self) -> Tensor | None:
        if self._means2d_grad is not None:
            return self._means2d_grad
        return self.means2d.grad if self.means2d.requires_grad else None  # a rasteriser that retains its own

    @means2d_grad.setter
    def means2d_grad(self, value: Tensor) -> None:
        self._means2d_grad = value


class Render(NamedTuple):
    """B rendered views. `info` is None for scenes that are not made of Gaussians."""

    rgb: Float[Tensor, "B 3 H W"]
    alpha: Float[Tensor, "B 1 H W"]
    depth: Float[Tensor, "B 1 H W"]
    info: ScreenInfo | None = None


class Noised(NamedTuple):
    """A batch on its way to the prior: z_t = alpha z0 + sigma noise, everything detached; alpha, sigma [B, 1, 1, 1].

    `ref` is the reference under the same cameras, for losses that need one."""

    z0: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]
    t: Int[Tensor, " B"]
    alpha: Float[Tensor, "B 1 1 1"]
    sigma: Float[Tensor, "B 1 1 1"]
    z_t: Float[Tensor, "B C H W"]
    ref: Float[Tensor, "B C H W"] | None = None


class Asked(NamedTuple):
    """Where the prior was asked for a prediction."""

    z_t: Float[Tensor, "B C H W"]
    t: Int[Tensor, " B"]


class Guidance(NamedTuple):
    """What a loss answers.

    residual  in eps units, before w(t)
    preds     every prediction the loss used, by name, so that the page can show its x0-hat
    stats     0-d tensors, left on the device until a frame is published
    asked     where each prediction was asked, if not at the step's own z_t and t
    """

    residual: Float[Tensor, "B C H W"]
    preds: Mapping[str, Tensor] = MappingProxyType({})
    stats: Mapping[str, Tensor] = MappingProxyType({})
    asked: Mapping[str, Asked] = MappingProxyType({})


@dataclass(frozen=True)
class Term:
    """How a prediction is named and drawn. A loss lists its terms; the lens, the page and the plane learn them there.

    Symbols are in plain letters, as in formulas: "eps_c", "psi"; a trailing ^ on the letter is a hat.
    """

    name: str  # its key in `Guidance.preds`
    symbol: str  # beside its arrow in the plane
    title: str  # of its x0-hat in the lens
    caption: str  # what that x0-hat is
    pull: str  # where its arrow points in the plane
    _: KW_ONLY
    subtracted: bool = False  # whether the residual holds it with a minus sign, which turns its arrow around
    colour: str = "cyan"  # of its arrow: a variable of ui/static/flat/flat.css
    broad: bool = False  # its arrow lies beneath the others, broad: it often points the same way as another
    formula: str = ""  # how the loss's formulas write it, if not as `symbol`
    noisy: str = "with the noise that the loss found for it"  # the z_t it was asked at, if not the step's own

    @property
    def written(self) -> str:
        """Its spelling in the loss's formulas."""
        return self.formula or self.symbol


class Cond(NamedTuple):
    """Conditioning of B pictures: `hidden` [B, L, D]; `extra`, further tensors with leading B (pooled text, sizes)."""

    hidden: Tensor
    extra: Mapping[str, Tensor] = MappingProxyType({})


def cat_conds(conds: Sequence[Cond]) -> Cond:
    """Concatenate along the batch; all must carry the same extras."""
    return Cond(
        torch.cat([c.hidden for c in conds]),
        {k: torch.cat([c.extra[k] for c in conds]) for k in conds[0].extra},
    )


def some_of(cond: Cond, rows: slice) -> Cond:
    """Some of the pictures' conditioning."""
    return Cond(cond.hidden[rows], {k: v[rows] for k, v in cond.extra.items()})


@runtime_checkable
class Prior(Protocol):
    """A frozen teacher, shared by all sessions of the process and safe to call from any thread."""

    name: str
    shape: tuple[int, int, int]  # (C, H, W) of its space
    image_size: int  # pixels of the pictures it is shown (H = W)
    device: torch.device

    @property
    def engine_name(self) -> str:
        """What evaluates the network; "exact" where there is none."""
        ...

    @property
    def torch_threads(self) -> int:
        """How many threads torch should have in a thread that uses this prior."""
        ...

    def embed(self, text: str) -> Cond:
        """Conditioning of one text, batch 1."""
        ...

    def remark(self, text: str) -> str:
        """Which words of `text` it cannot read, for people; "" when it reads them all."""
        ...

    def encode(self, rgb: Tensor) -> Tensor:
        """rgb [B, 3, S, S] in [0, 1] with S = image_size -> z [B, C, H, W]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, H, W] -> rgb [B, 3, S, S] clamped to [0, 1]; no gradient."""
        ...

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Integer t [B] in 0..999 -> alpha, sigma, each [B, 1, 1, 1]."""
        ...

    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """The noise prediction [B, C, H, W], whatever the network predicts natively; no gradient."""
        ...

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Do now what the first `eps` of each batch size would have to do (compile); returns at once if done."""
        ...

    def trainable(self, how: str, rank: int) -> Any:
        """A network that starts as this prior and can learn, a `sdlab.priors.trainable.Trainable`."""
        ...


class BoundPrior:
    """A prior with this step's prompts (role -> Cond of B pictures), cameras and randomness: what a loss sees.

    `progress` is where the step lies in the planned run, in [0, 1]; `rescale` and `perp_weights` [B, 2] say how
    `sdlab.guidance.guide` combines predictions (None: without Perp-Neg). It counts network evaluations per view (`nfe`)
    and the seconds spent inside the network (`seconds`).
    """

    def __init__(
        self,
        prior: Prior,
        conds: Mapping[str, Cond],
        cams: Cameras | None = None,
        rng: StepRng | None = None,
        progress: float = 1.0,
        rescale: float = 0.0,
        perp_weights: Tensor | None = None,
    ) -> None:
        self.prior = prior
        self.conds = conds
        self.cams = cams
        self.rng = rng or StepRng(0, 0)
        self.progress = progress
        self.rescale = rescale
        self.perp_weights = perp_weights
        self.nfe = 0
        self.seconds = 0.0

    def eps(self, z_t: Tensor, t: Tensor, *roles: str) -> list[Tensor]:
        """One batched forward for all `roles`; a list of [B, C, H, W], one per role.

        Raises KeyError naming the roles that are bound when one is not.
        """
        missing = [r for r in roles if r not in self.conds]
        if missing:
            raise KeyError(f"role {missing[0]!r} is not bound; this step has {sorted(self.conds)}")
        n = len(roles)
        started = time.perf_counter()
        with torch.no_grad():
            cond = cat_conds([self.conds[r] for r in roles])
            out = self.prior.eps(z_t.repeat(n, 1, 1, 1), t.repeat(n), cond)
        self.seconds += time.perf_counter() - started
        self.nfe += n
        return list(out.chunk(n))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, sigma at other timesteps (inversion losses need them)."""
        return self.prior.marginal(t)


@runtime_checkable
class Aux(Protocol):
    """An auxiliary model that a loss trains (LoRA, network copy, operator): its parameters and their optimiser."""

    fitted: int  # steps of its optimiser so far

    def to(self, device: torch.device) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class SplatSnapshot(NamedTuple):
    """An immutable copy of a Gaussian scene for viewers, all float32 numpy and already activated."""

    means: np.ndarray  # [N, 3]
    covariances: np.ndarray  # [N, 3, 3]
    rgbs: np.ndarray  # [N, 3] in [0, 1]
    opacities: np.ndarray  # [N, 1] in [0, 1]


class RawSplats(NamedTuple):
    """A Gaussian scene as splat files store it, float32 numpy, before activation."""

    means: np.ndarray  # [N, 3]
    quats: np.ndarray  # [N, 4] wxyz, unit length
    log_scales: np.ndarray  # [N, 3]
    opacity_logits: np.ndarray  # [N]
    rgbs: np.ndarray  # [N, 3] in [0, 1]


class FlatFrame(NamedTuple):
    """Points of the plane in numbers, float32 numpy, and what each term of the loss said of them at the last step."""

    run: int  # another number for another scene, so that ways are not joined over a reset
    way: np.ndarray  # [T, B, 2], where the points were lately; the last row is where they are
    t: np.ndarray  # [B] int, empty before the first step
    terms: Mapping[str, np.ndarray]  # [B, 2] each in units of eps: predictions by name, "noise", "guided", "residual"
    legend: tuple[Term, ...] = ()  # of the terms, in the order in which they are listed


class Frame(NamedTuple):
    """What the world sees of a session; only the latest counts. `preview` is what the loss saw at this step; where
    there is no scene to be looked at from all sides, it is all there is."""

    step: int
    seconds: float  # of optimisation so far, pauses not counted
    scene: SplatSnapshot | None
    preview: np.ndarray  # [B, H, W, 3] uint8
    views: tuple[str, ...]  # view word of each preview picture
    stats: dict[str, float]
    flat: FlatFrame | None = None  # of points of the plane
