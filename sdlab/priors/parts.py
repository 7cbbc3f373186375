"""The parts of a model in the diffusers layout: checking that they are supported, and loading each of them.

Only safetensors, JSON and text are read, and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from sdlab.errors import first_line, is_out_of_memory
from sdlab.priors.files import checked_weights, count_numbers, read_json, require_layout
from sdlab.priors.prediction import PREDICTIONS
from sdlab.priors.spaces import LatentSpace, PixelSpace, Space
from sdlab.priors.text import TextEncoder
from sdlab.priors.wordlist import read_word_list
from sdlab.types import N_TIMESTEPS

TEXT_ENCODERS = ("CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel")
VAES = ("AutoencoderKL", "AutoencoderTiny")
_shared: WeakValueDictionary[tuple, nn.Module] = WeakValueDictionary()  # U-Nets on GPUs, while somebody uses them
_sharing = threading.Lock()


# ---- support ----------------------------------------------------------------------------------------------------


def require_support(folder: Path) -> None:
    """Raise ValueError or RuntimeError unless the configuration files in `folder` describe a supported model."""
    require_layout(folder)
    read_schedule(folder)
    _text_encoder_class(folder)
    config = _unet_config(folder)
    _require_space(folder, config.get("in_channels", 4), config.get("out_channels", 4))


def require_match(unet: nn.Module, width: int, folder: Path) -> None:
    """Raise ValueError unless the U-Net takes text embeddings of `width` numbers per token."""
    config: Any = unet.config
    expected = config.encoder_hid_dim or config.cross_attention_dim
    if width != (expected if isinstance(expected, int) else expected[0]):
        raise ValueError(
            f"{folder}: the text encoder gives {width} numbers per token, but the U-Net expects {expected}; "
            "they are not parts of the same model"
        )


def _unet_config(folder: Path) -> dict[str, Any]:
    file = folder / "unet" / "config.json"
    config = read_json(file)
    if config.get("_class_name") != "UNet2DConditionModel":
        raise ValueError(f"{file}: {config.get('_class_name')} is not supported, only UNet2DConditionModel")
    extra = [k for k in ("class_embed_type", "num_class_embeds") if config.get(k) is not None]
    if config.get("addition_embed_type") not in (None, "text"):  # "text" needs only the hidden states
        extra.append("addition_embed_type")
    if extra:
        shown = ", ".join(f"{k} {config[k]!r}" for k in extra)
        raise ValueError(
            f"{file}: {shown} is not supported; use a network conditioned only on text and timestep, such as Stable "
            "Diffusion 1.5 or 2.1 or the first stage of DeepFloyd IF, but not SDXL"
        )
    if not isinstance(config.get("sample_size"), int):
        raise ValueError(f"{file}: sample_size is {config.get('sample_size')!r}; it must be one number (square images)")
    return config


def _require_space(folder: Path, channels: int, out: int) -> None:
    """Raise ValueError unless `channels` in and `out` out fit pixels, or the latents of the VAE in `folder`."""
    if out not in (channels, 2 * channels):
        raise ValueError(
            f"{folder / 'unet'}: {channels} input and {out} output channels; the output must have as many channels as "
            "the input, or twice as many (with a learned variance)"
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
        raise ValueError(f"{file}: {config.get('_class_name')} is not supported, only {', '.join(VAES)}")
    latents = config.get("latent_channels", 4)
    if latents != channels:
        raise ValueError(f"{file}: the VAE has {latents} latent channels, but the U-Net works on {channels}")


def _patch(channels: int) -> int:
    """Return k for a network on blocks of k x k pixels."""
    return math.isqrt(channels // 3)


# ---- loading ----------------------------------------------------------------------------------------------------


def read_schedule(folder: Path) -> tuple[Tensor, str]:
    """Return alpha_t^2 [1000] and the prediction type; ValueError for a schedule that is not supported."""
    from diffusers import DDPMScheduler

    file = folder / "scheduler" / "scheduler_config.json"
    config = read_json(file)
    prediction = config.get("prediction_type", "epsilon")
    if prediction is None:
        raise ValueError(f"{file}: prediction_type is null; set it to {' or '.join(PREDICTIONS)}")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{file}: prediction_type {prediction!r} is not supported, only {', '.join(PREDICTIONS)}")
    # whichever sampler the file names, the model was trained with DDPM's schedule
    named = {k: config[k] for k in ("beta_start", "beta_end", "beta_schedule", "trained_betas") if k in config}
    try:
        scheduler = DDPMScheduler(
            num_train_timesteps=config.get("num_train_timesteps", N_TIMESTEPS),
            rescale_betas_zero_snr=config.get("rescale_betas_zero_snr", False),
            **named,
        )
    except Exception as e:
        raise ValueError(f"{file}: this is not a DDPM noise schedule ({first_line(e)})") from e
    if len(scheduler.alphas_cumprod) != N_TIMESTEPS:
        raise ValueError(f"{file}: {len(scheduler.alphas_cumprod)} timesteps are not supported, only {N_TIMESTEPS}")
    return scheduler.alphas_cumprod, prediction


def load_text(folder: Path, dtype: torch.dtype, runs_on: torch.device, device: torch.device) -> TextEncoder:
    """Load tokenizer, text encoder and word list; the encoder runs on `runs_on` and returns tensors on `device`."""
    encoder = _load_network(folder / "text_encoder", _text_encoder_class(folder), dtype, runs_on)
    return TextEncoder(_load_tokenizer(folder), encoder, read_word_list(folder), device)


def load_unet(folder: Path, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Load the U-Net, frozen. On a GPU, models that differ only in other parts share it: a second one may not fit."""
    from diffusers import UNet2DConditionModel

    place = folder / "unet"
    if device.type == "cpu":
        return _load_network(place, UNet2DConditionModel, dtype, device)
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(place.iterdir())]
    key = (place.resolve(), *stamps, dtype, str(device))
    with _sharing:
        unet = _shared.get(key)
        if unet is None:
            unet = _shared[key] = _channels_last(_load_network(place, UNet2DConditionModel, dtype, device))
    return unet


def load_space(
    folder: Path, unet: nn.Module, device: torch.device, half: torch.dtype | None, one_by_one: bool
) -> Space:
    """Return the pixel space, or load the VAE in `folder` and return its latent space (see `LatentSpace`), on a GPU
    with weights in `half`, if given."""
    import diffusers

    config: Any = unet.config
    if not (folder / "vae").is_dir():
        return PixelSpace(config.sample_size, _patch(config.in_channels))
    cls = getattr(diffusers, read_json(folder / "vae" / "config.json")["_class_name"])
    vae = _channels_last(_load_network(folder / "vae", cls, vae_dtype(half, device), device))
    return LatentSpace(vae, config.sample_size, half, one_by_one)


def shape_in(folder: Path) -> tuple[tuple[int, int, int], int]:
    """Return the shape (C, H, W) of the space of the model in `folder` and the side of its images in pixels, as
    `load_space` would, from its small files alone."""
    unet = read_json(folder / "unet" / "config.json")
    size = int(unet["sample_size"])
    if not (folder / "vae").is_dir():
        space = PixelSpace(size, _patch(unet["in_channels"]))
        return space.shape, space.image_size
    vae = read_json(folder / "vae" / "config.json")
    blocks = vae.get("block_out_channels") or vae["encoder_block_out_channels"]
    return (int(vae["latent_channels"]), size, size), size * 2 ** (len(blocks) - 1)


def vae_dtype(half: torch.dtype | None, device: torch.device) -> torch.dtype:
    """Return the dtype of a VAE's weights: `half` on a GPU, where they and their activations then need 40 % less
    memory than under autocast; on a CPU float32."""
    return half if half is not None and device.type != "cpu" else torch.float32


def loaded_bytes(folder: Path, dtype: torch.dtype, vae: torch.dtype) -> int:
    """Return the memory that the networks in `folder` take, with the VAE's weights in `vae`, the others in `dtype`."""
    total = 0
    for part in ("text_encoder", "unet", "vae"):
        if (folder / part).is_dir():
            _, files = checked_weights(folder / part, half=dtype == torch.float16)
            total += count_numbers(files) * (vae if part == "vae" else dtype).itemsize
    return total


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    place = folder / "tokenizer"
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False, use_fast=True)
    except Exception as e:
        if (place / "spiece.model").is_file() and importlib.util.find_spec("sentencepiece") is None:
            raise RuntimeError(
                f"{place} is in SentencePiece format, which needs a package: pip install sentencepiece"
            ) from e
        raise RuntimeError(f"{place} cannot be loaded ({first_line(e)}); copy or download it again") from e
    if tokenizer.pad_token_id is None:
        config = place / "tokenizer_config.json"
        raise RuntimeError(
            f"{config} names no pad_token, without which texts cannot be padded to one length; add the one that the "
            "model was trained with"
            if config.is_file()
            else f"{config}, which names the padding token, is missing; copy or download it"
        )
    return tokenizer


def _text_encoder_class(folder: Path) -> Any:
    import transformers

    file = folder / "text_encoder" / "config.json"
    config = read_json(file)
    name = (config.get("architectures") or ["none"])[0]
    if config.get("model_type") == "t5":
        name = "T5EncoderModel"  # only the encoder is used, whatever head was saved with it
    if name not in TEXT_ENCODERS:
        raise ValueError(f"{file}: text encoder {name} is not supported, only {', '.join(TEXT_ENCODERS)}")
    return getattr(transformers, name)


def _load_network(place: Path, cls: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Load one network, frozen; RuntimeError when its files are missing, damaged or belong to another network."""
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
        raise RuntimeError(
            f"{place} cannot be loaded as {cls.__name__} ({first_line(e)}); copy or download it again"
        ) from e
    missing = sorted(info["missing_keys"])
    if missing:  # the libraries would fill them with random numbers
        raise RuntimeError(
            f"{place}: the weights lack {len(missing)} tensors that config.json requires, such as {missing[0]}; "
            "copy or download them again"
        )
    return model.to(device).eval().requires_grad_(False)


def _channels_last(network: nn.Module) -> nn.Module:
    """On a GPU, switch the weights to channels-last, the memory format with the fastest convolutions."""
    if next(network.parameters()).device.type == "cuda":
        return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hide the libraries' progress bars, which last a moment and would mix with our own."""
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
