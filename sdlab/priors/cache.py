"""Networks converted and compiled for OpenVINO, kept on disk between runs.

    openvino/<key>/network         the converted network, float32, for any shape; saves about 2 s per start
    openvino/<key>/compiled-...    one compiled network per shape, precision and CPU model; saves about 0.2 s each, or
                                   5 s for networks in training, whose files contain no trained weights

below `sdlab.machine.cache_folder()`. The key covers the weights, the U-Net's configuration and the libraries' versions.

Processes may share the cache. Each file begins with the SHA-256 of the rest and gets its name only when it is complete;
a file that does not match is ignored and rewritten. So a full disk or a killed process costs time, but breaks no run.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sdlab.machine import cache_folder

KEPT_NETWORKS = 8  # the most recently used ones
_log = logging.getLogger(__name__)


def network_key(config: Mapping[str, Any], weight_files: Sequence[Path]) -> str:
    """Return the network's name in the cache; it changes with weights, configuration and library versions."""
    digest = hashlib.sha256(b"inputs z_t, waves, hidden")
    for file in sorted(weight_files):
        with file.open("rb") as f:
            digest.update(hashlib.file_digest(f, "sha256").digest())
    shown = {k: v for k, v in config.items() if not k.startswith("_")}  # _name_or_path is a location, not content
    digest.update(json.dumps(shown, sort_keys=True, default=str).encode())
    for name in ("openvino", "torch", "diffusers"):
        digest.update(f"{name} {version(name)}".encode())
    return digest.hexdigest()[:32]


def version(package: str) -> str:
    """Return the installed version of `package`, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def network_folder(key: str) -> SealedFolder:
    """Return the folder of the network `key`; it need not exist yet."""
    return SealedFolder(cache_folder() / "openvino" / key)


def remove_old_networks(keep: int = KEPT_NETWORKS) -> None:
    """Remove all but the `keep` most recently used networks, so that training a prior does not fill the disk."""
    with contextlib.suppress(OSError):  # another process may remove them at the same time
        folders = sorted((cache_folder() / "openvino").iterdir(), key=lambda f: f.stat().st_mtime, reverse=True)
        for folder in folders[keep:]:
            shutil.rmtree(folder, ignore_errors=True)


class SealedFolder:
    """A folder whose files are either complete or absent. It never raises: an unusable cache is an empty one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, name: str) -> bytes | None:
        """Return the file's contents, or None if it is missing or damaged."""
        try:
            sealed = (self.folder / name).read_bytes()
            os.utime(self.folder)  # marks the network as used now
        except OSError:
            return None
        seal, contents = sealed[:32], sealed[32:]
        if hashlib.sha256(contents).digest() != seal:
            _log.warning("%s is damaged and will be rewritten", self.folder / name)
            return None
        return contents

    def write(self, name: str, contents: bytes) -> None:
        """Write or replace the file atomically; log a warning if that fails."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _complete_or_absent(self.folder / name) as part:
                part.write_bytes(hashlib.sha256(contents).digest() + contents)
        except OSError as e:
            _log.warning(
                "cannot cache the compiled network in %s (%s); set SDLAB_CACHE to another folder", self.folder, e
            )


@contextlib.contextmanager
def _complete_or_absent(path: Path) -> Iterator[Path]:
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
