"""The files of a model in the diffusers layout: which are needed, which weights to take, and whether they are intact.

Only safetensors, JSON and text are downloaded and read, so a stranger's model is only data. Weights in pickle format
are refused, because loading them can run code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.errors import first_line

# name of each part's weight file, without its extension
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
WORD_LIST = "words.json"  # see `sdlab.priors.wordlist`
NEEDED = ("unet/config.json", "text_encoder/config.json", "tokenizer", "scheduler/scheduler_config.json")


class Weights(NamedTuple):
    """One set of weights of a part: its `variant`, "" or "fp16", and its files: one, or shards with their index."""

    variant: str
    files: list[str]


def require_layout(folder: Path) -> None:
    """Raise ValueError if `folder` lacks parts of a text-to-image U-Net, naming them."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        transformer = " It contains a transformer, which is not supported." if (folder / "transformer").is_dir() else ""
        raise ValueError(
            f"prior.path = {str(folder)!r}: {', '.join(missing)} missing. The diffusers layout needs unet/, "
            f"text_encoder/, tokenizer/, scheduler/, and vae/ for a latent model.{transformer}"
        )


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in `file`; RuntimeError if there is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RuntimeError(f"{file} is not valid JSON ({first_line(e)}); copy or download it again") from e
    if not isinstance(found, dict):
        raise RuntimeError(f"{file} must contain a JSON object; copy or download it again")
    return found


def weights_in(names: Sequence[str], part: str, half: bool, where: str) -> Weights:
    """Choose which of a part's files `names` to load: plain or fp16 weights of the same network.

    `half` prefers fp16 where both exist. RuntimeError, naming `where`, if there are no safetensors weights.
    """
    stem = STEMS[part]
    there = {
        "": {f"{stem}.safetensors", f"{stem}.safetensors.index.json"}.intersection(names),
        "fp16": {f"{stem}.fp16.safetensors", f"{stem}.safetensors.index.fp16.json"}.intersection(names),
    }
    for variant in ("fp16", "") if half else ("", "fp16"):
        if there[variant]:
            return Weights(variant, [n for n in names if _is_weights(n, stem) and ("fp16" in n) == bool(variant)])
    if any(n.endswith((".bin", ".pt", ".pth", ".ckpt")) for n in names):
        raise RuntimeError(
            f"{where} has weights only in pickle format, which is refused because loading it can run code; use or make "
            "a safetensors version (save_pretrained(..., safe_serialization=True))"
        )
    others = sorted(n for n in names if n.startswith(f"{stem}.") and n.endswith(".safetensors"))
    if others:
        raise RuntimeError(
            f"{where} has weights only in a variant that is not read ({', '.join(others[:3])}): plain and fp16 weights "
            f"are; save the model without a variant, or name its file {stem}.safetensors"
        )
    raise RuntimeError(f"{where} has no weights: {stem}.safetensors is missing; copy or download the model again")


def checked_weights(place: Path, half: bool) -> tuple[str, list[Path]]:
    """Return variant and safetensors files of the part in the folder `place`; RuntimeError if one is damaged."""
    found = weights_in([f.name for f in place.iterdir()], place.name, half, str(place))
    files = [place / n for n in found.files if n.endswith(".safetensors")]
    for index in (place / n for n in found.files if not n.endswith(".safetensors")):
        _must_have_its_shards(index)
    for file in files:
        _must_be_whole(file)
    return found.variant, files


def _is_weights(name: str, stem: str) -> bool:
    is_weights = name.endswith(".safetensors") or ".safetensors.index" in name
    return is_weights and name.startswith(stem) and "non_ema" not in name


def count_numbers(files: Sequence[Path]) -> int:
    """Return how many numbers the safetensors `files` contain, from their headers."""
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _must_have_its_shards(index: Path) -> None:
    """Raise RuntimeError if weights are split over several files and some of them are missing."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise RuntimeError(f"{index} must name the weight files (weight_map); copy or download it again")
    missing = sorted({str(name) for name in shards.values() if not (index.parent / str(name)).is_file()})
    if missing:
        raise RuntimeError(
            f"{index.parent} lacks {len(missing)} of its weight files, such as {missing[0]}; copy or download the "
            "model again"
        )


def _must_be_whole(file: Path) -> None:
    """Raise RuntimeError for a truncated or foreign file: a safetensors header says how long the file must be."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as e:
        raise RuntimeError(
            f"{file} is damaged or incomplete ({first_line(e)}); copy or download the model again"
        ) from e


def files_to_download(names: Sequence[str], half: bool, repo: str) -> list[str]:
    """Choose the files a prior needs from a repository: configuration, tokenizer and one set of weights per part.

    Raises RuntimeError for a part without safetensors.
    """
    parts = ("scheduler", "tokenizer", *STEMS)
    wanted = [n for n in names if n == WORD_LIST]
    for part in parts:
        files = [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")]
        text = [f for f in files if f.endswith((".json", ".txt")) and ".index" not in f]
        # T5's vocabulary is a protocol buffer, which is only data
        text += [f for f in files if part == "tokenizer" and f.endswith(".model")]
        weights = weights_in(files, part, half, f"{repo}/{part}").files if part in STEMS and files else []
        wanted += [f"{part}/{f}" for f in text + weights if "/" not in f]
    return wanted
