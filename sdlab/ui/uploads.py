"""Uploads below /uploads: a mesh, points, Gaussians or an image for a run to start from; a ZIP of pictures or a mesh
for the gallery prior.

A file's content decides, not its name: it is read as the run would read it before it is kept. It is kept in a folder of
the desk, which is removed with the desk, and is never sent to a browser.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from sdlab import decoding
from sdlab.decoding import is_picture, picture_of
from sdlab.files import TemporaryFolder
from sdlab.folders import check_archive, is_archive
from sdlab.meshes.surface import READABLE, check_mesh
from sdlab.parsing import VISITOR, Limits, parsed
from sdlab.settings import Settings, default_settings
from sdlab.starts import clouds
from sdlab.web import capped_body, refusal

RUN = "run"  # in the place of a knob: a ZIP file of a run's folder
MOST_RUN = 500_000_000  # bytes of one
MOST_KEPT = 8  # files per desk
PATIENCE = 600.0  # seconds that an upload may take
FOLDER = "sdlab-uploads-"  # begins the names of folders with uploads
MARK = "-"  # between the number of a file and its name
NAME = 60  # characters of a file name that are kept


class Upload(NamedTuple):
    """The files that a knob takes.

    `check(raw, name, limits)` raises a ValueError that begins with the name, for a file that the knob cannot use or
    that cannot be read within the limits. A run uses the file if the knob `switch` has one of the values `uses`;
    `use(raw)` returns which.
    """

    kind: str  # of the scene or prior that has the knob
    switch: str
    uses: tuple[str, ...]
    suffixes: str  # that the browser's file dialog offers
    most: int  # bytes
    check: Callable[..., object]
    use: Callable[[bytes], str]

    def fits(self, settings: Settings) -> bool:
        """Return whether the scene or prior of `settings` is of the kind that uses such a file."""
        return self.kind == getattr(settings, self.switch.partition(".")[0]).kind


def _check_cloud(raw: bytes, given: str, limits: Limits = VISITOR) -> None:
    """Raise a ValueError that begins with `given`, unless a scene can start from a file."""
    clouds.parsed_cloud(raw, 1, np.random.default_rng(0), given, limits=limits)


def _check_picture(raw: bytes, given: str, limits: Limits = VISITOR) -> None:
    """Raise a ValueError that begins with `given`, unless images can start from a file."""
    parsed(picture_of, raw, 8, given, given=given, limits=limits)


def _check_gallery(raw: bytes, given: str, limits: Limits = VISITOR) -> None:
    """Raise a ValueError that begins with `given`, unless it is a ZIP of pictures or a mesh."""
    if is_archive(raw):
        parsed(check_archive, raw, given, limits.pixels, given=given, limits=limits)
    elif is_picture(raw):
        raise ValueError(f"{given} is a single picture: upload a ZIP file of pictures")
    else:
        try:
            parsed(check_mesh, raw, given, given=given, needs=("trimesh",), limits=limits)
        except ValueError as e:
            raise ValueError(f"{e}; pictures come as a ZIP file" if READABLE in str(e) else str(e)) from e


UPLOADS = {  # by the knob that holds the file's path
    "scene.file": Upload(
        "splats",
        "scene.start",
        ("file",),
        ".glb,.obj,.stl,.ply,.spz,.sog,.splat",
        clouds.MAX_BYTES,
        _check_cloud,
        lambda raw: "file",
    ),
    "scene.picture": Upload(
        "image",
        "scene.start",
        ("picture",),
        ".png,.jpg,.jpeg,.webp",
        decoding.MAX_BYTES,
        _check_picture,
        lambda raw: "picture",
    ),
    "prior.path": Upload(
        "gallery",
        "prior.source",
        ("folder", "mesh"),
        ".zip,.glb,.obj,.stl,.ply",
        clouds.MAX_BYTES,
        _check_gallery,
        lambda raw: "folder" if is_archive(raw) else "mesh",
    ),
}


class Uploads:
    """The files uploaded to one desk. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: TemporaryFolder | None = None  # created for the first file
        self._kept: list[Path] = []
        self._count = 0
        self._closed = False
        self.arriving = threading.Lock()  # held during an upload: one at a time

    def keep(self, knob: str, name: str, raw: bytes, in_use: Collection[Path] = (), limits: Limits = VISITOR) -> Path:
        """Keep a file and return its path; beyond `MOST_KEPT`, the oldest file that is not `in_use` is deleted. Raises
        a ValueError that begins with `name` when the knob cannot use the file or it exceeds `limits`, RuntimeError
        when the desk is gone."""
        UPLOADS[knob].check(raw, name_shown(name), limits)
        return self._keep(name, raw, in_use)

    def adopt(self, path: Path) -> Path:
        """Keep a copy of a file that `sdlab.live.kept` has kept, with the name that it was uploaded with; return its
        path."""
        name = path.name.removeprefix(FOLDER).split(MARK, 2)[-1]  # after those of the folder and the number that it had
        return self._keep(name, path.read_bytes(), self._kept)

    def _keep(self, name: str, raw: bytes, in_use: Collection[Path]) -> Path:
        with self._lock:
            if self._closed:
                raise RuntimeError("the session of this file has ended")
            if self._folder is None:
                self._folder = TemporaryFolder(FOLDER)
            self._count += 1
            path = Path(self._folder.name) / f"{self._count}{MARK}{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-NAME:]}"
            path.write_bytes(raw)
            for old in [kept for kept in self._kept if kept not in in_use][: max(len(self._kept) + 1 - MOST_KEPT, 0)]:
                self._kept.remove(old)
                old.unlink(missing_ok=True)
            self._kept.append(path)
            return path

    def close(self) -> None:
        """Delete all files."""
        with self._lock:
            self._closed = True
            if self._folder is not None:
                self._folder.cleanup()


def uploaded(settings: Settings) -> dict[str, Path]:
    """Return the uploaded files that settings name, by knob."""
    knobs = settings.knobs()
    files = {path: Path(knobs[path].value) for path in UPLOADS if path in knobs}
    return {path: file for path, file in files.items() if file.parent.name.startswith(FOLDER)}


def without_uploads(settings: Settings) -> tuple[Settings, dict[str, str]]:
    """Return settings that name no uploaded file, since those go with their desk, and the files' names by knob."""
    knobs, gone = settings.knobs(), uploaded(settings)
    default = default_settings(settings.prior.kind, settings.scene.kind).knobs()
    changes = [(path, default[path].value) for path in gone]
    switches = [UPLOADS[path].switch for path in gone if knobs[UPLOADS[path].switch].value in UPLOADS[path].uses]
    changes += [(switch, default[switch].value) for switch in switches]
    return settings.patch_all(changes), {path: file.name.partition(MARK)[2] for path, file in gone.items()}


def name_shown(name: str) -> str:
    """Return a file name as messages show it."""
    return repr(name if len(name) <= NAME else f"...{name[-NAME:]}")


class Bringing(NamedTuple):
    """Where an upload goes: `receive(knob, name, raw)` raises ValueError or RuntimeError, with a text for the user, for
    a file that cannot be used."""

    uploads: Uploads
    receive: Callable[[str, str, bytes], object]


def routes(find: Callable[[str], Bringing | None], max_bytes: Callable[[str], int]) -> APIRouter:
    """Return the routes below /uploads; `find` looks up a desk's token, `max_bytes` the size limit of a knob's file."""
    router = APIRouter()

    @router.post("/uploads/{token}/{knob}", include_in_schema=False)
    async def upload(token: str, knob: str, request: Request, name: str = "file") -> Response:
        bringing = find(token)
        if bringing is None:
            return refusal("this session has ended", 404)
        if knob not in UPLOADS and knob != RUN:
            return refusal(f"{name_shown(knob)} takes no file: allowed are {', '.join(UPLOADS)}", 404)
        if not bringing.uploads.arriving.acquire(blocking=False):
            return refusal("another upload is in progress: wait for it", 409)
        try:
            most = max_bytes(knob)
            async with asyncio.timeout(PATIENCE):
                raw = await capped_body(request, most)
            if raw is None:
                return refusal(f"{name_shown(name)} is too large: {most:,} bytes are allowed", 413)
            await run_in_threadpool(bringing.receive, knob, name, raw)
        except TimeoutError:
            return refusal(f"{name_shown(name)} was not uploaded within {PATIENCE:.0f} s: try again", 408)
        except ClientDisconnect:  # the user cancelled
            return Response(status_code=400)
        except (ValueError, RuntimeError) as e:
            return refusal(str(e), 422)
        except MemoryError:
            return refusal(f"{name_shown(name)} needs more memory than is available", 422)
        except OSError as e:
            return refusal(f"{name_shown(name)} could not be saved: {e.strerror or 'the disk refused it'}", 507)
        finally:
            bringing.uploads.arriving.release()
        return Response(status_code=204)

    return router
