"""Networks of the toybox prior: a small pixel-space U-Net, a two-layer CLIP text model, a word-level tokenizer.

Everything is saved in the diffusers layout (unet/ text_encoder/ tokenizer/ scheduler/) with float16 safetensors, so it
loads without this module: `from_pretrained(folder, subfolder=...)` of diffusers and transformers is enough. There is
no model_index.json because no diffusers pipeline class combines exactly these parts.

There is no vae/ either: the latent space is pixels, after space to depth. z = pixel_unshuffle(2 rgb - 1, patch) turns
each patch x patch block of the image into one position with 3 patch^2 channels. Nothing is lost, white noise stays
white, and the network costs 1 / patch^2 of what it would at full resolution.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from sdlab.toybox import pictures
from sdlab.toybox.words import vocabulary, word_list

MAX_TOKENS = 77  # as in CLIP; a prompt plus SBP's source prompt of ten descriptors must fit
ENDS = ("conv_in.weight", "conv_out.weight", "conv_out.bias")  # layers that read or write pixels
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
PUNCTUATION = (",", ".", "-")


@dataclass(frozen=True)
class Shape:
    """Network sizes and prediction type. The defaults are the shipped model's; tests build smaller ones."""

    channels: tuple[int, ...] = (48, 96, 192)
    size: int = pictures.SIZE  # image side in pixels
    patch: int = 1  # side in pixels of the block that becomes one position of the network
    text_width: int = 128
    text_layers: int = 2
    prediction: Literal["v_prediction", "epsilon"] = "v_prediction"
    betas: Literal["squaredcos_cap_v2", "scaled_linear"] = "squaredcos_cap_v2"  # the latter as in Stable Diffusion


@dataclass
class Toybox:
    """The networks, tokenizer and noise schedule of a toybox prior."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerFast
    scheduler: DDPMScheduler

    def parameters(self) -> list[nn.Parameter]:
        return [*self.unet.parameters(), *self.text_encoder.parameters()]

    @property
    def patch(self) -> int:
        """Side in pixels of the block that becomes one position of the network."""
        return math.isqrt(int(self.unet.config["in_channels"]) // 3)

    def encode(self, rgb: Tensor) -> Tensor:
        """Encode rgb [B, 3, S, S] in [0, 1] as z [B, 3 patch^2, S / patch, S / patch] in [-1, 1]."""
        return F.pixel_unshuffle(2 * rgb - 1, self.patch)

    def decode(self, z: Tensor) -> Tensor:
        """Invert `encode`; the result is clamped to [0, 1]."""
        return (F.pixel_shuffle(z, self.patch).clamp(-1, 1) + 1) / 2

    def to(self, device: torch.device) -> Toybox:
        """Move both networks to `device` and return self."""
        self.unet.to(device)  # pyright: ignore[reportArgumentType]
        self.text_encoder.to(device)  # pyright: ignore[reportArgumentType]
        return self


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: lower case, split at white space and punctuation, one token per word.

    A caption becomes <bos> words <eos>, padded to 77 tokens.
    """
    ids = {word: i for i, word in enumerate([*SPECIAL, *PUNCTUATION, *vocabulary()])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", ids["<bos>"]), ("<eos>", ids["<eos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=MAX_TOKENS,
    )


def build(shape: Shape | None = None, seed: int = 0) -> Toybox:
    """Return freshly initialised networks.

    The caption reaches the U-Net in two ways: pooled and added to the timestep embedding, which lets small networks
    learn classes quickly, and by cross-attention to the words at the lowest resolution and in the middle block.
    """
    shape = shape or Shape()
    depth = len(shape.channels)
    heads = tuple(max(c // 32, 1) for c in shape.channels)  # diffusers calls the number of heads attention_head_dim
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=shape.text_width,
                intermediate_size=2 * shape.text_width,
                num_hidden_layers=shape.text_layers,
                num_attention_heads=max(shape.text_width // 32, 1),
                max_position_embeddings=MAX_TOKENS,
                projection_dim=shape.text_width,
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=shape.size // shape.patch,
            in_channels=3 * shape.patch**2,
            out_channels=3 * shape.patch**2,
            layers_per_block=1,
            block_out_channels=shape.channels,
            down_block_types=("DownBlock2D",) * (depth - 1) + ("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * (depth - 1),
            cross_attention_dim=shape.text_width,
            attention_head_dim=heads,  # pyright: ignore[reportArgumentType]  # documented: one per level
            norm_num_groups=16,
            use_linear_projection=True,
            addition_embed_type="text",
            addition_embed_type_num_heads=max(shape.text_width // 32, 1),
            resnet_time_scale_shift="scale_shift",
        )
    scheduler = DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule=shape.betas,
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=shape.prediction,
        clip_sample=True,
    )
    # On a CPU the backward pass of fused attention is slower: 1.4 times in the U-Net, 5 % in the text model.
    unet.set_attn_processor(AttnProcessor())
    text_encoder.set_attn_implementation("eager")
    return Toybox(unet, text_encoder, tokenizer, scheduler)


def encode_captions(tokenizer: PreTrainedTokenizerFast, captions: list[str]) -> Tensor:
    """Tokenize captions to int64 [N, 77], padded, or truncated if they are longer."""
    tokens: Any = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids


def save(box: Toybox, folder: Path, parameters: list[Tensor] | None = None) -> None:
    """Write the diffusers layout in float16.

    `parameters`, in the order of `box.parameters()`, replace the networks' own weights.
    """
    half = copy_in_half(box, parameters)
    for stale in (folder / "unet").glob("*.safetensors*"):  # a single file and shards must not coexist
        stale.unlink()
    half.unet.save_pretrained(folder / "unet", max_shard_size="8MB")  # the Hub stores files below 10 MB without LFS
    half.text_encoder.save_pretrained(folder / "text_encoder")
    box.tokenizer.save_pretrained(folder / "tokenizer")
    box.scheduler.save_pretrained(folder / "scheduler")
    (folder / "words.json").write_text(json.dumps(word_list(), indent=1) + "\n", encoding="utf-8")


def copy_in_half(box: Toybox, parameters: list[Tensor] | None) -> Toybox:
    """Return a float16 copy of the networks, with the given parameters or their own."""
    # drop the local path that the U-Net was loaded from
    unet = UNet2DConditionModel.from_config({k: v for k, v in box.unet.config.items() if k != "_name_or_path"})
    text_encoder = CLIPTextModel(box.text_encoder.config)
    assert isinstance(unet, UNet2DConditionModel)
    copy = Toybox(unet, text_encoder, box.tokenizer, box.scheduler)
    with torch.no_grad():
        for mine, theirs in zip(copy.parameters(), parameters or box.parameters(), strict=True):
            mine.copy_(theirs)
    unet.half()
    text_encoder.half()
    return copy


def adopt(box: Toybox, folder: Path) -> None:
    """Initialise `box` from the weights of a saved toybox of the same shape; word embeddings are matched by word.

    A network on pixel blocks can initialise one on single pixels: a pixel is then treated as a uniform block, and the
    output for a block is averaged. Raises ValueError if the networks differ in any other way.
    """
    other = load(folder, torch.device("cpu"))
    words, known = box.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    names = [n for part in (box.unet, box.text_encoder) for n, _ in part.named_parameters()]
    with torch.no_grad():
        for name, mine, theirs in zip(names, box.parameters(), other.parameters(), strict=True):
            if name.endswith("token_embedding.weight") and mine.shape[1:] == theirs.shape[1:]:
                for word in words.keys() & known.keys():
                    mine[words[word]] = theirs[known[word]].to(mine)
            elif name in ENDS and box.patch == 1 and other.patch > 1:
                mine.copy_(_of_pixels(name, theirs, other.patch))
            elif mine.shape != theirs.shape:
                raise ValueError(f"--start: {folder} has different networks ({name} is {list(theirs.shape)} there)")
            else:
                mine.copy_(theirs)


def _of_pixels(name: str, theirs: Tensor, patch: int) -> Tensor:
    """Convert an outer layer of a network on blocks to single pixels; channels are ordered as by `pixel_unshuffle`."""
    if name == "conv_in.weight":
        return theirs.unflatten(1, (-1, patch**2)).sum(2)
    return theirs.unflatten(0, (-1, patch**2)).mean(1)


def load(folder: Path, device: torch.device) -> Toybox:
    """Load a saved toybox: float32, frozen, in evaluation mode. Raises ValueError if a part is missing."""
    for part in ("unet", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} is not a toybox folder: it has no {part}/")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32)
    assert isinstance(unet, UNet2DConditionModel)
    unet.requires_grad_(False).eval()
    text_encoder.requires_grad_(False).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    assert isinstance(scheduler, DDPMScheduler)
    return Toybox(unet, text_encoder, tokenizer, scheduler).to(device)
