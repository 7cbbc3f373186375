"""Builders for tiny models in the diffusers layout with random weights, a few hundred kB each.

Their predictions are meaningless, but they load, convert and run like real models. `stable_diffusion` and
`deepfloyd_if` have the modules, names and files of the published models, but are narrower.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel, T5Tokenizer

WORDS = [
    *("<pad>", "<bos>", "<eos>", "<unk>"),
    *("a", "red", "blue", "green", "bear", "cat", "car", "front", "side", "back", "overhead", "view", ","),
]
TOKENS = 12  # per prompt, including the begin and end tokens
WIDTH = 16  # of a token's embedding
MODULATED = {
    "resnet_time_scale_shift": "scale_shift",
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}


def pixel_model(
    folder: Path,
    size: int = 8,
    patch: int = 1,
    out_channels: int = 0,
    modulated: bool = False,
    seed: int = 0,
    **scheduler: Any,
) -> Path:
    """Save a model for size x size images whose U-Net works on blocks of patch x patch pixels.

    `out_channels` 0 means as many as input channels. `modulated`: timestep and pooled text scale and shift the norms,
    as in the toybox and in DeepFloyd IF. `scheduler` overrides the scheduler's configuration, e.g. prediction_type.
    """
    channels = 3 * patch**2
    _save_text(folder, seed)
    _save_unet(folder, channels, out_channels or channels, size // patch, seed, **(MODULATED if modulated else {}))
    _save_scheduler(folder, **scheduler)
    return folder


def latent_model(folder: Path, size: int = 8, vae: str = "AutoencoderKL", seed: int = 0, **scheduler: Any) -> Path:
    """Save a model for images of 2 size x 2 size pixels whose VAE halves the resolution."""
    _save_text(folder, seed)
    _save_unet(folder, 4, 4, size, seed)
    _save_scheduler(folder, **scheduler)
    torch.manual_seed(seed)
    if vae == "AutoencoderKL":
        AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.2,
            shift_factor=0.1,
        ).save_pretrained(folder / "vae")
    else:
        AutoencoderTiny(
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        ).save_pretrained(folder / "vae")
    return folder


# Stable Diffusion's U-Net and VAE, without their widths
STABLE_DIFFUSION = {
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
}
STABLE_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}


def stable_diffusion(folder: Path, version: str = "1.5", seed: int = 0, **scheduler: Any) -> Path:
    """Save a model for 64 x 64 images with the structure of Stable Diffusion 1.5 or 2.1 (`version`)."""
    _save_clip_tokenizer(folder / "tokenizer")
    torch.manual_seed(seed)
    vocabulary = len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))
    config = _text_config(
        vocab_size=vocabulary,
        max_position_embeddings=77,
        num_hidden_layers=2,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1 if version == "1.5" else 0,
        hidden_act="quick_gelu" if version == "1.5" else "gelu",
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    file = folder / "text_encoder" / "model.safetensors"  # CLIP's format before transformers 5
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, file, {"format": "pt"})

    second = {"attention_head_dim": (1, 2, 4, 4), "use_linear_projection": True, "upcast_attention": True}
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16, 32, 32),
        norm_num_groups=4,
        cross_attention_dim=WIDTH,
        **STABLE_DIFFUSION,
        **({"attention_head_dim": 4} if version == "1.5" else second),
    ).save_pretrained(folder / "unet")

    AutoencoderKL(block_out_channels=(4, 8, 16, 16), norm_num_groups=4, sample_size=64, **STABLE_VAE).save_pretrained(
        folder / "vae"
    )
    if version == "1.5":
        _name_attention_as_in_2022(folder / "vae" / "diffusion_pytorch_model.safetensors")
        edit_json(folder / "vae" / "config.json", scaling_factor=None, shift_factor=None, force_upcast=None)
    _save_scheduler(folder, **scheduler)
    named = {"_class_name": "PNDMScheduler" if version == "1.5" else "DDIMScheduler", "skip_prk_steps": True}
    edit_json(folder / "scheduler" / "scheduler_config.json", **named, steps_offset=1, set_alpha_to_one=False)
    return folder


def _name_attention_as_in_2022(file: Path) -> None:
    """Give the VAE's attention the names it still has in the files of Stable Diffusion 1.5."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_file(file)
    for new, name in old.items():
        tensors = {k.replace(f".{new}.", f".{name}."): v for k, v in tensors.items()}
    save_file(tensors, file, {"format": "pt"})


def stable_diffusion_xl(folder: Path) -> Path:
    """Save a model with SDXL's differences: a second text encoder, and a U-Net conditioned on it and on sizes."""
    stable_diffusion(folder, "2.1")
    _save_text(folder, 0)
    for part in ("tokenizer", "text_encoder"):
        (folder / part).rename(folder / f"{part}_2")
    stable_diffusion(folder, "2.1")
    times = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    edit_json(folder / "unet" / "config.json", **times, projection_class_embeddings_input_dim=6 * 4 + WIDTH)
    return folder


def deepfloyd_if(folder: Path, seed: int = 0) -> Path:
    """Save a model for 16 x 16 images like the first stage of DeepFloyd IF: T5, a learned variance, no VAE."""
    torch.manual_seed(seed)
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words += [(f"\N{LOWER ONE EIGHTH BLOCK}{word}", -float(i)) for i, word in enumerate(WORDS[4:], 1)]
    T5Tokenizer(vocab=words, extra_ids=0, model_max_length=512).save_pretrained(folder / "tokenizer")
    _t5(len(words)).save_pretrained(folder / "text_encoder")
    UNet2DConditionModel(
        sample_size=16,
        out_channels=6,
        in_channels=3,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", *("SimpleCrossAttnDownBlock2D",) * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*("SimpleCrossAttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        encoder_hid_dim=WIDTH,
        cross_attention_norm="group_norm",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    ).save_pretrained(folder / "unet")
    learned = {"variance_type": "learned_range", "thresholding": True, "sample_max_value": 1.0}
    _save_scheduler(folder, beta_schedule="squaredcos_cap_v2", beta_start=0.0001, beta_end=0.02, **learned)
    return folder


def with_t5(folder: Path, seed: int = 0) -> Path:
    """Replace a model's text encoder with a tiny T5."""
    torch.manual_seed(seed)
    for file in (folder / "text_encoder").iterdir():
        file.unlink()
    _t5(len(WORDS)).save_pretrained(folder / "text_encoder")
    return folder


def _t5(vocabulary: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=vocabulary,
            d_model=WIDTH,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            pad_token_id=0,
            eos_token_id=2,
        )
    )


def edit_json(file: Path, **values: Any) -> None:
    """Overwrite entries of a JSON file; None removes an entry."""
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def _save_unet(folder: Path, channels: int, out_channels: int, size: int, seed: int, **more: Any) -> None:
    torch.manual_seed(seed)
    UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out_channels,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=2,
        norm_num_groups=4,
        **more,
    ).save_pretrained(folder / "unet")


def _save_scheduler(folder: Path, **scheduler: Any) -> None:
    defaults = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDPMScheduler(**(defaults | scheduler)).save_pretrained(folder / "scheduler")


def _save_text(folder: Path, seed: int) -> None:
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=TOKENS,
    ).save_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    CLIPTextModel(_text_config()).save_pretrained(folder / "text_encoder")


def _text_config(**more: Any) -> CLIPTextConfig:
    defaults = {
        "vocab_size": len(WORDS),
        "hidden_size": WIDTH,
        "projection_dim": WIDTH,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": TOKENS,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    return CLIPTextConfig(**(defaults | more))


def _save_clip_tokenizer(folder: Path) -> None:
    """Save a tokenizer in the published models' format: vocabulary and merges, no tokenizer.json."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    pieces = [*letters, *(f"{c}</w>" for c in letters)]
    merges = []
    for word in ("a", "red", "bear", "front", "view"):
        made = [*word[:-1], f"{word[-1]}</w>"]
        while len(made) > 1:
            merges.append(f"{made[0]} {made[1]}")
            made[:2] = [made[0] + made[1]]
            pieces.append(made[0])
    pieces = list(dict.fromkeys([*pieces, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *dict.fromkeys(merges)]) + "\n")
    end = dict.fromkeys(("eos_token", "pad_token", "unk_token"), "<|endoftext|>")
    special = {"bos_token": "<|startoftext|>", **end}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special})
    )


def clip(folder: Path, seed: int = 0) -> Path:
    """Save a CLIPModel for images of 32 pixels, with its tokenizer and its preprocessing."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    torch.manual_seed(seed)
    _save_text(folder, seed)
    for file in (folder / "tokenizer").iterdir():
        file.rename(folder / file.name)
    narrow = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = CLIPVisionConfig(image_size=32, patch_size=8, projection_dim=WIDTH, **narrow)
    CLIPModel(
        CLIPConfig(text_config=_text_config().to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    ).save_pretrained(folder)
    shown = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown))
    return folder


def shap_e(folder: Path, seed: int = 0) -> Path:
    """Save a ShapEPipeline that turns any prompt into something like a crumpled sheet."""
    from diffusers import HeunDiscreteScheduler, PriorTransformer, ShapEPipeline
    from diffusers.pipelines.shap_e.renderer import ShapERenderer
    from transformers import CLIPTextModelWithProjection

    _save_text(folder, seed)
    torch.manual_seed(seed)
    prior = PriorTransformer(
        num_attention_heads=2,
        attention_head_dim=8,
        embedding_dim=16,
        num_embeddings=32,
        embedding_proj_dim=WIDTH,
        time_embed_dim=64,
        num_layers=1,
        clip_embed_dim=32,
        additional_embeddings=0,
        time_embed_act_fn="gelu",
        norm_in_type="layer",
        embedding_proj_norm_type="layer",
        encoder_hid_proj_type=None,
        added_emb_type=None,
    )
    renderer = ShapERenderer(
        param_shapes=((8, 93), (8, 8), (8, 8), (8, 8)), d_latent=16, d_hidden=8, n_output=12, background=(0.1, 0.1, 0.1)
    )
    scheduler = HeunDiscreteScheduler(
        beta_schedule="exp",
        num_train_timesteps=1024,
        prediction_type="sample",
        use_karras_sigmas=True,
        clip_sample=True,
        clip_sample_range=1.0,
    )
    # random signed distances have the same sign everywhere; shift them so that half of the space is inside
    with torch.no_grad():
        for projection in renderer.params_proj.projections.values():
            projection.norm.weight *= 0.1
            projection.proj.bias *= 4
        for name, value in renderer.params_proj(torch.zeros(1, 32, 16)).items():
            renderer.mlp.get_parameter(name.removeprefix("nerstf.")).copy_(value[0])
        at = 2 * torch.rand(1, 2000, 3) - 1
        distance = renderer.mlp(position=at, direction=None, ts=None, nerf_level="fine", rendering_mode="stf")
        renderer.mlp.mlp[-1].bias[0] -= distance.signed_distance.atanh().median()
    _fill_cases(renderer.mesh_decoder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    ShapEPipeline(prior, CLIPTextModelWithProjection(_text_config()), tokenizer, scheduler, renderer).save_pretrained(
        folder
    )
    return folder


def _fill_cases(decoder: Any) -> None:
    """Fill the marching cubes table, part of Shap-E's weights, with one triangle per case instead of up to five.

    Its corners are three of the edges that the surface crosses. Corner x y z of a cube is bit x + 2 y + 4 z of a case.
    """
    edges = []  # pairs of corners, in the decoder's order
    for axis in (1, 2, 4):
        one, other = (a for a in (1, 2, 4) if a != axis)
        edges += [(at, at + axis) for at in (0, one, other, one + other)]
    for case in range(256):
        crossed = [k for k, (a, b) in enumerate(edges) if (case >> a & 1) != (case >> b & 1)]
        if len(crossed) >= 3:
            decoder.cases[case, 0] = torch.tensor(crossed[:3])
            decoder.masks[case, 0] = True
