"""Results: the file formats, the shelf on which a desk's files are made and kept, and downloads below /results.

A shelf works beside the run, from a `Material` that no one modifies, in a thread of its own that rests for as long as
it works. The shelves of a server take turns within their files, so that nobody's file waits for the whole of another's.
A failure here never reaches the run.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from PIL import Image

from sdlab.errors import first_line
from sdlab.export.interchange import write_cameras, write_gaussian_glb, write_growth, write_spz
from sdlab.export.mesh import ABOUT, write_glb
from sdlab.export.writers import (
    FILM_FRAMES,
    FILM_RATE,
    Material,
    Tally,
    finite,
    write_ply,
    write_splat,
    write_turntable,
)
from sdlab.files import TemporaryFolder, sweep_temporary
from sdlab.knobs import shown
from sdlab.pictures import grid
from sdlab.settings import Settings, to_toml
from sdlab.types import RawSplats
from sdlab.ui import handin
from sdlab.ui.recording import write_recording
from sdlab.ui.turns import Turns
from sdlab.ui.uploads import without_uploads
from sdlab.ui.wording import TITLE
from sdlab.web import refusal

MOST = 24  # files per shelf
CAMERA_PIXELS = 512  # side of the images that are exported with their cameras
MOST_BYTES = 400_000_000
MOST_WAITING = 10  # jobs: one of each format; each holds a copy of the scene
LONGEST_REST = 0.05  # seconds

Phase = Literal["waiting", "working", "done", "cancelled", "failed"]


class Cancelled(Exception):
    """The job was cancelled."""


class Format(NamedTuple):
    """A file format. `write(path, material, progress)` raises ValueError when the material is not sufficient."""

    suffix: str
    media_type: str
    title: str
    about: str
    write: Callable[[Path, Material, Tally], object]


def _settings(path: Path, m: Material, progress: Tally) -> None:
    settings, uploads = without_uploads(m.settings)
    text = f"# {TITLE}: the settings at step {m.step}\n{to_toml(settings)}"
    if uploads:
        names = " and ".join(f"{name} ({knob})" for knob, name in uploads.items())
        text += f'\n[about]\nuploads = "{names}"  # not part of the settings\n'
    path.write_text(text, encoding="utf-8")


def _pictures(path: Path, m: Material, progress: Tally) -> None:
    if m.pictures is None or len(m.pictures) == 0:
        raise ValueError("this run has no images: its scene is 3D, use the turntable instead")
    Image.fromarray(grid(m.pictures)).save(path)


def _splats(m: Material) -> RawSplats:
    splats = finite(m.splats) if m.splats is not None else None
    if splats is None or len(splats.means) == 0:
        raise ValueError("this run has no Gaussians: only its settings and its images can be saved")
    return splats


def _recording(path: Path, m: Material, progress: Tally) -> None:
    _splats(m)
    write_recording(path, m.film, f"{m.settings.prompt.text} - {TITLE}", progress=progress)


FORMATS: Mapping[str, Format] = {
    "toml": Format(".toml", "application/toml", "Settings", "Everything that determines the run, as text.", _settings),
    "png": Format(".png", "image/png", "Images", "The images as they are now.", _pictures),
    "ply": Format(
        ".ply",
        "application/octet-stream",
        "Gaussians, PLY",
        "The layout of the 3DGS release, which most Gaussian editors read. z is up, the front faces +x; viewers "
        "that assume y down show it rotated.",
        lambda path, m, progress: write_ply(path, _splats(m)),
    ),
    "splat": Format(
        ".splat",
        "application/octet-stream",
        "Gaussians, .splat",
        "32 bytes per Gaussian, for web viewers. z is up, the front faces +x.",
        lambda path, m, progress: write_splat(path, _splats(m)),
    ),
    "spz": Format(
        ".spz",
        "application/octet-stream",
        "Gaussians, SPZ",
        "About a fifth of the PLY's size, rounded; SuperSplat, Babylon, Cesium and Spark read it. y is up, the front "
        "faces +z.",
        lambda path, m, progress: write_spz(path, _splats(m)),
    ),
    "khr": Format(
        ".gaussians.glb",
        "model/gltf-binary",
        "Gaussians, GLB",
        "glTF with KHR_gaussian_splatting; programs that do not know it show points. y is up, the front faces +z.",
        lambda path, m, progress: write_gaussian_glb(path, _splats(m)),
    ),
    "glb": Format(
        ".glb",
        "model/gltf-binary",
        "Mesh, GLB",
        ABOUT,
        lambda path, m, progress: write_glb(path, m.solid or _splats(m), progress),
    ),
    "mp4": Format(
        ".mp4",
        "video/mp4",
        "Turntable, MP4",
        f"One turn around the object: {FILM_FRAMES} frames, {FILM_FRAMES / FILM_RATE:g} seconds.",
        lambda path, m, progress: write_turntable(path, m.solid or _splats(m), m.settings.camera, progress=progress),
    ),
    "growth": Format(
        ".growth.zip",
        "application/zip",
        "Growth, PLY files",
        "The run so far, one PLY per moment; SuperSplat plays them on its timeline.",
        lambda path, m, progress: write_growth(path, m.film, progress),
    ),
    "cameras": Format(
        ".cameras.zip",
        "application/zip",
        "Cameras and images",
        f"The turntable's {FILM_FRAMES} images with their cameras (transforms.json), from which instant-ngp and "
        "nerfstudio learn the scene.",
        lambda path, m, progress: write_cameras(
            path, m.solid or _splats(m), m.settings.camera, CAMERA_PIXELS, progress=progress
        ),
    ),
    "html": Format(
        ".html",
        "text/html",
        "Replay, HTML",
        "The whole run as a 3D replay in one file that plays in a browser, without a network.",
        _recording,
    ),
}


HAND_IN = "handin"  # the kind of a hand-in, which takes more than a `Material`
_HAND_IN = Format(".zip", "application/zip", "Hand-in, ZIP", "All runs of this page with every change.", handin.write)
OF_SPLATS = ("ply", "spz", "khr", "splat", "glb", "mp4", "html", "growth", "cameras", "toml")  # in this order
OF_PICTURES = ("png", "toml")


def _format(kind: str) -> Format:
    return _HAND_IN if kind == HAND_IN else FORMATS[kind]


class Result(NamedTuple):
    """The present state of one file, finished or not."""

    id: str  # unguessable
    kind: str  # a key of `FORMATS`, or `HAND_IN`
    name: str  # of the file
    step: int
    phase: Phase
    share: float  # of the work done, in [0, 1]
    seconds_left: float | None  # None while unknown
    size: int  # bytes, 0 until finished
    message: str  # why it failed


@dataclass(eq=False)
class _Job:
    id: str
    kind: str
    name: str
    step: int
    material: Material | None  # until the job is over
    phase: Phase = "waiting"
    share: float = 0.0
    began: float = 0.0
    size: int = 0
    message: str = ""
    unwanted: threading.Event = field(default_factory=threading.Event)


def _all(settings: Settings) -> Settings:
    return settings


class Shelf:
    """The files of one desk. Shelves with the same `turns` take them. `shared` says what of a run's settings its files
    may hold. Methods are thread-safe and return at once."""

    def __init__(self, turns: Turns | None = None, shared: Callable[[Settings], Settings] = _all) -> None:
        self._turns = turns or Turns()
        self._shared = shared
        self._lock = threading.Lock()
        self._jobs: dict[str, _Job] = {}  # oldest first
        self._queue: list[_Job] = []
        self._worker: threading.Thread | None = None
        self._closed = False
        self._folder = TemporaryFolder("sdlab-results-")

    def start(self, kind: str, material: Material) -> str:
        """Queue a file and return its id. ValueError for an unknown kind, RuntimeError when too many jobs wait or the
        shelf is closed."""
        material = replace(material, settings=self._shared(material.settings))
        if kind not in FORMATS and kind != HAND_IN:
            raise ValueError(f"there is no format {shown(kind)}; the formats are {', '.join(FORMATS)}")
        job = _Job(secrets.token_urlsafe(16), kind, material.name + _format(kind).suffix, material.step, material)
        with self._lock:
            if self._closed:
                raise RuntimeError("the session of these results has ended")
            if len(self._queue) >= MOST_WAITING:
                raise RuntimeError(f"{MOST_WAITING} files are waiting already; wait for one to finish, or cancel one")
            self._jobs[job.id] = job
            self._queue.append(job)
            if self._worker is None:
                self._worker = threading.Thread(target=self._work, name="sdlab-results", daemon=True)
                self._worker.start()
        return job.id

    def cancel(self, result_id: str) -> bool:
        """Cancel an unfinished file; return False when there is nothing to cancel."""
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or job.phase not in ("waiting", "working"):
                return False
            self._cancel(job)
        return True

    def list(self) -> list[Result]:
        """Return all results, newest first."""
        with self._lock:
            return [self._state(job) for job in reversed(self._jobs.values())]

    def file(self, result_id: str) -> tuple[Path, Result] | None:
        """Return the path and state of a finished file, or None."""
        with self._lock:
            job = self._jobs.get(result_id)
            if job is None or job.phase != "done":
                return None
            return self._path(job), self._state(job)

    def close(self) -> None:
        """Cancel unfinished files and delete all others. Returns at once; a file being written is deleted when its
        writer next reports progress."""
        with self._lock:
            self._closed = True
            for job in self._jobs.values():
                if job.phase in ("waiting", "working"):
                    self._cancel(job)
            self._jobs.clear()
            working = self._worker is not None
        if not working:
            self._folder.cleanup()

    def join(self, timeout: float) -> bool:
        """Wait until all jobs are done; return False after `timeout` seconds."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout)
        return worker is None or not worker.is_alive()

    # ---- under the lock ----------------------------------------------------------------------------------

    def _cancel(self, job: _Job) -> None:
        job.unwanted.set()
        if job in self._queue:
            self._queue.remove(job)
            job.phase, job.material = "cancelled", None

    def _state(self, job: _Job) -> Result:
        left = None
        if job.phase == "working" and job.share > 0:
            left = (time.monotonic() - job.began) * (1 - job.share) / job.share
        return Result(job.id, job.kind, job.name, job.step, job.phase, job.share, left, job.size, job.message)

    def _path(self, job: _Job) -> Path:
        return Path(self._folder.name) / f"{job.id}{_format(job.kind).suffix}"

    def _make_room(self) -> None:
        """Drop the oldest finished jobs until the limits hold; the newest stays."""
        over = [job for job in self._jobs.values() if job.phase not in ("waiting", "working")]
        while len(over) > 1 and (len(over) > MOST or sum(job.size for job in over) > MOST_BYTES):
            job = over.pop(0)
            del self._jobs[job.id]
            self._path(job).unlink(missing_ok=True)

    # ---- in the worker -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._worker = None
                    closed = self._closed
                    break
                job = self._queue[0]
            if not self._turns.take(lambda: bool(self._queue)):
                continue
            try:
                self._make(job)
            finally:
                self._turns.pass_on()
        if closed:
            self._folder.cleanup()

    def _make(self, job: _Job) -> None:
        with self._lock:
            if job not in self._queue:  # cancelled while it waited for its turn
                return
            self._queue.remove(job)
            job.phase, job.began = "working", time.monotonic()
            material = job.material
        assert material is not None
        path = self._path(job)
        scratch = path.with_name(f"unfinished{path.suffix}")
        try:
            _format(job.kind).write(scratch, material, self._watch(job))
            with self._lock:
                if job.unwanted.is_set():
                    raise Cancelled
                job.size = scratch.stat().st_size
                scratch.rename(path)
                job.phase, job.share = "done", 1.0
        except Cancelled:
            job.phase = "cancelled"
        except Exception as e:  # any failure: the run continues, and the user is told
            job.message = _reason(e)
            job.phase = "failed"
        with self._lock, contextlib.suppress(OSError):
            job.material = None
            scratch.unlink(missing_ok=True)
            self._make_room()

    def _watch(self, job: _Job) -> Tally:
        """Return a progress callback that records the share done, raises `Cancelled` for a cancelled job, and rests for
        as long as the job has worked: the CPU belongs to the run. Other shelves have their turns meanwhile."""
        looked = time.monotonic()

        def progress(done: int, total: int) -> None:
            nonlocal looked
            if job.unwanted.wait(min(time.monotonic() - looked, LONGEST_REST)):
                raise Cancelled
            job.share = min(done / max(total, 1), 1.0)
            self._turns.let_others()
            looked = time.monotonic()

        return progress


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError):
        return str(error)
    if isinstance(error, OSError):
        return f"the file could not be written: {error.strerror or first_line(error, 200)}"
    return f"the file could not be created: {type(error).__name__}: {first_line(error, 200)}"


class Shelves:
    """The shelves of a server by token of a desk; one of them works at a time."""

    def __init__(self, shared: Callable[[Settings], Settings] = _all) -> None:
        self._lock = threading.Lock()
        self._shared = shared
        self._turns = Turns()
        self._shelves: dict[str, Shelf] = {}
        sweep_temporary("sdlab-")  # results and uploads of servers that were killed

    def open(self, token: str) -> Shelf:
        """Return the shelf of a token, creating it if needed."""
        with self._lock:
            if token not in self._shelves:
                self._shelves[token] = Shelf(self._turns, self._shared)
            return self._shelves[token]

    def get(self, token: str) -> Shelf | None:
        with self._lock:
            return self._shelves.get(token)

    def close(self, token: str) -> None:
        """Remove a shelf with all its files, when its desk ends."""
        with self._lock:
            shelf = self._shelves.pop(token, None)
        if shelf is not None:
            shelf.close()

    def close_all(self) -> None:
        for token in list(self._shelves):
            self.close(token)


# ---- downloads -------------------------------------------------------------------------------------------


def routes(shelves: Shelves) -> APIRouter:
    """Return the routes below /results. Files are always sent as attachments: a replay contains scripts, which must not
    run on this page's origin."""
    router = APIRouter()

    @router.get("/results/{token}/{result_id}", include_in_schema=False)
    def download(token: str, result_id: str) -> Response:
        shelf = shelves.get(token)
        found = shelf.file(result_id) if shelf is not None else None
        if found is None or not found[0].is_file():
            return refusal("there is no such result, or its session has ended", 404)
        path, result = found
        headers = {"Cache-Control": "private, no-store"}
        return FileResponse(path, filename=result.name, media_type=_format(result.kind).media_type, headers=headers)

    return router
