"""Core types, and every convention of the project, stated once.

Shapes     B views of one step, N Gaussians, (C, H, W) the prior's space, L tokens of width D.
World      right-handed, +z up; an object's front faces +x. Azimuth in degrees: 0 on +x (front), 90 on +y,
           counter-clockwise seen from above. Elevation in degrees above the horizon: 90 is straight overhead.
Cameras    OpenCV: x right, y down, z forward. `viewmats` map world to camera, `Ks` camera to pixels.
           The centre of pixel (i, j) is at (i + 0.5, j + 0.5).
Quaternions  (w, x, y, z), not necessarily normalised.
Images     [B, 3, H, W], RGB in [0, 1]. Depth is accumulated (alpha-weighted), not normalised.
Prior's space  z [B, C, H, W]. A pixel prior uses z = 2 rgb - 1, possibly with blocks of k x k pixels as channels
           (C = 3 k^2); a latent prior uses the scaled latents of its VAE.
Timesteps  integers t in 0 .. 999; z_t = alpha_t z0 + sigma_t noise, with alpha^2 + sigma^2 = 1.
Guidance   classifier-free guidance in form A: eps_u + s (eps_c - eps_u). DreamFusion's form B(s) is A(s + 1).
Roles      names of the prompts bound to a step, such as "pos" and "uncond"; see `sdlab.prompts`.
Residual   what a loss returns, in units of eps: d loss / d z0 = w(t) * residual, summed over pixels, averaged over
           views.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sdlab.channel import rest, working_clock
from sdlab.rng import StepRng
from sdlab.shapes import Cloud as Cloud
from sdlab.shapes import RawSplats as RawSplats

N_TIMESTEPS = 1000
CAMERA_WIDTH = 16  # numbers that tell a trainable network the camera: a 4 x 4 matrix
PERP_ROLES = ("perp pos", "perp neg 1", "perp neg 2")  # bound only with Perp-Neg


# ---- rendering --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cameras:
    """B cameras looking at the scene; angles in degrees, distance in world units.

    `prompts` holds the number of each view's prompt, see `sdlab.prompts.PromptSettings.texts`; without any, all views
    have the first.
    """

    viewmats: Float[Tensor, "B 4 4"]
    Ks: Float[Tensor, "B 3 3"]
    width: int
    height: int
    azimuth: Float[Tensor, " B"]
    elevation: Float[Tensor, " B"]
    distance: Float[Tensor, " B"]
    prompts: tuple[int, ...] = ()

    def __len__(self) -> int:
        return int(self.viewmats.shape[0])

    def __getitem__(self, rows: slice) -> Cameras:
        """Return the cameras in `rows`."""
        return replace(
            self,
            viewmats=self.viewmats[rows],
            Ks=self.Ks[rows],
            azimuth=self.azimuth[rows],
            elevation=self.elevation[rows],
            distance=self.distance[rows],
            prompts=self.prompts[rows],
        )


class ScreenInfo:
    """What density control needs from one render: where each Gaussian is on screen, and its gradient there.

    radii [B, N] in pixels, 0 for Gaussians that were not drawn; means2d [B, N, 2] in pixels; means2d_grad [B, N, 2] is
    the gradient of the loss with respect to means2d, None until the backward pass has run.
    """

    def __init__(self, radii: Tensor, means2d: Tensor) -> None:
        self.radii = radii
        self.means2d = means2d
        self._means2d_grad: Tensor | None = None

    @property
    def means2d_grad(self) -> Tensor | None:
        if self._means2d_grad is not None:
            return self._means2d_grad
        return self.means2d.grad if self.means2d.requires_grad else None  # kept by autograd in a torch rasteriser

    @means2d_grad.setter
    def means2d_grad(self, value: Tensor) -> None:
        self._means2d_grad = value

    def drop_if(self, stop: Tensor) -> None:
        """Make this a render in which nothing was drawn if `stop` (0-d) is not 0, without reading it."""
        kept = stop == 0
        self.radii = torch.where(kept, self.radii, torch.zeros_like(self.radii))
        if self.means2d_grad is not None:
            self.means2d_grad = torch.where(kept, self.means2d_grad, torch.zeros_like(self.means2d_grad))


class Render(NamedTuple):
    """B rendered views; `info` is None unless the scene consists of Gaussians."""

    rgb: Float[Tensor, "B 3 H W"]
    alpha: Float[Tensor, "B 1 H W"]
    depth: Float[Tensor, "B 1 H W"]
    info: ScreenInfo | None = None


# ---- one step ---------------------------------------------------------------------------------------------------


class Noised(NamedTuple):
    """The batch that a step passes to the prior: z_t = alpha z0 + sigma noise, all detached.

    `ref` is the reference seen from the same cameras, for losses that need one.
    """

    z0: Float[Tensor, "B C H W"]
    noise: Float[Tensor, "B C H W"]
    t: Int[Tensor, " B"]
    alpha: Float[Tensor, "B 1 1 1"]
    sigma: Float[Tensor, "B 1 1 1"]
    z_t: Float[Tensor, "B C H W"]
    ref: Float[Tensor, "B C H W"] | None = None


class Asked(NamedTuple):
    """The input at which a prediction was evaluated."""

    z_t: Float[Tensor, "B C H W"]
    t: Int[Tensor, " B"]


class Guidance(NamedTuple):
    """The result of a loss.

    residual  in units of eps, before w(t)
    preds     every noise prediction the loss used, by name, so that the page can show the x0-hat of each
    stats     0-d tensors, left on the device until a frame is published
    asked     where each prediction was evaluated, if not at the step's own z_t and t
    """

    residual: Float[Tensor, "B C H W"]
    preds: Mapping[str, Tensor] = MappingProxyType({})
    stats: Mapping[str, Tensor] = MappingProxyType({})
    asked: Mapping[str, Asked] = MappingProxyType({})


@dataclass(frozen=True)
class Term:
    """How a prediction is named and drawn. Each loss lists its terms; the lens, the page and the plane read them.

    Symbols are plain text, as in formulas: "eps_c", "psi"; a ^ after a letter puts a hat on it.
    """

    name: str  # its key in `Guidance.preds`
    symbol: str  # label of its arrow in the plane
    title: str  # title of its x0-hat in the lens
    caption: str  # explains that x0-hat
    pull: str  # where its arrow points in the plane
    _: KW_ONLY
    subtracted: bool = False  # it has a minus sign in the residual, so its arrow is reversed
    colour: str = "cyan"  # of its arrow; a variable in ui/static/flat/flat.css
    broad: bool = False  # its arrow is drawn wide, below the others, because it often coincides with another
    formula: str = ""  # its spelling in the loss's formulas, if not `symbol`
    noisy: str = "with the noise that the loss found for it"  # describes its z_t in the caption, if not the step's

    @property
    def written(self) -> str:
        """The spelling in the loss's formulas."""
        return self.formula or self.symbol


# ---- the prior --------------------------------------------------------------------------------------------------


class Cond(NamedTuple):
    """Conditioning of B images: `hidden` [B, L, D]; `extra`, further tensors [B, ...] such as pooled text or sizes."""

    hidden: Tensor
    extra: Mapping[str, Tensor] = MappingProxyType({})


def cat_conds(conds: Sequence[Cond]) -> Cond:
    """Concatenate along the batch; all must have the same `extra` names."""
    return Cond(
        torch.cat([c.hidden for c in conds]),
        {k: torch.cat([c.extra[k] for c in conds]) for k in conds[0].extra},
    )


def cond_rows(cond: Cond, rows: slice) -> Cond:
    """Return the conditioning of the images in `rows`."""
    return Cond(cond.hidden[rows], {k: v[rows] for k, v in cond.extra.items()})


@runtime_checkable
class Prior(Protocol):
    """A frozen text-to-image diffusion model, shared by all sessions of the process; safe to call from any thread."""

    name: str
    commit: str  # of the Hub repository it was loaded from, else ""
    shape: tuple[int, int, int]  # (C, H, W) of its space
    image_size: int  # side of the square images it takes, in pixels
    device: torch.device

    @property
    def engine_name(self) -> str:
        """What evaluates the network, such as "openvino bf16"; "exact" for a closed form."""
        ...

    @property
    def engine_note(self) -> str:
        """The reason why a fallback engine or precision is in use, or ""."""
        ...

    @property
    def torch_threads(self) -> int:
        """The number of threads torch should use in a thread that calls this prior."""
        ...

    def embed(self, text: str) -> Cond:
        """Return the conditioning for one text, with B = 1; "" is unconditional."""
        ...

    def remark(self, text: str) -> str:
        """Return what the user should know about a prompt, such as the words that the prior cannot read, or ""."""
        ...

    def encode(self, rgb: Tensor) -> Tensor:
        """Map rgb [B, 3, S, S] in [0, 1], with S = image_size, to z [B, C, H, W]; differentiable."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """Map z [B, C, H, W] to rgb [B, 3, S, S], clamped to [0, 1]; no gradient."""
        ...

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma [B, 1, 1, 1] for integer timesteps t [B]."""
        ...

    def eps(self, z_t: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """Return the noise prediction [B, C, H, W], whatever the network predicts natively; no gradient."""
        ...

    def prepare_texts(self, texts: Iterable[str], progress: Callable[[str], None]) -> None:
        """Do now the slow part of the first `embed` of each text, if there is one; `progress` receives status texts."""
        ...

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Compile now what the first `eps` of each batch size would have to compile; return at once if that is done."""
        ...

    def trainable(self, how: str, rank: int) -> Any:
        """Return a trainable network, a `sdlab.priors.trainable.Trainable`. It starts as this prior, unless the prior
        has no network and an attribute `trains_from_scratch` that is true."""
        ...


class BoundPrior:
    """What a loss sees of a prior: the prior bound to one step's prompts, cameras and randomness.

    `conds` maps roles to the conditioning of the B images. `progress` is the step's position in the planned run, in
    [0, 1]. `rescale` and `perp_weights` [B, 2] tell `sdlab.guidance.guide` how to combine predictions (None: without
    Perp-Neg). `texts` are the B prompts with their view words, for losses that judge images; empty if unknown. `nfe`
    counts network evaluations per view, `seconds` the time spent in the network.
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
        texts: Sequence[str] = (),
    ) -> None:
        self.prior = prior
        self.conds = conds
        self.cams = cams
        self.rng = rng or StepRng(0, 0)
        self.progress = progress
        self.rescale = rescale
        self.perp_weights = perp_weights
        self.texts = tuple(texts)
        self.nfe = 0
        self.seconds = 0.0

    def eps(self, z_t: Tensor, t: Tensor, *roles: str) -> list[Tensor]:
        """Predict the noise for all `roles` in one forward pass; return one [B, C, H, W] per role.

        Other sessions may go first (`sdlab.channel.rest`).
        Raises KeyError for a role that is not bound, naming those that are.
        """
        missing = [r for r in roles if r not in self.conds]
        if missing:
            raise KeyError(f"role {missing[0]!r} is not bound; this step has {sorted(self.conds)}")
        n = len(roles)
        rest()
        started = working_clock()
        with torch.no_grad():
            cond = cat_conds([self.conds[r] for r in roles])
            out = self.prior.eps(z_t.repeat(n, 1, 1, 1), t.repeat(n), cond)
        self.seconds += working_clock() - started
        self.nfe += n
        return list(out.chunk(n))

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma at other timesteps than the step's own, as inversion losses need them."""
        return self.prior.marginal(t)


@runtime_checkable
class Aux(Protocol):
    """An auxiliary model that a loss trains, such as a LoRA, a network copy or an operator; with its optimiser."""

    fitted: int  # optimiser steps so far

    def to(self, device: torch.device) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


# ---- what viewers and files get ---------------------------------------------------------------------------------


class SplatSnapshot(NamedTuple):
    """An immutable copy of a Gaussian scene for viewers, in float32 numpy, after activation."""

    means: np.ndarray  # [N, 3]
    covariances: np.ndarray  # [N, 3, 3]
    rgbs: np.ndarray  # [N, 3] in [0, 1]
    opacities: np.ndarray  # [N, 1] in [0, 1]


class FlatFrame(NamedTuple):
    """The points of a scene in the plane, and the terms of the loss at each point in the last step; float32 numpy."""

    run: int  # changes when the scene is replaced, so that trails do not continue across a reset
    way: np.ndarray  # [T, B, 2], the points' latest positions, the current ones last
    t: np.ndarray  # [B] int, empty before the first step
    terms: Mapping[str, np.ndarray]  # [B, 2] each, in units of eps: predictions by name, "noise", "guided", "residual"
    legend: tuple[Term, ...] = ()  # the loss's terms, in display order


class Frame(NamedTuple):
    """What a session publishes to viewers; only the latest frame counts.

    `preview` shows what the loss saw in this step; a scene without a 3D view has nothing else to show.
    """

    step: int
    seconds: float  # spent optimising so far, without pauses
    scene: SplatSnapshot | None
    preview: np.ndarray  # [B, H, W, 3] uint8
    views: tuple[str, ...]  # the view word of each preview image
    stats: dict[str, float]
    flat: FlatFrame | None = None  # for points in the plane
