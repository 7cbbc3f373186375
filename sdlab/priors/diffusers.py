"""Any text-to-image U-Net in the diffusers layout as a prior: a folder, or a repository on the Hugging Face Hub.

    unet/           UNet2DConditionModel
    text_encoder/   CLIP or T5, with tokenizer/
    scheduler/      the noise schedule and what the network predicts
    vae/            AutoencoderKL or AutoencoderTiny; absent in a pixel model
    words.json      the words the model knows, if they are few: see `sdlab.priors.wordlist`

A pixel model may work on blocks of k x k pixels; without a vae/, its 3 k^2 channels say so (see `PixelSpace`).

Whatever the network predicts natively is converted to eps here (see `sdlab.priors.prediction`).

Only safetensors, JSON and text are read, and no code that comes with a model is run: a stranger's model is only data.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sdlab.console import Remark
from sdlab.errors import memory_explained
from sdlab.knobs import knob
from sdlab.pictures import resize
from sdlab.priors import PriorConfig, Progress, parts, silent
from sdlab.priors.choice import (
    ENGINES,
    HALF,
    PRECISIONS,
    choose_engine,
    resolve_precision,
    resolve_vae_precision,
    weights_dtype,
)
from sdlab.priors.engines import Engine, EngineFailure, Shapes, TorchEngine
from sdlab.priors.files import checked_weights
from sdlab.priors.hub import find_model
from sdlab.priors.openvino import OpenVinoEngine
from sdlab.priors.prediction import as_eps
from sdlab.priors.spaces import Space
from sdlab.priors.text import TextEncoder
from sdlab.priors.trainable import Trainable, TrainableUNet
from sdlab.types import Cond

ALPHA_MIN = 1e-4  # zero-terminal-SNR schedules end in alpha = 0, and losses divide by alpha


@dataclass(frozen=True)
class DiffusersPrior(PriorConfig):
    """A trained text-to-image model."""

    kind: ClassVar[str] = "diffusers"

    path: str = knob(
        "toybox", hi=500, help="'toybox', a folder in the diffusers layout, or owner/name on the Hub", apply="rebuild"
    )
    engine: str = knob(
        "auto",
        help="what runs the network; auto: OpenVINO on a CPU, torch on a GPU; compiled: torch.compile, slow to start, "
        "then faster on a GPU",
        apply="rebuild",
        choices=ENGINES,
    )
    precision: str = knob(
        "auto", help="number format of the network; auto: the fastest", apply="rebuild", choices=PRECISIONS
    )
    revision: str = knob("", hi=100, help="branch, tag or commit on the Hub; empty: the newest", apply="rebuild")
    threads: int = knob(0, 0, 256, "CPU threads for the network; 0: all cores", apply="rebuild")
    vae_precision: str = knob(
        "auto",
        help="number format of a latent model's VAE; auto: the network's on a GPU, fp32 on a CPU. If half precision "
        "overflows, fp32 replaces it",
        apply="rebuild",
        choices=PRECISIONS,
    )
    low_memory: bool = knob(
        False,
        help="for GPUs with 8 GB: the VAE takes one image at a time and recomputes activations in the backward pass, "
        "and the text encoder runs on the CPU; slower",
        apply="rebuild",
    )

    def load(self, device: torch.device, progress: Progress = silent) -> DiffusersModel:
        """Load the model; download it first if it is on the Hub, convert it if OpenVINO has not cached it.

        Raises ValueError for a path without such a model, RuntimeError for damaged or unsafe files and for failed
        downloads.
        """
        # read by diffusers on its first import; nothing here runs a model's code, and this stops other callers from it
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        precision, precision_note = resolve_precision(self.precision, device)
        folder, commit = find_model(self.path, self.revision, precision != "fp32", parts.require_support, progress)

        progress(f"loading {self.path}")
        dtype = weights_dtype(precision, device)
        half = HALF.get(resolve_vae_precision(self.vae_precision, precision, device))
        schedule = parts.read_schedule(folder)
        with memory_explained(
            f"{self.path} in {precision}",
            device,
            lambda: parts.loaded_bytes(folder, dtype, parts.vae_dtype(half, device)),
        ):
            text_runs_in = (torch.float32, torch.device("cpu")) if self.low_memory else (dtype, device)
            text = parts.load_text(folder, *text_runs_in, device)
            unet = parts.load_unet(folder, dtype, device)
            space = parts.load_space(folder, unet, device, half, self.low_memory)

        hidden = text.embed("")
        parts.require_match(unet, hidden.shape[-1], folder)
        _, weight_files = checked_weights(folder / "unet", half=dtype == torch.float16)
        engine, engine_note = choose_engine(
            self.engine,
            unet,
            weight_files,
            Shapes((2, *space.shape), (2, *hidden.shape[1:])),
            precision,
            device,
            self.threads,
            progress,
        )
        name = folder.resolve().name if Path(self.path).expanduser().is_dir() else self.path
        notes = "; ".join(n for n in (precision_note, engine_note) if n)
        return DiffusersModel(name, unet, text, space, *schedule, engine, precision, self.threads, notes, commit)


class DiffusersModel:
    """The `Prior` of a `DiffusersPrior`; frozen, and safe to call from any thread.

    `unet` is the torch network, `engine` evaluates it; if the engine fails, torch takes over.
    """

    def __init__(
        self,
        name: str,
        unet: nn.Module,
        text: TextEncoder,
        space: Space,
        alphas_cumprod: Float[Tensor, " T"],
        prediction_type: str,
        engine: Engine,
        precision: str,
        threads: int,
        note: str,
        commit: str,
    ) -> None:
        self.name = name
        self.commit = commit
        self.shape = space.shape
        self.image_size = space.image_size
        self.device = next(unet.parameters()).device
        self.unet = unet
        self.text = text
        self.space = space
        self.engine = engine
        self.prediction_type = prediction_type
        self.n_parameters = sum(p.numel() for net in (unet, text.model, space.model) for p in net.parameters())
        self._notes = [note] if note else []
        self._precision = precision
        self._threads = threads
        self._falling_back = threading.Lock()
        alpha = alphas_cumprod.double().sqrt().clamp(ALPHA_MIN, (1 - ALPHA_MIN**2) ** 0.5)
        self._alpha = alpha.float().to(self.device)
        self._sigma = (1 - alpha**2).sqrt().float().to(self.device)

    @property
    def engine_name(self) -> str:
        return self.engine.name

    @property
    def engine_note(self) -> str:
        return "; ".join(n for n in (*self._notes, self.space.note) if n)

    @property
    def torch_threads(self) -> int:
        return self.engine.torch_threads

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Compile for these batch sizes (images times roles) now, so that the first step does not have to."""
        hidden = self.text.embed("")
        for b in sorted(set(batch_sizes)):
            engine = self.engine
            try:
                engine.prepare(Shapes((b, *self.shape), (b, *hidden.shape[1:])))
            except EngineFailure as e:
                self._fall_back(engine, e)

    def prepare_texts(self, texts: Iterable[str], progress: Progress) -> None:
        """Do nothing: `embed` costs less than a step."""

    def embed(self, text: str) -> Cond:
        """Return hidden [1, L, D]; "" is unconditional. Warn about words that the text encoder does not see."""
        remark = self.text.remark(text, is_prompt=False)  # it may be a negative prompt, which names no object
        if remark:
            warnings.warn(remark, Remark, stacklevel=2)
        return Cond(self.text.embed(text))

    def remark(self, text: str) -> str:
        """Return which words of the prompt the model does not see, and why; "" if it sees all.

        For a model with a word list, also say which words it knows, and whether the prompt names no object.
        """
        return self.text.remark(text)

    def encode(self, rgb: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """Map rgb in [0, 1], of any size, to z; differentiable. A VAE gives the mean of its posterior."""
        with memory_explained(f"encoding {self._images(len(rgb))}", self.device):
            return self.space.encode(resize(rgb, (self.image_size, self.image_size)))

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        """Map z to rgb, clamped to [0, 1]."""
        with memory_explained(f"decoding {self._images(len(z))}", self.device):
            return self.space.decode(z).clamp(0, 1)

    def marginal(self, t: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """Return alpha and sigma of the model's own schedule, alpha at least 1e-4."""
        return self._alpha[t].view(-1, 1, 1, 1), self._sigma[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def eps(self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond) -> Float[Tensor, "B C H W"]:
        """Return the noise prediction in the dtype of z_t; ValueError if z_t, t and cond differ in batch size."""
        if not len(z_t) == len(t) == len(cond.hidden):
            raise ValueError(
                f"{len(z_t)} images, {len(t)} timesteps and conditioning for {len(cond.hidden)}: "
                "the three batch sizes must be equal"
            )
        # networks with a learned variance (Nichol & Dhariwal 2021; DeepFloyd IF) append it to the mean
        with memory_explained(f"the network with a batch of {len(z_t)}", self.device):
            out = self._network(z_t, t, cond.hidden)[:, : z_t.shape[1]].to(z_t.dtype)
        alpha, sigma = (x.to(z_t.dtype) for x in self.marginal(t))
        return as_eps(self.prediction_type, out, z_t, alpha, sigma)

    def trainable(self, how: str, rank: int) -> Trainable:
        """Return a trainable network on this device that starts as this one; draws from torch's global generator.

        `how` is one of `sdlab.auxiliary.score.NETWORKS`, `rank` is the LoRA's.
        """
        with memory_explained(f"a trainable network ({how})", self.device):
            net = TrainableUNet(self.unet, how, rank, HALF.get(self._precision))
        if isinstance(self.engine, OpenVinoEngine):
            net.inference = self.engine.twin(net.unet)
        return Trainable(net, self.prediction_type, self.marginal)

    def _images(self, count: int) -> str:
        return f"{count} images of {self.image_size} x {self.image_size} pixels"

    def _network(self, z_t: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        engine = self.engine
        try:
            return engine.forward(z_t.float(), t, hidden)
        except EngineFailure as e:
            self._fall_back(engine, e)
            return self.engine.forward(z_t.float(), t, hidden)

    def _fall_back(self, failed: Engine, reason: EngineFailure) -> None:
        with self._falling_back:
            if self.engine is failed:  # not yet replaced by another thread
                self.engine = TorchEngine(self.unet, self._precision, self._threads)
                self._notes.append(f"{reason}, using torch instead")
