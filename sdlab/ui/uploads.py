"""Files that people bring: a mesh, points or Gaussians for a run to start from, or a picture; below /uploads.

A file is known by its content: whatever it is called, it is read as the run would read it before it is kept. It is kept
in a folder of the page's own, which goes with its desk, and is never sent to anybody.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from sdlab import pictures
from sdlab.starts import clouds
from sdlab.web import capped_body, same_origin

MOST_KEPT = 8  # files of a desk
PATIENCE = 600.0  # seconds that a file may take to come
FOR_VISITORS = 20_000_000  # bytes of one file where others than the server's owner bring it
NAME = 60  # characters of a name that are kept
_one_at_a_time = threading.Lock()  # of files being read, each of which may take many times its size in memory


class Upload(NamedTuple):
    """What may be brought for a knob: `check(raw, name)` raises ValueError that begins with the name; `start` is what
    scene.start must be for the file to be used."""

    start: str
    suffixes: str  # of files that a browser offers first
    most: int  # bytes
    check: Callable[[bytes, str], object]


UPLOADS = {  # by the knob that is to hold the file's path
    "scene.file": Upload(
        "file",
        ".glb,.obj,.stl,.ply",
        clouds.MAX_BYTES,
        lambda raw, given: clouds.cloud_of(raw, 1, np.random.default_rng(0), given),
    ),
    "scene.picture": Upload(
        "picture",
        ".png,.jpg,.jpeg,.webp",
        pictures.MAX_BYTES,
        lambda raw, given: pictures.picture_of(raw, 8, given),
    ),
}


def most_bytes(knob: str, for_visitors: bool) -> int:
    """How large a file for this knob may be."""
    return min(UPLOADS[knob].most, FOR_VISITORS) if for_visitors else UPLOADS[knob].most


class Uploads:
    """The files that were brought to one desk. May be used from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: tempfile.TemporaryDirectory | None = None  # made for the first file
        self._kept: list[Path] = []
        self._count = 0
        self._closed = False
        self.arriving = threading.Lock()  # held while a file comes: one after the other

    def keep(self, knob: str, name: str, raw: bytes, in_use: Collection[Path] = ()) -> Path:
        """Where the file now lies; of too many the oldest goes that is not `in_use`. ValueError, which begins with
        `name`, when it is nothing for this knob; RuntimeError when the desk is gone."""
        with _one_at_a_time:
            UPLOADS[knob].check(raw, _shown(name))
        with self._lock:
            if self._closed:
                raise RuntimeError("the session of this file has ended")
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="sdlab-uploads-", ignore_cleanup_errors=True)
            self._count += 1
            path = Path(self._folder.name) / f"{self._count}-{re.sub(r'[^A-Za-z0-9._-]+', '-', name)[-NAME:]}"
            path.write_bytes(raw)
            for old in [kept for kept in self._kept if kept not in in_use][: max(len(self._kept) + 1 - MOST_KEPT, 0)]:
                self._kept.remove(old)
                old.unlink(missing_ok=True)
            self._kept.append(path)
            return path

    def close(self) -> None:
        """Remove everything."""
        with self._lock:
            self._closed = True
            if self._folder is not None:
                self._folder.cleanup()


def _shown(name: str) -> str:
    """A name as it may stand in a message."""
    return repr(name if len(name) <= NAME else f"...{name[-NAME:]}")


class Bringing(NamedTuple):
    """Where a file goes: `receive(knob, name, raw)` raises ValueError or RuntimeError for what is of no use, whose text
    is for people."""

    uploads: Uploads
    receive: Callable[[str, str, bytes], object]


def routes(find: Callable[[str], Bringing | None], for_visitors: bool) -> APIRouter:
    """Routes below /uploads; `find` answers for a desk's token."""
    router = APIRouter()

    @router.post("/uploads/{token}/{knob}", include_in_schema=False)
    async def upload(token: str, knob: str, request: Request, name: str = "file") -> Response:
        if not same_origin(request.headers):
            return Response("a file is taken only from the page it is for", 403)
        bringing = find(token)
        if bringing is None:
            return Response("this session has ended", 404)
        if knob not in UPLOADS:
            return Response(f"{knob!r} takes no file: allowed are {', '.join(UPLOADS)}", 404)
        if not bringing.uploads.arriving.acquire(blocking=False):
            return Response("another file is on its way: wait for it", 409)
        try:
            most = most_bytes(knob, for_visitors)
            async with asyncio.timeout(PATIENCE):
                raw = await capped_body(request, most)
            if raw is None:
                return Response(f"{_shown(name)} is too large: {most:,} bytes are allowed", 413)
            await run_in_threadpool(bringing.receive, knob, name, raw)
        except TimeoutError:
            return Response(f"{_shown(name)} did not come within {PATIENCE:.0f} s: try again", 408)
        except ClientDisconnect:  # changed their mind
            return Response(status_code=400)
        except (ValueError, RuntimeError) as e:
            return Response(str(e), 422)
        except MemoryError:
            return Response(f"{_shown(name)} takes more memory than there is", 422)
        except OSError as e:
            return Response(f"{_shown(name)} could not be kept: {e.strerror or e}", 507)
        finally:
            bringing.uploads.arriving.release()
        return Response(status_code=204)

    return router
