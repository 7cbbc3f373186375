"""Exact scores of diffused Gaussian mixtures: a prior whose noise prediction is known in closed form.

Each text stands for a mixture p(z0) = sum_k pi_k N(mu_k, s_k^2 I) over events of any shape (C, H, W). With a layout of
the plane, a text stands for the Gaussian it names ("north east"), or for all of them if it names none. Diffusion
z_t = alpha z0 + sigma noise turns a mixture into another mixture,

    p_t(z_t) = sum_k pi_k N(alpha mu_k, v_k I),    v_k = alpha^2 s_k^2 + sigma^2,

so the noise prediction of a perfect network is (Song et al. 2021, "Score-based generative modeling through SDEs",
eps = -sigma * score)

    eps(z_t) = -sigma grad log p_t(z_t) = sigma sum_k r_k (z_t - alpha mu_k) / v_k

with r_k the posterior weight of component k. Everything is computed in the dtype of z_t from a float64 schedule, so
float64 inputs give float64 results.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from sdlab.knobs import knob
from sdlab.pictures import resize
from sdlab.priors import PriorConfig, Progress, silent
from sdlab.priors.trainable import Trainable, TrainableMixture
from sdlab.types import N_TIMESTEPS, Cond

SCHEDULES = ("scaled_linear", "linear")
LAYOUTS = ("text", "eight", "four")
SCORES = ("exact", "trained")
STEP = math.sqrt(0.5)
# mixtures in the plane: name -> x, y of the centre, weight
PLACES: dict[str, dict[str, tuple[float, float, float]]] = {
    # Do and Hua 2025, section 5.1 and supplement 4: eight Gaussians of standard deviation 0.1 on the unit circle
    "eight": {
        "east": (1, 0, 1),
        "west": (-1, 0, 1),
        "north": (0, 1, 1),
        "south": (0, -1, 1),
        "north east": (STEP, STEP, 1),
        "north west": (-STEP, STEP, 1),
        "south east": (STEP, -STEP, 1),
        "south west": (-STEP, -STEP, 1),
    },
    # four corners with unequal weights show whether a loss finds only the largest
    "four": {
        "north east": (1, 1, 0.4),
        "north west": (-1, 1, 0.3),
        "south west": (-1, -1, 0.2),
        "south east": (1, -1, 0.1),
    },
}
WIDTH = 256  # of the trainable network that is added to the exact score
DTYPES = {"fp32": torch.float32, "fp64": torch.float64}


class Mixture(NamedTuple):
    """K isotropic Gaussians over events of shape (C, H, W); weights need not be normalised."""

    weights: Float[Tensor, " K"]
    means: Float[Tensor, "K C H W"]
    stds: Float[Tensor, " K"]


def alphas_cumprod(schedule: str) -> Float[Tensor, " T"]:
    """Return alpha_t^2 at t = 0 .. 999 in float64, for "linear" (Ho et al. 2020) or "scaled_linear" (Stable Diffusion).

    Raises ValueError for any other name.
    """
    if schedule == "linear":
        betas = torch.linspace(1e-4, 0.02, N_TIMESTEPS, dtype=torch.float64)
    elif schedule == "scaled_linear":
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, N_TIMESTEPS, dtype=torch.float64) ** 2
    else:
        raise ValueError(f"prior.schedule = {schedule!r}: must be one of {', '.join(SCHEDULES)}")
    return torch.cumprod(1 - betas, 0)


def mixture_of_text(
    text: str, shape: tuple[int, int, int], components: int, spread: float, std: float, seed: int
) -> Mixture:
    """Derive a mixture from `text` and `seed` alone: equal weights, smooth random means, one std.

    The means are random images of at most 4 x 4 cells, enlarged; `spread` is the standard deviation of a cell.
    """
    digest = hashlib.blake2b(f"{seed}/{text}".encode(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
    channels, height, width = shape
    cells = torch.randn(components, channels, min(height, 4), min(width, 4), generator=generator, dtype=torch.float64)
    means = F.interpolate(spread * cells, (height, width), mode="bilinear", align_corners=False)
    return Mixture(
        torch.full((components,), 1 / components, dtype=torch.float64),
        means,
        torch.full((components,), std, dtype=torch.float64),
    )


def union(mixtures: Sequence[Mixture]) -> Mixture:
    """Combine all components into one mixture, giving each input mixture the same total weight."""
    return Mixture(
        torch.cat([m.weights / m.weights.sum() for m in mixtures]) / len(mixtures),
        torch.cat([m.means for m in mixtures]),
        torch.cat([m.stds for m in mixtures]),
    )


@dataclass(frozen=True)
class MixturePrior(PriorConfig):
    """A Gaussian mixture for every text, derived from the text or from places in the plane; needs no downloads."""

    kind: ClassVar[str] = "mixture"

    layout: str = knob(
        "text",
        help="text: images derived from the text; eight: a ring in the plane (JSD paper); four: corners of unequal "
        "weight",
        apply="rebuild",
        choices=LAYOUTS,
    )
    scores: str = knob(
        "exact",
        help="trained: first train a small network on the plane, in seconds, as in the JSD paper",
        apply="rebuild",
        choices=SCORES,
    )
    channels: int = knob(3, 1, 64, "channels of an event; images need 3", apply="rebuild")
    height: int = knob(16, 1, 256, "rows of an event", apply="rebuild")
    width: int = knob(16, 1, 256, "columns of an event", apply="rebuild")
    components: int = knob(3, 1, 64, "Gaussians per text", apply="rebuild")
    spread: float = knob(0.5, 0.0, 10.0, "how far apart the means are, in units of z", apply="rebuild")
    std: float = knob(0.1, 0.0, 10.0, "standard deviation of each Gaussian, in units of z", apply="rebuild")
    schedule: str = knob("scaled_linear", help="noise schedule", apply="rebuild", choices=SCHEDULES)
    precision: str = knob("fp32", help="number format", apply="rebuild", choices=tuple(DTYPES))
    seed: int = knob(0, 0, 2**31 - 1, "seed from which the texts' mixtures are derived", apply="rebuild")

    def __post_init__(self) -> None:
        if self.scores == "trained" and self.layout == "text":
            raise ValueError("prior.scores = trained: needs a plane; set prior.layout to eight or four")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an event; a point in the plane has two channels."""
        return (self.channels, self.height, self.width) if self.layout == "text" else (2, 1, 1)

    def load(self, device: torch.device, progress: Progress = silent) -> MixtureScores:
        if self.layout == "text":
            progress("mixture prior: nothing to load")
            return MixtureScores(self, device)
        plane = Plane(self, device)
        if self.scores == "exact":
            return plane
        from sdlab.priors.plane_network import TrainedPlane

        return TrainedPlane(plane, progress)


class MixtureScores:
    """The exact `Prior` of a `MixturePrior`.

    `mixtures` assigns mixtures to some texts; "" (unconditional) is then their union, unless it is assigned as well.
    Without `mixtures`, "" is one broad Gaussian around zero with variance spread^2 + std^2.
    """

    def __init__(
        self, config: MixturePrior, device: torch.device, mixtures: Mapping[str, Mixture] | None = None
    ) -> None:
        self.name = "mixture"
        self.commit = ""
        self.config = config
        self.shape = config.shape
        self.image_size = max(config.shape[1:])
        self.device = device
        self.engine_name = "exact"
        self.torch_threads = 1  # too little work for several threads
        self.engine_note = ""
        self.prediction_type = "epsilon"
        self.n_parameters = 0
        self._dtype = DTYPES[config.precision]
        self._alphas_cumprod = alphas_cumprod(config.schedule).to(device)
        self._named = dict(mixtures or {})
        for text, m in self._named.items():
            self._check(text, m)
        if self._named and "" not in self._named:
            self._named[""] = union(list(self._named.values()))
        # every text is padded to the same number of components, so that the roles of a step fit in one batch
        self._n_slots = max([config.components] + [len(m.weights) for m in self._named.values()])

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Do nothing: there is nothing to compile."""

    def prepare_texts(self, texts: Iterable[str], progress: Progress) -> None:
        """Do nothing: `embed` is fast."""

    def remark(self, text: str) -> str:
        """Return "": every text is understood."""
        return ""

    def mixture(self, text: str) -> Mixture:
        """Return the mixture that `text` stands for, in float64 on the CPU."""
        if text in self._named:
            return self._named[text]
        c = self.config
        if text == "":
            one = torch.ones(1, dtype=torch.float64)
            broad = math.hypot(c.spread, c.std)
            return Mixture(one, torch.zeros(1, *self.shape, dtype=torch.float64), broad * one)
        return mixture_of_text(text, self.shape, c.components, c.spread, c.std, c.seed)

    def embed(self, text: str) -> Cond:
        """Return hidden [1, K, 2 + C H W]: log weight, std and mean of each component; padding has log weight -inf."""
        m = self.mixture(text)
        n, event = len(m.weights), math.prod(self.shape)
        hidden = torch.zeros(1, self._n_slots, 2 + event, dtype=torch.float64)
        hidden[..., 0] = -math.inf
        hidden[..., 1] = 1.0  # padding may have any std but 0, by which eps divides
        hidden[0, :n, 0] = torch.log(m.weights / m.weights.sum())
        hidden[0, :n, 1] = m.stds
        hidden[0, :n, 2:] = m.means.reshape(n, event)
        return Cond(hidden.to(self.device, self._dtype))

    def encode(self, rgb: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """Return z = 2 rgb - 1, resized to (H, W); differentiable. ValueError unless events have 3 channels."""
        self._require_images("encode")
        return 2 * resize(rgb, self.shape[1:]) - 1

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        """Invert `encode`; clamped to [0, 1]."""
        self._require_images("decode")
        return resize((z / 2 + 0.5).clamp(0, 1), (self.image_size, self.image_size))

    def marginal(self, t: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """Return alpha and sigma in the configured precision."""
        return self._marginal(t, self._dtype)

    @torch.no_grad()
    def eps(self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond) -> Float[Tensor, "B C H W"]:
        """Return sigma sum_k r_k (z_t - alpha mu_k) / v_k, in the dtype of z_t."""
        _, sigma = self._marginal(t, z_t.dtype)
        log_joint, offset, variance = self._components(z_t, t, cond)
        posterior = torch.softmax(log_joint, dim=1)
        eps = sigma.view(-1, 1) * torch.einsum("bk,bkd->bd", posterior / variance, offset)
        return eps.view_as(z_t)

    def trainable(self, how: str, rank: int) -> Trainable:
        """Return the exact score plus a small network; there are no weights that `how` and `rank` could apply to."""
        network = TrainableMixture(self.eps, self.shape, WIDTH).to(self.device, self._dtype)
        return Trainable(network, self.prediction_type, self.marginal)

    def log_density(self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond) -> Float[Tensor, " B"]:
        """Return log p_t(z_t | text), normalised; differentiable in z_t."""
        return torch.logsumexp(self._components(z_t, t, cond)[0], dim=1)

    def _components(self, z_t: Tensor, t: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor]:
        """Return log pi_k N(z_t; alpha mu_k, v_k) [B, K], offset z_t - alpha mu_k [B, K, D] and v_k [B, K]."""
        hidden = cond.hidden.to(z_t.dtype)
        if hidden.shape[0] != z_t.shape[0]:
            raise ValueError(
                f"{z_t.shape[0]} images and conditioning for {hidden.shape[0]}: the batch sizes must be equal"
            )
        log_weight, std, mean = hidden[..., 0], hidden[..., 1], hidden[..., 2:]
        alpha, sigma = (x.view(-1, 1) for x in self._marginal(t, z_t.dtype))
        variance = (alpha * std) ** 2 + sigma**2
        offset = z_t.flatten(1)[:, None] - alpha[..., None] * mean
        dims = offset.shape[-1]
        squared = (offset**2).sum(-1) / variance
        log_normal = -0.5 * (squared + dims * torch.log(2 * math.pi * variance))
        return log_weight + log_normal, offset, variance

    def _marginal(self, t: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        squared = self._alphas_cumprod[t].view(-1, 1, 1, 1)
        return squared.sqrt().to(dtype), (1 - squared).sqrt().to(dtype)

    def _require_images(self, verb: str) -> None:
        if self.shape[0] != 3:
            raise ValueError(
                f"cannot {verb} images: this mixture has {self.shape[0]} channels, images have 3; "
                "set prior.channels to 3, or optimise events directly"
            )

    def _check(self, text: str, m: Mixture) -> None:
        k = m.weights.shape[0]
        if tuple(m.means.shape) != (k, *self.shape) or tuple(m.stds.shape) != (k,):
            raise ValueError(
                f"mixture {text!r}: {k} weights, means {tuple(m.means.shape)}, stds {tuple(m.stds.shape)}; "
                f"means must be {(k, *self.shape)} and stds {(k,)}"
            )
        if not (m.weights > 0).all() or (m.stds < 0).any():
            raise ValueError(f"mixture {text!r}: weights must be positive and stds at least 0")


class Plane(MixtureScores):
    """The exact prior for a layout of the plane."""

    def __init__(self, config: MixturePrior, device: torch.device) -> None:
        places = PLACES[config.layout]
        one = torch.ones(1, dtype=torch.float64)
        mixtures = {
            name: Mixture(one, torch.tensor([[[[x]], [[y]]]], dtype=torch.float64), config.std * one)
            for name, (x, y, _) in places.items()
        }
        weights = torch.tensor([weight for _, _, weight in places.values()], dtype=torch.float64)
        means = torch.cat([m.means for m in mixtures.values()])
        everything = Mixture(weights, means, torch.full((len(weights),), config.std, dtype=torch.float64))
        super().__init__(config, device, {"": everything, **mixtures})
        self.names = tuple(places)

    def mixture(self, text: str) -> Mixture:
        """Return the Gaussian of the place that `text` names, or the mixture of all places if it names none."""
        return super().mixture(self.place_in(text))

    def place_in(self, text: str) -> str:
        """Return the name of the place in `text`, or ""; "north east" is not "north"."""
        letters = "".join(c for c in text.lower() if c.isalpha())
        found = [name for name in self.names if name.replace(" ", "") in letters]
        return max(found, key=len, default="")

    def remark(self, text: str) -> str:
        """Return a remark that lists the places if `text` names none, else ""."""
        if not text or self.place_in(text):
            return ""
        return f"this plane knows {', '.join(self.names)}; any other text stands for all of them"
