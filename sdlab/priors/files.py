"""Finding and checking the files of a model in the diffusers layout: a folder, or a repository of the Hub.

Only safetensors, JSON and text are fetched and read: a model from a stranger is data. Weights in the pickle format
are refused, because reading them can run code.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sdlab.priors import Progress, first_line, silent

ASSETS = Path(__file__).parents[2] / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# the weight file of each part, without its ending
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
WORD_LIST = "words.json"  # of models that know few words; see `sdlab.priors.wordlist`
NEEDED = ("unet/config.json", "text_encoder/config.json", "tokenizer", "scheduler/scheduler_config.json")


class Weights(NamedTuple):
    """One set of weights of one part: `variant` "" or "fp16", and its files (one, or shards), with their indices."""

    variant: str
    files: list[str]


def find_model(path: str, revision: str, half: bool, progress: Progress = silent) -> Path:
    """The folder that prior.path stands for; what is missing of a Hub repository is downloaded.

    `half` prefers float16 weights where a repository has both kinds. Raises ValueError for a path that is neither a
    folder nor a repository, RuntimeError when the download fails.
    """
    folder = ASSETS / "toybox" if path == "toybox" else Path(path).expanduser()
    if path.strip() and folder.is_dir():
        return folder
    if path == "toybox":
        raise RuntimeError(
            f"the bundled prior is missing ({folder}): clone the repository again, train one with "
            "`python -m sdlab toybox train`, or set prior.path to another model"
        )
    if folder.is_file():
        raise ValueError(f"prior.path = {path!r} is a file; give the folder that holds unet/, text_encoder/ and so on")
    if not HUB_ID.fullmatch(path):
        raise ValueError(
            f"prior.path = {path!r}: there is no such folder; give 'toybox', an existing folder in the diffusers "
            "layout, or owner/name of a model on the Hugging Face Hub"
        )
    return _download(path, revision, half, progress)


def require_layout(folder: Path) -> None:
    """ValueError that names what `folder` lacks of a text-to-image U-Net."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if missing:
        transformer = " It holds a transformer, which is not supported." if (folder / "transformer").is_dir() else ""
        raise ValueError(
            f"prior.path = {str(folder)!r}: {', '.join(missing)} missing. Needed is the diffusers layout: unet/, "
            f"text_encoder/, tokenizer/, scheduler/, and vae/ for a latent model.{transformer}"
        )


def read_json(file: Path) -> dict[str, Any]:
    """The object in `file`; RuntimeError when it cannot be read as such."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RuntimeError(f"{file} cannot be read as JSON ({first_line(e)}); copy or download it again") from e
    if not isinstance(found, dict):
        raise RuntimeError(f"{file} should hold a JSON object; copy or download it again")
    return found


def weights_in(names: Sequence[str], part: str, half: bool, where: str) -> Weights:
    """Which of a part's files `names` to load: plain and fp16 weights are the same network, and `half` says which
    is preferred where both are there.

    RuntimeError, naming `where`, when there are no weights in safetensors.
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
            f"{where} has its weights only in the pickle format, which can run code when it is read and is therefore "
            "refused; find or make a version in safetensors (save_pretrained(..., safe_serialization=True))"
        )
    raise RuntimeError(f"{where} has no weights: {stem}.safetensors is missing; copy or download the model again")


def checked_weights(place: Path, half: bool) -> tuple[str, list[Path]]:
    """Variant and safetensors files of the part in the folder `place`; RuntimeError when one is damaged."""
    found = weights_in([f.name for f in place.iterdir()], place.name, half, str(place))
    files = [place / n for n in found.files if n.endswith(".safetensors")]
    for file in files:
        _must_be_whole(file)
    return found.variant, files


def _is_weights(name: str, stem: str) -> bool:
    is_weights = name.endswith(".safetensors") or ".safetensors.index" in name
    return is_weights and name.startswith(stem) and "non_ema" not in name


def _must_be_whole(file: Path) -> None:
    """The header of a safetensors file says how long it must be; reading it finds a cut or foreign file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt"):
            pass
    except (SafetensorError, OSError) as e:
        raise RuntimeError(f"{file} is damaged or cut short ({first_line(e)}); copy or download the model again") from e


# ---- the Hugging Face Hub ---------------------------------------------------------------------------------------


def files_to_download(names: Sequence[str], half: bool, repo: str) -> list[str]:
    """Of a repository's files those a prior needs: configuration, tokenizer and one set of weights per part.

    RuntimeError for a part without safetensors.
    """
    parts = ("scheduler", "tokenizer", *STEMS)
    wanted = [n for n in names if n == WORD_LIST]
    for part in parts:
        files = [n.removeprefix(f"{part}/") for n in names if n.startswith(f"{part}/")]
        text = [f for f in files if f.endswith((".json", ".txt")) and ".index" not in f]
        # the vocabulary of T5's tokenizer: a protocol buffer, which is data
        text += [f for f in files if part == "tokenizer" and f.endswith(".model")]
        weights = weights_in(files, part, half, f"{repo}/{part}").files if part in STEMS and files else []
        wanted += [f"{part}/{f}" for f in text + weights if "/" not in f]
    return wanted


def _download(repo: str, revision: str, half: bool, progress: Progress) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    progress(f"asking the Hugging Face Hub for {repo}")
    try:
        info = HfApi().model_info(repo, revision=revision or None, files_metadata=True)
    except GatedRepoError as e:
        raise RuntimeError(
            f"prior.path = {repo!r}: its owner asks you to accept a licence first: open https://huggingface.co/{repo}, "
            "accept it, and set the environment variable HF_TOKEN to your access token"
        ) from e
    except RevisionNotFoundError as e:
        raise ValueError(f"prior.revision = {revision!r}: {repo} has no such branch, tag or commit") from e
    except RepositoryNotFoundError as e:
        raise ValueError(
            f"prior.path = {repo!r}: there is no such folder here and no such public model on the Hugging Face Hub; "
            "check the spelling, or set HF_TOKEN if it is private"
        ) from e
    except Exception as e:  # which HTTP library the Hub's client uses, and so its errors, depends on its version
        return _downloaded_before(repo, revision, e)

    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    wanted = files_to_download(list(sizes), half, repo)
    precision = "" if not half or any("fp16" in f for f in wanted) else ", which has no float16 files"
    progress(f"downloading {repo}{precision} ({sum(sizes[f] for f in wanted) / 1e9:.1f} GB)")
    try:
        return Path(snapshot_download(repo, revision=info.sha, allow_patterns=wanted))
    except Exception as e:  # as above
        raise RuntimeError(
            f"prior.path = {repo!r}: the download broke off ({first_line(e)}); start again, it goes on where it stopped"
        ) from e


def _downloaded_before(repo: str, revision: str, reason: Exception) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, revision=revision or None, local_files_only=True))
    except LocalEntryNotFoundError:
        raise RuntimeError(
            f"prior.path = {repo!r}: there is no such folder here, it was not downloaded before, and the Hugging Face "
            f"Hub cannot be reached ({first_line(reason)}); check the network, or use 'toybox', which needs none"
        ) from reason
