"""A stand-in for Stable Diffusion 2.1-base: the published architecture with random weights, in the diffusers layout.

The cost of a step does not depend on the weights. The text encoder has only two layers, since prompts are encoded once
and cached. `SIZES` also has a small version that runs on any machine.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sdlab.priors.hub import ASSETS

BLOCKS = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")


class Size(NamedTuple):
    """Widths of the networks; `pixels` is the side of an image, eight times that of the latent."""

    pixels: int
    unet: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    vae: tuple[int, int, int, int]
    text: int
    groups: int


SIZES = {
    "sd-2.1-base": Size(512, (320, 640, 1280, 1280), (5, 10, 20, 20), (128, 256, 512, 512), 1024, 32),
    "tiny": Size(64, (16, 32, 32, 32), (1, 2, 2, 2), (8, 16, 16, 16), 32, 8),
}


def unet_config(size: Size) -> dict[str, Any]:
    """Return the configuration of diffusers' UNet2DConditionModel."""
    return {
        "sample_size": size.pixels // 8,
        "block_out_channels": size.unet,
        "attention_head_dim": size.heads,  # the published files use this name for the number of heads
        "cross_attention_dim": size.text,
        "down_block_types": BLOCKS,
        "up_block_types": tuple(name.replace("Down", "Up") for name in reversed(BLOCKS)),
        "layers_per_block": 2,
        "norm_num_groups": size.groups,
        "use_linear_projection": True,
    }


def vae_config(size: Size) -> dict[str, Any]:
    """Return the configuration of diffusers' AutoencoderKL."""
    return {
        "sample_size": size.pixels,
        "block_out_channels": size.vae,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "norm_num_groups": size.groups,
        "scaling_factor": 0.18215,
    }


def stand_in(folder: Path, size: Size, seed: int = 0) -> Path:
    """Write the model in half precision to `folder`, and return `folder`."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _save(UNet2DConditionModel.from_config(unet_config(size)), folder / "unet")
        _save(AutoencoderKL.from_config(vae_config(size)), folder / "vae")
        words = json.loads((ASSETS / "toybox/tokenizer/tokenizer.json").read_text(encoding="utf-8"))
        text = CLIPTextConfig(
            vocab_size=len(words["model"]["vocab"]),
            hidden_size=size.text,
            intermediate_size=4 * size.text,
            num_hidden_layers=2,
            num_attention_heads=max(size.text // 64, 1),
            max_position_embeddings=77,
            hidden_act="gelu",
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
        _save(CLIPTextModel(text), folder / "text_encoder")
    shutil.copytree(ASSETS / "toybox/tokenizer", folder / "tokenizer")
    schedule = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**schedule, steps_offset=1, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    return folder


def _save(network: Any, folder: Path) -> None:
    network.half().save_pretrained(folder)
