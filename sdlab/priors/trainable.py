"""Trainable networks: the score models of VSD, ESD and related losses.

A network's copy starts as the prior. There are two kinds (Wang et al. 2023, ProlificDreamer; the copy is for small
priors):

    lora   the prior's frozen weights, shared, plus low-rank updates of every attention's q, k, v and out (Hu et al.
           2021). The module tree is copied and only the tensors are shared, so other users do not see the adapters
    copy   all weights, copied in float32

Both receive the camera through the time embedding: Linear(16), SiLU, Linear. The last layer starts at zero, so the
initial prediction equals the prior's; "no camera" is sixteen zeros, through the same layers.

A prior without a network has nothing to copy. A mixture adds a small network to its exact score (`TrainableMixture`);
a gallery, whose exact score says nothing about renders that are not among its images, trains a small network from
scratch (`RenderNet`).
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import math
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdlab.errors import first_line
from sdlab.machine import n_processors
from sdlab.priors.engines import EngineFailure
from sdlab.priors.prediction import as_eps, native_target
from sdlab.types import CAMERA_WIDTH, N_TIMESTEPS, Cond

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CPUS = n_processors()
FREQUENCIES = tuple(math.pi * 2.0**k for k in range(6))  # embed t for the small network of a mixture

Marginal = Callable[[Tensor], tuple[Tensor, Tensor]]
Inference = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # z_t, t, hidden, camera -> native prediction
_log = logging.getLogger(__name__)


class Trainable(nn.Module):
    """eps_psi(z_t, t, y, c). `network` maps (z_t, t, cond, camera) to the native prediction `kind`."""

    def __init__(self, network: nn.Module, kind: str, marginal: Marginal) -> None:
        super().__init__()
        self.network = network
        self._kind = kind
        self._marginal = marginal

    def learns_in_two(self) -> bool:
        """Return whether training is faster on two halves of a batch in parallel.

        That holds for a large network on a CPU with several processors if torch uses only one thread.
        """
        large = isinstance(self.network, TrainableUNet | RenderNet) and self.network.on_cpu
        return large and torch.get_num_threads() == 1 < CPUS

    def predict(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond, camera: Float[Tensor, "B 16"]
    ) -> Float[Tensor, "B C H W"]:
        """Return the native prediction."""
        return self.network(z_t, t, cond, camera)

    def eps(
        self, out: Float[Tensor, "B C H W"], z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"]
    ) -> Float[Tensor, "B C H W"]:
        """Convert the native prediction `out` to a noise prediction."""
        alpha, sigma = (x.to(z_t) for x in self._marginal(t))
        return as_eps(self._kind, out, z_t, alpha, sigma)

    def forward(
        self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond, camera: Float[Tensor, "B 16"]
    ) -> Float[Tensor, "B C H W"]:
        """Return the noise prediction."""
        return self.eps(self.predict(z_t, t, cond, camera), z_t, t)

    def errors(
        self,
        out: Float[Tensor, "B C H W"],
        z0: Float[Tensor, "B C H W"],
        noise: Float[Tensor, "B C H W"],
        t: Int[Tensor, " B"],
        rival: Float[Tensor, "B C H W"] | None = None,
        gamma: float = 0.0,
    ) -> Float[Tensor, " B"]:
        """Return the denoising loss of the native predictions `out`, in their units; differentiable in `out`.

        It is each image's mean squared error, plus `gamma` times the mean squared distance to `rival`, another eps.
        """
        alpha, sigma = (x.to(z0) for x in self._marginal(t))
        errors = (out - native_target(self._kind, z0, noise, alpha, sigma)).square().mean((1, 2, 3))
        if rival is not None:
            x0 = z0 + sigma / alpha * (noise - rival)
            other = native_target(self._kind, x0, rival, alpha, sigma)
            errors = errors + gamma * (out - other).square().mean((1, 2, 3))
        return errors


Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


def _zero(layer: Layer) -> Layer:
    """Set weights and bias to zero, so that the layer returns 0 until it is trained."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class CameraEmbedding(nn.Module):
    """Camera [B, 16] -> [B, width], added to the time embedding; 0 at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(CAMERA_WIDTH, width)
        self.last = _zero(nn.Linear(width, width))

    def forward(self, camera: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.first(camera.to(self.first.weight.dtype))))


class TrainableUNet(nn.Module):
    """A trainable version of diffusers' `unet`, either "lora" or "copy" (`how`); draws from torch's global generator.

    `autocast` is the dtype to compute in; None means the weights' dtype.
    """

    def __init__(self, unet: nn.Module, how: str, rank: int, autocast: torch.dtype | None) -> None:
        super().__init__()
        net: Any = _with_lora(unet, rank) if how == "lora" else copy.deepcopy(unet).float().requires_grad_(True)
        self._dtype = next(net.parameters()).dtype
        self.autocast = autocast
        # diffusers adds this module's output to the time embedding
        net.class_embedding = CameraEmbedding(net.time_embedding.linear_1.out_features).to(
            next(unet.parameters()).device
        )
        self.unet = net
        self.on_cpu = next(net.parameters()).device.type == "cpu"
        self.inference: Inference | None = None  # replaces torch where no gradient is needed, until it fails
        if self.on_cpu and autocast is not None:
            from sdlab.priors.attention import use_short_attention

            use_short_attention(net)

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, camera: Tensor) -> Tensor:
        if self.inference is not None and not torch.is_grad_enabled():
            try:
                return self.inference(z_t, t, cond.hidden, camera)[:, : z_t.shape[1]].to(z_t.dtype)
            except EngineFailure as e:
                _log.warning("%s, using torch instead", first_line(e))
                self.inference = None
        with torch.autocast(z_t.device.type, self.autocast, enabled=self.autocast is not None):
            # with channels last, the backward pass of convolutions makes fewer copies
            layout = torch.channels_last if self.on_cpu else torch.preserve_format
            out = self.unet(
                z_t.to(self._dtype, memory_format=layout),
                t,
                encoder_hidden_states=cond.hidden.to(self._dtype),
                class_labels=camera,
                return_dict=False,
            )[0]
        return out[:, : z_t.shape[1]].to(z_t.dtype)  # a learned variance may follow the mean


def _with_lora(unet: nn.Module, rank: int) -> nn.Module:
    """Return `unet` with LoRA adapters, sharing its weights; ValueError if it has no attention to adapt."""
    from peft import LoraConfig, inject_adapter_in_model

    shared = {id(x): x for x in itertools.chain(unet.parameters(), unet.buffers())}
    twin = copy.deepcopy(unet, memo=shared)
    try:
        twin = inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=ATTENTION), twin)
    except ValueError as e:
        raise ValueError(f"LoRA: this prior's network has no attention to adapt ({e}); set network = copy") from e
    for p in twin.parameters():
        if p.requires_grad:
            p.data = p.data.float()  # small optimiser steps would be lost in half precision
    return twin


@functools.cache
def _frequencies(device: torch.device) -> Tensor:
    return torch.tensor(FREQUENCIES, device=device)


class TrainableMixture(nn.Module):
    """The exact score of a mixture, frozen, plus a small network that receives it as an input and adds 0 at first."""

    def __init__(self, eps: Callable[[Tensor, Tensor, Cond], Tensor], shape: tuple[int, int, int], width: int) -> None:
        super().__init__()
        n = math.prod(shape)
        self._eps = eps
        self.body = nn.Sequential(
            nn.Linear(2 * n + 2 * len(FREQUENCIES) + CAMERA_WIDTH, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.last = _zero(nn.Linear(width, n))

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, camera: Tensor) -> Tensor:
        exact = self._eps(z_t, t, cond)
        phase = t[:, None] / N_TIMESTEPS * _frequencies(t.device)
        seen = [z_t.flatten(1), exact.flatten(1), phase.sin(), phase.cos(), camera]
        answer = self.last(self.body(torch.cat([x.to(self.last.weight.dtype) for x in seen], 1)))
        return exact + answer.view_as(z_t).to(z_t.dtype)


class FilmBlock(nn.Module):
    """A residual block of two 3 x 3 convolutions, scaled and shifted between them by an embedding [B, width]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.film = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.film(embedding)[:, :, None, None].chunk(2, 1)
        h = self.convs[0](nn.functional.silu(self.norms[0](x)))
        return x + self.convs[1](nn.functional.silu(self.norms[1](h) * (1 + scale) + shift))


class RenderNet(nn.Module):
    """A small network from scratch that learns the score of the renders: v-prediction, 0 at first.

    Convolutions act on patches of `PATCH` x `PATCH` pixels; t and the camera scale and shift their channels; a map that
    is learnt for every patch tells them their place. It ignores the text, which does not vary between the renders.
    """

    PATCH: ClassVar[int] = 4
    WIDTH: ClassVar[int] = 64
    BLOCKS: ClassVar[int] = 3

    def __init__(self, shape: tuple[int, int, int]) -> None:
        """Take images of `shape` (C, H, W); ValueError if a side is not a multiple of `PATCH`."""
        super().__init__()
        channels, height, width = shape
        if height % self.PATCH or width % self.PATCH:
            raise ValueError(f"images of {height} x {width}: the sides must be multiples of {self.PATCH}")
        inside = channels * self.PATCH**2
        self.first = nn.Conv2d(inside, self.WIDTH, 3, padding=1)
        self.place = nn.Parameter(torch.zeros(self.WIDTH, height // self.PATCH, width // self.PATCH))
        self.time = nn.Sequential(
            nn.Linear(2 * len(FREQUENCIES), self.WIDTH), nn.SiLU(), nn.Linear(self.WIDTH, self.WIDTH)
        )
        self.camera = CameraEmbedding(self.WIDTH)
        self.blocks = nn.ModuleList(FilmBlock(self.WIDTH) for _ in range(self.BLOCKS))
        self.norm = nn.GroupNorm(8, self.WIDTH)
        self.last = _zero(nn.Conv2d(self.WIDTH, inside, 3, padding=1))

    @property
    def on_cpu(self) -> bool:
        """Whether it computes on the CPU."""
        return self.place.device.type == "cpu"

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond, camera: Tensor) -> Tensor:
        phase = t[:, None] / N_TIMESTEPS * _frequencies(t.device)
        dtype = self.place.dtype
        embedding = nn.functional.silu(
            self.time(torch.cat([phase.sin(), phase.cos()], 1).to(dtype)) + self.camera(camera)
        )
        h = self.first(nn.functional.pixel_unshuffle(z_t.to(dtype), self.PATCH)) + self.place
        for block in self.blocks:
            h = block(h, embedding)
        return nn.functional.pixel_shuffle(self.last(nn.functional.silu(self.norm(h))), self.PATCH).to(z_t.dtype)
