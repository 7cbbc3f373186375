"""Any text-to-image U-Net in the diffusers layout as a prior: a folder, or a repository of the Hugging Face Hub.

    unet/           UNet2DConditionModel
    text_encoder/   CLIP or T5, with tokenizer/
    scheduler/      the noise schedule and what the network predicts
    vae/            AutoencoderKL or AutoencoderTiny; absent in a pixel model
    words.json      the words it knows, if they are few: see `sdlab.priors.wordlist`

A pixel model may work on blocks of k x k pixels: without a vae/ its 3 k^2 channels say so (see `PixelSpace`).

Whatever the network predicts natively becomes eps here, once (see `sdlab.priors.prediction`).

Only safetensors, JSON and text are read, and no code comes with a model: a prior from a stranger is data.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import string
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdlab.errors import is_out_of_memory, memory_explained
from sdlab.knobs import knob
from sdlab.pictures import resize
from sdlab.priors import PriorConfig, Progress, first_line, silent
from sdlab.priors.engines import (
    ENGINES,
    PRECISIONS,
    Engine,
    EngineFailure,
    OpenVinoEngine,
    Shapes,
    TorchEngine,
    choose_engine,
    resolve_precision,
    weights_dtype,
)
from sdlab.priors.files import checked_weights, count_numbers, find_model, read_json, require_layout
from sdlab.priors.prediction import PREDICTIONS, as_eps
from sdlab.priors.trainable import Trainable, TrainableUNet
from sdlab.priors.wordlist import WordList, read_word_list
from sdlab.types import N_TIMESTEPS, Cond

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
VAES = ("AutoencoderKL", "AutoencoderTiny")
KEPT_TEXTS = 256
ALPHA_MIN = 1e-4  # zero-terminal-SNR schedules end in alpha = 0, by which losses would divide
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
T5_TOKENS = 77  # T5 has no limit of its own; DeepFloyd IF was trained on 77


@dataclass(frozen=True)
class DiffusersPrior(PriorConfig):
    """A trained text-to-image model."""

    kind: ClassVar[str] = "diffusers"

    path: str = knob(
        "toybox", hi=500, help="'toybox', a folder in the diffusers layout, or owner/name on the Hub", apply="rebuild"
    )
    engine: str = knob(
        "auto",
        help="what runs the network; auto is OpenVINO on a processor, torch elsewhere. compiled is torch.compile: a "
        "slow start, then faster steps on a GPU",
        apply="rebuild",
        choices=ENGINES,
    )
    precision: str = knob(
        "auto", help="number format of the network; auto is the fastest", apply="rebuild", choices=PRECISIONS
    )
    revision: str = knob("", hi=100, help="branch, tag or commit on the Hub; empty is the newest", apply="rebuild")
    threads: int = knob(0, 0, 256, "processor threads for the network; 0 takes every core", apply="rebuild")
    vae_precision: str = knob(
        "auto",
        help="number format of the VAE of a latent model; auto is the network's on a GPU, fp32 on a processor. Where "
        "half precision overflows, fp32 takes its place",
        apply="rebuild",
        choices=PRECISIONS,
    )
    low_memory: bool = knob(
        False,
        help="for graphics cards of 8 GB: the VAE takes one picture at a time and computes it again on the way back, "
        "and texts are read on the processor; slower",
        apply="rebuild",
    )

    def load(self, device: torch.device, progress: Progress = silent) -> DiffusersModel:
        """The model; a Hub repository is downloaded first, and OpenVINO converts a network it has not met.

        Raises ValueError for a path that holds no such model, RuntimeError for damaged or unsafe files and for
        failing downloads.
        """
        # read by diffusers when it is first imported; nothing here runs a model's code, this forbids it to others
        os.environ.setdefault("DIFFUSERS_DISABLE_REMOTE_CODE", "1")
        precision, precision_note = resolve_precision(self.precision, device)
        folder, commit = find_model(self.path, self.revision, precision != "fp32", _require_support, progress)

        progress(f"loading {self.path}")
        dtype = weights_dtype(precision, device)
        vae_precision = _vae_precision(self.vae_precision, precision, device)
        alphas_cumprod, prediction_type = _read_schedule(folder)
        with memory_explained(f"{self.path} in {precision}", device, lambda: _size(folder, dtype)):
            reader = (torch.float32, torch.device("cpu")) if self.low_memory else (dtype, device)
            encoder = _load_part(folder / "text_encoder", _text_encoder_class(folder), *reader)
            text = TextEncoder(_load_tokenizer(folder), encoder, read_word_list(folder), device)
            unet = _load_unet(folder, dtype, device)
            space = _load_space(folder, unet, device, _AUTOCAST.get(vae_precision), self.low_memory)

        hidden = text.embed("")
        _must_match(unet, hidden.shape[-1], folder)
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
        schedule = alphas_cumprod, prediction_type
        return DiffusersModel(name, unet, text, space, *schedule, engine, precision, self.threads, notes, commit)


class DiffusersModel:
    """The `Prior` of a `DiffusersPrior`; frozen, and safe to call from any thread.

    `unet` is the torch network, whatever engine evaluates it; `commit` that of the Hub's repository, "" for a folder.
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
        commit: str = "",
    ) -> None:
        self.name = name
        self.commit = commit
        self.shape = space.shape
        self.image_size = space.image_size
        self.device = next(unet.parameters()).device
        self.unet = unet
        self.prediction_type = prediction_type
        self.n_parameters = sum(p.numel() for part in (unet, text.model, space.model) for p in part.parameters())
        self._notes = [note] if note else []
        self._text = text
        self._space = space
        self._engine = engine
        self._precision = precision
        self._threads = threads
        self._falling_back = threading.Lock()
        alpha = alphas_cumprod.double().sqrt().clamp(ALPHA_MIN, (1 - ALPHA_MIN**2) ** 0.5)
        self._alpha = alpha.float().to(self.device)
        self._sigma = (1 - alpha**2).sqrt().float().to(self.device)

    @property
    def engine_name(self) -> str:
        return self._engine.name

    @property
    def engine_note(self) -> str:
        return "; ".join(n for n in (*self._notes, self._space.note) if n)

    @property
    def torch_threads(self) -> int:
        return self._engine.torch_threads

    def prepare(self, batch_sizes: Iterable[int]) -> None:
        """Compile for batches of these sizes (pictures times roles), so that the first step need not."""
        hidden = self._text.embed("")
        for b in sorted(set(batch_sizes)):
            engine = self._engine
            try:
                engine.prepare(Shapes((b, *self.shape), (b, *hidden.shape[1:])))
            except EngineFailure as e:
                self._fall_back(engine, e)

    def embed(self, text: str) -> Cond:
        """hidden [1, L, D]; "" is unconditional. Warns of words that the text encoder does not get to see."""
        remark = self._text.remark(text, is_prompt=False)  # it may be a negative one, which names no object
        if remark:
            warnings.warn(remark, stacklevel=2)
        return Cond(self._text.embed(text))

    def remark(self, text: str) -> str:
        """Which words of the prompt `text` the model does not get to see and why; "" where it sees all. A model with
        a word list says then which words it knows, and also where a prompt names no object."""
        return self._text.remark(text)

    def encode(self, rgb: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B C H W"]:
        """rgb in [0, 1] of any size -> z; differentiable. A VAE gives the mean of its posterior."""
        with memory_explained(f"encoding {len(rgb)} pictures of {self.image_size} pixels", self.device):
            return self._space.encode(resize(rgb, (self.image_size, self.image_size)))

    @torch.no_grad()
    def decode(self, z: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 S S"]:
        """z -> rgb clamped to [0, 1]."""
        with memory_explained(f"decoding {len(z)} pictures of {self.image_size} pixels", self.device):
            return self._space.decode(z).clamp(0, 1)

    def marginal(self, t: Int[Tensor, " B"]) -> tuple[Float[Tensor, "B 1 1 1"], Float[Tensor, "B 1 1 1"]]:
        """alpha, sigma of the model's own schedule, alpha at least 1e-4."""
        return self._alpha[t].view(-1, 1, 1, 1), self._sigma[t].view(-1, 1, 1, 1)

    @torch.no_grad()
    def eps(self, z_t: Float[Tensor, "B C H W"], t: Int[Tensor, " B"], cond: Cond) -> Float[Tensor, "B C H W"]:
        """The noise prediction, in the dtype of z_t. ValueError unless each picture has its conditioning."""
        if not len(z_t) == len(t) == len(cond.hidden):
            raise ValueError(
                f"{len(z_t)} pictures with {len(t)} timesteps and conditioning for {len(cond.hidden)}: "
                "there must be one of each per picture"
            )
        # networks with a learned variance (Nichol & Dhariwal 2021; DeepFloyd IF) answer with it behind the mean
        with memory_explained(f"the network with {len(z_t)} pictures at once", self.device):
            out = self._network(z_t, t, cond.hidden)[:, : z_t.shape[1]].to(z_t.dtype)
        alpha, sigma = (x.to(z_t.dtype) for x in self.marginal(t))
        return as_eps(self.prediction_type, out, z_t, alpha, sigma)

    def trainable(self, how: str, rank: int) -> Trainable:
        """A network that starts as this one and can learn, on this device; `how` is one of
        `sdlab.auxiliary.score.NETWORKS`, `rank` that of its LoRA. Draws from torch's own generator."""
        with memory_explained(f"a network that learns ({how})", self.device):
            net = TrainableUNet(self.unet, how, rank, _AUTOCAST.get(self._precision))
        if isinstance(self._engine, OpenVinoEngine):
            net.answered_by(self._engine.twin(net.unet))
        return Trainable(net, self.prediction_type, self.marginal)

    def _network(self, z_t: Tensor, t: Tensor, hidden: Tensor) -> Tensor:
        engine = self._engine
        try:
            return engine.forward(z_t.float(), t, hidden)
        except EngineFailure as e:
            self._fall_back(engine, e)
            return self._engine.forward(z_t.float(), t, hidden)

    def _fall_back(self, failed: Engine, reason: EngineFailure) -> None:
        with self._falling_back:
            if self._engine is failed:
                self._engine = TorchEngine(self.unet, self._precision, self._threads)
                self._notes.append(f"{reason}; torch runs instead")


# ---- words ------------------------------------------------------------------------------------------------------


class TextEncoder:
    """Text -> hidden [1, L, D] on `device`, as the Stable Diffusion and DeepFloyd IF pipelines do it; the last texts
    are kept. `model` may be elsewhere."""

    def __init__(self, tokenizer: Any, model: nn.Module, known: WordList | None, device: torch.device) -> None:
        self.model = model
        self._device = device
        self._known = known
        self._tokenizer = tokenizer
        config: Any = model.config
        is_t5 = config.model_type == "t5"
        # CLIP attends to the padding too: the networks were trained that way
        self._masks_padding = is_t5 or getattr(config, "use_attention_mask", False)
        own_limit = T5_TOKENS if is_t5 else config.max_position_embeddings
        self._n_tokens = min(tokenizer.model_max_length, own_limit)
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        self._turn = threading.Lock()  # also for the tokenizer, which fails when two threads set its padding

    @torch.no_grad()
    def embed(self, text: str) -> Float[Tensor, "1 L D"]:
        with self._turn:
            if text not in self._kept:
                self._kept[text] = self._encode(text)
            self._kept.move_to_end(text)
            while len(self._kept) > KEPT_TEXTS:
                self._kept.popitem(last=False)
            return self._kept[text]

    def _encode(self, text: str) -> Tensor:
        tokens = self._tokenizer(
            text,
            padding="max_length",
            truncation=True,
            max_length=self._n_tokens,
            return_attention_mask=True,
            return_tensors="pt",
        ).to(self.model.device)
        mask = tokens.attention_mask if self._masks_padding else None
        return self.model(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state.float().to(self._device)

    def remark(self, text: str, is_prompt: bool = True) -> str:
        """What to tell the writer of `text`; of a prompt also that it names no object."""
        remarks = self._unread(text)
        if self._known is None:
            return "; ".join(remarks)
        if is_prompt and text.strip() and not self._known.names_object(text):
            remarks.append("the prompt names no object that the model knows, so what grows is left to chance")
        return f"{'; '.join(remarks)}. The words it knows:\n{self._known.shown()}" if remarks else ""

    def _unread(self, text: str) -> list[str]:
        with self._turn:
            tokens = self._tokenizer(
                text, add_special_tokens=False, truncation=False, return_offsets_mapping=True, verbose=False
            )
        ids, offsets = tokens["input_ids"], tokens["offset_mapping"]
        room = self._n_tokens - self._tokenizer.num_special_tokens_to_add()
        remarks = []
        if len(ids) > room:
            start = offsets[room][0]
            while start > 0 and not text[start - 1].isspace():
                start -= 1  # a word that is cut in the middle is named as a whole
            remarks.append(f"the model reads the first {room} tokens of a prompt; cut: {_listed(text[start:].split())}")
        unknown = self._unknown_token()
        words = [text[a:b] for i, (a, b) in zip(ids[:room], offsets, strict=False) if i == unknown]
        words = [w for w in dict.fromkeys(words) if w.strip(string.punctuation)]
        if words:
            remarks.append(f"the model does not know these words: {_listed(words, self._known)}")
        return remarks

    def _unknown_token(self) -> int | None:
        k = self._tokenizer
        # CLIP's tokenizer knows every text and reuses the end token's number here
        return None if k.unk_token_id in (k.eos_token_id, k.pad_token_id) else k.unk_token_id


def _listed(words: Sequence[str], known: WordList | None = None, show: int = 8) -> str:
    """Some words in quotes; each with the one of `known` that may be meant."""
    listed = []
    for word in words[:show]:
        near = known.nearest(word) if known else ""
        listed.append(f"{word[:40]!r} (did you mean {near!r}?)" if near else repr(word[:40]))
    more = f" and {len(words) - show} more" if len(words) > show else ""
    return ", ".join(listed) + more


# ---- pictures ---------------------------------------------------------------------------------------------------


@runtime_checkable
class Space(Protocol):
    """The space the network works in."""

    shape: tuple[int, int, int]
    image_size: int
    model: nn.Module
    note: str  # what is not as one would expect, for people

    def encode(self, rgb: Tensor) -> Tensor: ...

    def decode(self, z: Tensor) -> Tensor: ...


class PixelSpace:
    """z = 2 rgb - 1, every block of patch x patch pixels being one place of z (space to depth).

    Pixel (y, x) of colour c goes to channel patch^2 c + patch (y mod patch) + x mod patch. That is a permutation of
    the picture's numbers and so orthonormal: white noise stays white, and norms, residuals and gradients are those
    of the pixels.
    """

    def __init__(self, size: int, patch: int) -> None:
        self.shape: tuple[int, int, int] = (3 * patch**2, size, size)
        self.image_size = size * patch
        self.model: nn.Module = nn.Identity()
        self.note = ""
        self._patch = patch

    def encode(self, rgb: Tensor) -> Tensor:
        return F.pixel_unshuffle(2 * rgb - 1, self._patch)

    def decode(self, z: Tensor) -> Tensor:
        return F.pixel_shuffle(z, self._patch) / 2 + 0.5


class LatentSpace:
    """z = scale (latent - shift) of a VAE, whose weights are float32.

    It computes in `autocast`, if that is given, until an answer is not finite: then and from then on in float32. With
    `one_by_one` it takes one picture at a time, and keeps no activations for the way back but computes them again.
    """

    def __init__(
        self, vae: nn.Module, size: int, autocast: torch.dtype | None = None, one_by_one: bool = False
    ) -> None:
        config: Any = vae.config
        blocks = getattr(config, "block_out_channels", None) or config.encoder_block_out_channels
        self.shape: tuple[int, int, int] = (config.latent_channels, size, size)
        self.image_size = size * 2 ** (len(blocks) - 1)
        self.model: nn.Module = vae
        self.note = ""
        self._vae: Any = vae
        self._autocast = autocast
        self._one_by_one = one_by_one
        self._scale = config.scaling_factor
        self._shift = getattr(config, "shift_factor", None) or 0.0

    def encode(self, rgb: Tensor) -> Tensor:
        return self._scale * (self._finite(self._mean, 2 * rgb - 1) - self._shift)

    def decode(self, z: Tensor) -> Tensor:
        return self._finite(self._picture, z / self._scale + self._shift) / 2 + 0.5

    def _mean(self, x: Tensor) -> Tensor:
        answer = self._vae.encode(x)
        return answer.latent_dist.mean if hasattr(answer, "latent_dist") else answer.latents

    def _picture(self, latent: Tensor) -> Tensor:
        return self._vae.decode(latent, return_dict=False)[0]

    def _finite(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """network(x) in float32, computed in half precision as long as that is good for it."""
        half = self._autocast
        if half is None:
            return self._by_parts(network, x)
        with torch.autocast(x.device.type, half):
            out = _with_large_gradient(lambda part: self._by_parts(network, part), x).float()
        if bool(torch.isfinite(out).all()) or not bool(torch.isfinite(x).all()):
            return out
        self._autocast = None
        self.note = f"the VAE overflows in {str(half).removeprefix('torch.')}: it computes in float32 instead"
        warnings.warn(self.note, stacklevel=2)
        return self._by_parts(network, x)

    def _by_parts(self, network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if not self._one_by_one:
            return network(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return torch.cat([network(part) for part in x.split(1)])
        again = [checkpoint(network, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(1)]
        return torch.cat(again)  # type: ignore[arg-type]


def _with_large_gradient(network: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """network(x), whose gradient is about 1 on its way back through the network whatever size it comes in: what is
    small vanishes in half precision."""
    if not (torch.is_grad_enabled() and x.requires_grad):
        return network(x)
    factor = torch.ones((), device=x.device)

    def enlarge(grad: Tensor) -> Tensor:
        largest = grad.abs().max().float().clamp(1e-30, 1e30)
        factor.copy_(torch.exp2(-torch.log2(largest).round()))  # a power of 2 is multiplied by without rounding
        return grad * factor

    x = x * 1.0  # a tensor of its own, for the hook
    x.register_hook(lambda grad: grad / factor)
    out = network(x).float()
    out.register_hook(enlarge)
    return out


# ---- reading the parts ------------------------------------------------------------------------------------------


def _require_support(folder: Path) -> None:
    """ValueError or RuntimeError unless the small files in `folder` are those of a model that can be used here."""
    require_layout(folder)
    _read_schedule(folder)
    _text_encoder_class(folder)
    config = _unet_config(folder)
    _require_space(folder, config.get("in_channels", 4), config.get("out_channels", 4))


def _read_schedule(folder: Path) -> tuple[Tensor, str]:
    """alpha_t^2 [1000] and what the network predicts."""
    from diffusers import DDPMScheduler

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{file}: prediction_type {prediction!r}; supported are {', '.join(PREDICTIONS)}")
    # whichever sampler the file names, the schedule it was trained with is that of DDPM
    named = {k: config[k] for k in ("beta_start", "beta_end", "beta_schedule", "trained_betas") if k in config}
    try:
        scheduler = DDPMScheduler(
            num_train_timesteps=config.get("num_train_timesteps", N_TIMESTEPS),
            rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
            **named,
        )
    except Exception as e:
        raise ValueError(f"{file}: not a noise schedule of the DDPM kind ({first_line(e)})") from e
    if len(scheduler.alphas_cumprod) != N_TIMESTEPS:
        raise ValueError(f"{file}: {len(scheduler.alphas_cumprod)} timesteps; supported are {N_TIMESTEPS}")
    return scheduler.alphas_cumprod, prediction


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            folder / "tokenizer", local_files_only=True, trust_remote_code=False, use_fast=True
        )
    except Exception as e:
        place = folder / "tokenizer"
        if (place / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
            raise RuntimeError(
                f"{place} is in SentencePiece's format, for which a package is missing: pip install sentencepiece"
            ) from e
        raise RuntimeError(f"{place} cannot be loaded ({first_line(e)}); copy or download it again") from e


def _text_encoder_class(folder: Path) -> Any:
    import transformers

    file = folder / "text_encoder" / "config.json"
    config = read_json(file)
    name = (config.get("architectures") or ["none"])[0]
    if config.get("model_type") == "t5":
        name = "T5EncoderModel"  # whatever head the file was saved with, only the encoder is used
    if name not in TEXT_ENCODERS:
        raise ValueError(f"{file}: text encoder {name}; supported are {', '.join(TEXT_ENCODERS)}")
    return getattr(transformers, name)


def _unet_config(folder: Path) -> dict[str, Any]:
    file = folder / "unet" / "config.json"
    config = read_json(file)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"{file}: {config.get('_class_name')}; supported is UNet2DConditionModel")
    extra = [k for k in ("class_embed_type", "num_class_embeds") if config.get(k) is not None]
    if config.get("addition_embed_type") not in (None, "text"):  # "text" needs nothing but the hidden states
        extra.append("addition_embed_type")
    if extra:
        shown = ", ".join(f"{k} {config[k]!r}" for k in extra)
        raise ValueError(
            f"{file}: {shown}; supported are networks that are conditioned on text and timestep alone, as Stable "
            "Diffusion 1.5 and 2.1 or the first stage of DeepFloyd IF, but not SDXL"
        )
    if not isinstance(config.get("sample_size"), int):
        raise ValueError(
            f"{file}: sample_size {config.get('sample_size')!r}; needed is one number, for square pictures"
        )
    return config


def _require_space(folder: Path, channels: int, out: int) -> None:
    """ValueError unless a network of that many `channels` works on pixels, or on the latents of the VAE in `folder`."""
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{folder / 'unet'}: {channels} channels in, {out} out; needed are as many, or twice as many, out"
        )
    if not (folder / "vae").is_dir():
        if channels < 3 or channels != 3 * _patch(channels) ** 2:
            raise ValueError(
                f"{folder}: there is no vae/ folder and the network works on {channels} channels; a pixel model has 3, "
                "or 3 k^2 for blocks of k x k pixels (12, 27, 48, ...), and a latent model needs its vae/ folder"
            )
        return
    file = folder / "vae" / "config.json"
    config = read_json(file)
    if config.get("_class_name") not in VAES:
        raise ValueError(f"{file}: {config.get('_class_name')}; supported are {', '.join(VAES)}")
    latents = config.get("latent_channels", 4)
    if latents != channels:
        raise ValueError(f"{file}: latents of {latents} channels, but the U-Net works on {channels}")


def _patch(channels: int) -> int:
    """k of a network on blocks of k x k pixels."""
    return math.isqrt(channels // 3)


def _load_unet(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    from diffusers import UNet2DConditionModel

    return _for_convolutions(_load_part(folder / "unet", UNet2DConditionModel, dtype, device))


def _load_space(
    folder: Path, unet: nn.Module, device: torch.device, autocast: torch.dtype | None, one_by_one: bool
) -> Space:
    """Pixels, or the latent space of the VAE in `folder`."""
    import diffusers

    config: Any = unet.config
    if not (folder / "vae").is_dir():
        return PixelSpace(config.sample_size, _patch(config.in_channels))
    cls = getattr(diffusers, read_json(folder / "vae" / "config.json")["_class_name"])
    vae = _for_convolutions(_load_part(folder / "vae", cls, torch.float32, device))
    return LatentSpace(vae, config.sample_size, autocast, one_by_one)


def _for_convolutions(network: nn.Module) -> nn.Module:
    """With the weights in the order in which a GPU convolves fastest."""
    if next(network.parameters()).device.type == "cuda":
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def _vae_precision(asked: str, of_network: str, device: torch.device) -> str:
    """The precision of the VAE; ValueError for one that is unknown or needs a GPU."""
    if asked == "auto":
        return "fp32" if device.type == "cpu" else of_network
    return resolve_precision(asked, device, "prior.vae_precision")[0]


def _must_match(unet: nn.Module, width: int, folder: Path) -> None:
    config: Any = unet.config
    wanted = config.encoder_hid_dim or config.cross_attention_dim
    if width != (wanted if isinstance(wanted, int) else wanted[0]):
        raise ValueError(f"{folder}: the text encoder gives {width} numbers per token, the U-Net expects {wanted}")


def _load_part(place: Path, cls: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """One network, frozen. RuntimeError when its files are missing, damaged or of another network."""
    variant, _ = checked_weights(place, half=dtype == torch.float16)
    try:
        with _no_progress_bar():
            model, info = cls.from_pretrained(
                place,
                variant=variant or None,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
    except Exception as e:
        if is_out_of_memory(e):
            raise
        raise RuntimeError(f"{place} cannot be loaded as {cls.__name__}: {first_line(e)}") from e
    lacking = sorted(info["missing_keys"])
    if lacking:  # the libraries would fill them with random numbers
        raise RuntimeError(
            f"{place}: the weights lack {len(lacking)} tensors that its config.json asks for: {lacking[0]}"
        )
    return model.to(device).eval().requires_grad_(False)


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Without the libraries' bars on the terminal, which are others than our own and gone in a moment."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    shown = [library for library in (of_diffusers, of_transformers) if library.is_progress_bar_enabled()]
    for library in shown:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library in shown:
            library.enable_progress_bar()


# ---- memory -----------------------------------------------------------------------------------------------------


def _size(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of the networks in `folder` when they are loaded: the VAE's are float32, the others of `dtype`."""
    total = 0
    for part in ("text_encoder", "unet", "vae"):
        if (folder / part).is_dir():
            _, files = checked_weights(folder / part, half=dtype == torch.float16)
            total += count_numbers(files) * (torch.float32 if part == "vae" else dtype).itemsize
    return total
