"""Variational Distribution Mapping with Distribution Coefficient Annealing (Cai et al., DreamMapping, 2024).

The renders are modelled as degraded images of the prior. A small network M learns the degradation from the prior's own
prediction e = eps(z_t; prompt), without guidance (eq. 17),

    min_psi || M_psi(e) - noise ||^2

and stands in for the renders' score (eq. 19), with guidance s (the paper's 7.5 is form B, which is 8.5 here):

    residual = eps_u + s (e - eps_u) - lambda_t M(e)

No gradient flows through the prior's network, and a step evaluates it no more often than SDS does. With a perfect M and
lambda = 1 this is SDS. DCA (eq. 18): lambda_t is 1 above the cut-off and 1 - alphabar_t at and below it, where e says
little about the noise. M sees neither t nor the camera. Eq. 19 also contains dz_t / dtheta, a factor alpha_t; here it
belongs to w(t): schedule.weight = "fantasia3d" is alpha (1 - alphabar).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sdlab.auxiliary.fitted import FittedNet, initialised
from sdlab.auxiliary.ulite import ULite
from sdlab.guidance import guide
from sdlab.knobs import knob
from sdlab.losses import POS, UNCOND, Distillation
from sdlab.rng import StepRng
from sdlab.types import BoundPrior, Guidance, Noised, Prior, Term

HIDDEN = 64
OPERATOR = Term(
    "operator",
    "M",
    "operator M",
    "with the noise that M, trained on the renders' noise, finds in it",
    "minus the noise that M finds",
    subtracted=True,
    colour="amber",
    formula="M(eps_c)",
)
OPERATORS = ("u-lite", "linear", "u-lite with noise")


class Elementwise(nn.Module):
    """The paper's linear operator: one trainable factor per entry of the prediction."""

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(shape))

    def forward(self, e: Tensor) -> Tensor:
        return self.factor * e


class Dense(nn.Module):
    """Stands in for U-Lite where there are no neighbouring pixels, as for points: two hidden layers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, channels)
        )

    def forward(self, e: Tensor) -> Tensor:
        return self.layers(e.flatten(1)).view_as(e)


class WithNoise(nn.Module):
    """`net` plus the paper's trainable observation noise, one number per entry."""

    def __init__(self, net: nn.Module, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.net = net
        self.noise = nn.Parameter(torch.zeros(shape))

    def forward(self, e: Tensor) -> Tensor:
        return self.net(e) + self.noise


class Operator(FittedNet):
    """M with its optimiser. It keeps its last prediction and its autograd graph for the training step that follows."""

    def __init__(self, net: nn.Module, lr: float) -> None:
        super().__init__(net, lr)
        self.net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # documented, not in stubs
        self._asked: Tensor | None = None
        self._answer: Tensor | None = None

    def __call__(self, e: Tensor) -> Tensor:
        """Return M(e) [B, C, H, W], detached."""
        with torch.enable_grad():
            answer = self.net(e.float().contiguous(memory_format=torch.channels_last))
        self._asked, self._answer = e, answer
        return answer.detach().to(e)

    def to(self, device: torch.device) -> None:
        """As `FittedNet.to`; the graph of the last prediction would keep its memory."""
        self._asked = self._answer = None
        super().to(device)

    def learn(self, e: Tensor, noise: Tensor, lr: float) -> None:
        """Take one step on || M(e) - noise ||^2, the mean over all entries."""
        if self._answer is None or self._asked is not e:
            self(e)
        assert self._answer is not None
        self.descend((self._answer - noise.float()).square().mean(), lr)
        self._asked = self._answer = None


def dca(t: Tensor, alpha: Tensor, cutoff: int) -> Tensor:
    """Return lambda_t (eq. 18) in the shape of `alpha`: 1 where t > cutoff, else 1 - alphabar_t; t is [B]."""
    return torch.where(t.view(-1, 1, 1, 1) > cutoff, torch.ones_like(alpha), 1 - alpha**2)


@dataclass(frozen=True)
class VDM(Distillation[Operator]):
    """A small network learns how the prior perceives the renders' noise, and replaces the noise."""

    kind: ClassVar[str] = "vdm"
    title: ClassVar[str] = "VDM + DCA"
    paper: ClassVar[str] = (
        "DreamMapping: High-Fidelity Text-to-3D Generation via Variational Distribution Mapping, Cai et al., 2024, "
        "eq. 17 to 19"
    )
    formula: ClassVar[str] = "w(t) [ eps_u + s (eps_c - eps_u) - lambda_t M(eps_c) ]"
    look_for: ClassVar[str] = (
        "M learns to predict the noise from eps_c; more detail than SDS (paper); "
        "a low cut-off over-saturates, a high one smooths"
    )
    place: ClassVar[int] = 4
    terms: ClassVar[tuple[Term, ...]] = (POS, UNCOND, OPERATOR)
    control: ClassVar[tuple[str, ...]] = ("operator",)
    aux_errors: ClassVar[tuple[str, ...]] = ("operator_error",)

    cfg: float = knob(8.5, 0.0, 200.0, "s, the guidance scale in form A (paper: 7.5 in form B, which is 8.5)")
    dca_cutoff: int = knob(300, 0, 999, "timestep up to which M is weighted by 1 - alphabar (paper: 300)")
    operator: str = knob(
        "u-lite",
        help="the network M; from the paper's ablation: one factor per entry, or U-Lite plus learnt noise",
        apply="rebuild",
        choices=OPERATORS,
    )
    lr: float = knob(0.01, 0.0, 1.0, "learning rate of M (paper: 0.01)", log=True)
    warm_up: int = knob(50, 0, 2000, "training steps of a new M before the scene moves")

    def init_aux(self, prior: Prior, rng: StepRng) -> Operator:
        def make() -> nn.Module:
            if self.operator == "linear":
                return Elementwise(prior.shape)
            net = Dense(prior.shape[0]) if prior.shape[1:] == (1, 1) else ULite(*prior.shape)
            return net if self.operator == "u-lite" else WithNoise(net, prior.shape)

        operator = Operator(initialised(make, rng, "vdm"), self.lr)
        operator.to(prior.device)
        return operator

    def gradient(self, x: Noised, model: BoundPrior, aux: Operator) -> Guidance:
        hat, preds = guide(model, x.z_t, x.t, self.cfg)
        eps_c = preds["pos"]
        mapped = aux(eps_c)
        lam = dca(x.t, x.alpha, self.dca_cutoff)
        residual = hat - lam * mapped
        stats = {
            "operator_error": (mapped - x.noise).square().mean(),
            "prior_error": (eps_c - x.noise).square().mean(),  # M should be below it
        }
        return Guidance(residual, {**preds, "operator": mapped}, stats)

    def fit(self, x: Noised, model: BoundPrior, aux: Operator, guidance: Guidance) -> None:
        aux.learn(guidance.preds["pos"], x.noise, self.lr)
