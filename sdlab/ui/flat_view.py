"""The view of a flat scene: a page below /flat/{token}/ that draws the plane, or images, from numbers.

The token is the seat's: unguessable, and the only key. A browser on another site is refused by its Origin. Routes:
  now      the latest frame, if it or its settings are newer than the page's (204 otherwise), as arrays: see `pack`;
           205 if the run is over or was replaced, which is no error: browsers would report a 404 in their console
  ground   what stays the same from step to step: the components of the plane's mixtures and the noise schedule, from
           which the page draws the density at any noise level; or the saturation of true images
  start    moves the start of the run, and resets it there
The page's code is in static/flat/, in modules; formulas and symbols come typeset from here.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from sdlab.live import critic
from sdlab.live.manager import Manager
from sdlab.live.messages import Patch, Reset, Resume
from sdlab.live.session import Session
from sdlab.losses import NOISE
from sdlab.metrics.images import saturation
from sdlab.pictures import grid
from sdlab.plane import HELD, REACH, shares
from sdlab.scenes.gaussian import GaussianFit
from sdlab.scenes.illusion import Illusion
from sdlab.scenes.image import Images
from sdlab.scenes.points import Points
from sdlab.settings import Settings
from sdlab.types import FlatFrame, Frame, Term
from sdlab.ui.formulas import formula, letters
from sdlab.ui.pace import held_up
from sdlab.ui.places import PAUSED
from sdlab.ui.visitors import PATIENCE
from sdlab.web import capped_body, refusal

STATIC = Path(__file__).parent / "static" / "flat"
FILES = {"flat.css": "text/css"} | {
    path.name: "text/javascript" for path in STATIC.glob("*.js")
}  # nothing else is served
START = {"points": ("scene.start_x", "scene.start_y"), "gaussian": ("scene.mean_x", "scene.mean_y")}
FAR = 1e6  # larger coordinates are refused; smaller ones are clipped to the knob's range
MOST_BYTES = 1000  # of a request that moves the start
UNIT = 4096  # coordinates are sent as integers, in units of 1 / UNIT
MOST_ROWS = 64  # steps of the paths in one message; longer stretches are thinned out
HISTORY = 400  # steps whose saturation is kept; beyond that, every other one is dropped
LOSSLESS = 128  # pixels; larger images are sent as JPEG
TRUE_PICTURES = 16  # drawn to measure their saturation
NO_STORE = {"Cache-Control": "no-store"}


def is_flat(settings: Settings) -> bool:
    """Return whether a run of these settings is shown at flat/{token}/ rather than viewport/{token}/."""
    return isinstance(settings.scene, (Points, GaussianFit, Images, Illusion))


def pack(header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """Pack one message: the header's length (uint32), the header as JSON, then the arrays, each part padded to a
    multiple of 8 bytes. `header["arrays"]`: name -> [type, shape, offset after the header]. Little-endian."""
    places, parts, end = {}, [], 0
    for name, array in arrays.items():
        raw = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        places[name] = [array.dtype.name, array.shape, end]
        parts.append(raw + bytes(-len(raw) % 8))
        end += len(parts[-1])
    head = json.dumps({**header, "arrays": places}, separators=(",", ":"), allow_nan=False).encode()
    head += b" " * (-(4 + len(head)) % 8)
    return struct.pack("<I", len(head)) + head + b"".join(parts)


@dataclass
class _Kept:
    """State kept for a session between requests; several pages may view it at once."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    settings: tuple[Settings, Settings, str] | None = None  # which `about` describes
    about: dict[str, Any] = field(default_factory=dict)
    version: int = -1  # of the frame in `sheet`
    sheet: bytes = b""
    saturations: list[tuple[float, ...]] = field(default_factory=list)  # (step, one per image)


class FlatViews:
    """Messages about the sessions of `manager`; visitors may not change the knobs at the paths `locked`."""

    def __init__(self, manager: Manager, locked: Collection[str] = ()) -> None:
        self._manager = manager
        self._locked = frozenset(locked)
        self._kept: WeakKeyDictionary[Session, _Kept] = WeakKeyDictionary()

    def session(self, token: str) -> Session | None:
        """Return the seat's session, or None if it has ended. This does not keep the seat alive: its page does."""
        seat = self._manager._seats.get(token)
        return seat.session if seat is not None else None

    def now(self, session: Session, since: str = "", run: int = 0, row: int = -1) -> bytes | None:
        """Return the latest frame, or None if `since` names it or there is none. It holds the paths after `row` of
        `run`, or the saturations after step `row`."""
        number = session.latest.version  # read before the frame, which is then at least as new
        frame = session.latest.get()
        if frame is None or frame.scene is not None:
            return None
        about = self._about(session, frame.step)
        version = f"{number}-{about['about']}"
        if version == since:
            return None
        header = {"version": version, "step": frame.step, **about}
        if frame.flat is not None:
            return _plane(header, session, frame, frame.flat, run, row)
        return self._pictures(header, session, frame, number, row)

    def _about(self, session: Session, step: int) -> dict[str, Any]:
        """Return the part of a message that describes the settings; a change of it is news, too. Cached per settings,
        because building it holds the interpreter lock."""
        kept, s = self._kept.setdefault(session, _Kept()), session.effective
        settings = s, session.settings, s.loss.formula_at(s.progress(step))
        if kept.settings is None or any(a is not b for a, b in zip(kept.settings, settings, strict=True)):
            about = self._said(*settings)
            kept.settings, kept.about = settings, {**about, "about": _digest(about)}
        return kept.about

    def _said(self, s: Settings, asked: Settings, text: str) -> dict[str, Any]:
        """Describe the effective settings `s`, with the start from the requested settings `asked`, which a drag changes
        first; `text` is the loss's formula at this step."""
        start = None
        if s.scene.kind in START:
            knobs = [asked.knob(path) for path in START[s.scene.kind]]
            start = {
                "at": [k.value for k in knobs],
                "range": [[k.lo, k.hi] for k in knobs],
                "locked": any(k.path in self._locked for k in knobs),
            }
        return {
            "loss": {
                "kind": s.active,
                "title": s.loss.title,
                "formula": formula(text),
                "colours": {term.written: term.colour for term in (*s.loss.terms, NOISE)},
            },
            "prompt": " / ".join(s.prompts),
            "ground": _digest([repr(s.prior), *s.prompts]),
            "planned": s.planned_end,
            "start": start,
        }

    def _pictures(self, header: dict[str, Any], session: Session, frame: Frame, number: int, row: int) -> bytes:
        kept = self._kept.setdefault(session, _Kept())
        with kept.lock:
            if kept.version != number:
                kept.version, kept.sheet = number, sheet_of(frame.preview)
                seen = kept.saturations
                while seen and (seen[-1][0] >= frame.step or len(seen[-1]) != 1 + len(frame.preview)):
                    seen.pop()  # the run was reset or went back
                seen.append((frame.step, *saturation_of(frame.preview)))
                if len(seen) > HISTORY:
                    del seen[1:-1:2]
            saturations = np.array(kept.saturations, np.float32)
            sheet = kept.sheet
        count, height, width, _ = frame.preview.shape
        if row >= frame.step:
            row = -1  # it belongs to another run
        arrays = {
            "sheet": np.frombuffer(sheet, np.uint8),
            "saturations": saturations[saturations[:, 0] > row],
        }
        return pack({**header, "kind": "pictures", "count": count, "size": [height, width], "after": row}, arrays)

    def ground(self, session: Session) -> bytes | None:
        """Return the message of the route "ground"; None before there is a prior."""
        s = session.effective
        header = {"ground": _digest([repr(s.prior), *s.prompts])}
        try:
            prior: Any = session.prior
        except RuntimeError:
            return None
        if tuple(prior.shape) != (2, 1, 1) or not hasattr(prior, "mixture"):
            true = true_saturation(*s.prompts) if critic.knows(s.prior) else None
            return pack({**header, "kind": "pictures", "true": true}, {})
        arrays = {"alphas_cumprod": _alphas_cumprod(prior)}
        for name, text in (("asked", s.prompt.text), ("all", "")):
            mixture = prior.mixture(text)
            arrays[name] = np.concatenate(
                [mixture.weights[:, None] / mixture.weights.sum(), mixture.means.flatten(1), mixture.stds[:, None]], 1
            ).astype(np.float32)
        return pack({**header, "kind": "plane", "reach": REACH, "names": list(prior.names)}, arrays)

    def delay(self, token: str) -> float:
        """Return how many seconds a change of the start has to wait, see `sdlab.ui.page.Page.delay`."""
        seat = self._manager._seats.get(token)
        return seat.client.messages.take(1, PATIENCE) if seat is not None else 0.0

    def move_start(self, session: Session, x: float, y: float) -> tuple[float, float]:
        """Reset the run to start at x, y, or as near as the knobs allow; return that place. A run that was running, or
        had reached its end, continues. ValueError for a scene without a start, PermissionError if it is locked or the
        run on hold."""
        s = session.settings
        if session.on_hold:
            raise PermissionError(PAUSED)
        if s.scene.kind not in START:
            raise ValueError(f"scene.kind = {s.scene.kind}: only points and a Gaussian have a start to move")
        paths = START[s.scene.kind]
        if locked := self._locked.intersection(paths):
            raise PermissionError(f"{', '.join(sorted(locked))}: this server does not let visitors change it")
        knobs = [s.knob(path) for path in paths]
        found = [min(max(round(value, 3), k.lo or 0.0), k.hi or 0.0) for value, k in zip((x, y), knobs, strict=True)]
        self._must_be_free(session, s.patch_all(zip(paths, found, strict=True)))
        frame = session.latest.get()
        over = not session.running and frame is not None and frame.step >= s.planned_end
        session.send(Patch(tuple(zip(paths, found, strict=True))))
        session.send(Reset())
        if over:
            session.send(Resume())
        return found[0], found[1]

    def _must_be_free(self, session: Session, wanted: Settings) -> None:
        """Raise PermissionError if `wanted` changes a knob that the link of the session's page locks."""
        for seat in list(self._manager._seats.values()):
            if seat.session is session:
                try:
                    seat.client.locks(session.settings, wanted)
                except ValueError as e:
                    raise PermissionError(str(e)) from e


def _plane(header: dict[str, Any], session: Session, frame: Frame, flat: FlatFrame, run: int, row: int) -> bytes:
    first = frame.step - len(flat.way) + 1  # the step of the first row
    rows = np.arange(first, frame.step + 1)
    if run == flat.run and row <= frame.step:
        rows = rows[rows > row]
    if len(rows) > MOST_ROWS:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_ROWS).round().astype(int)]
    way = np.clip(flat.way[rows - first] * UNIT, -32768, 32767).round().astype(np.int16)
    arrays = {"rows": rows.astype(np.int32), "way": way, "t": flat.t.astype(np.int32)}
    arrays |= {f"term {name}": np.nan_to_num(value) for name, value in flat.terms.items()}
    fit = None
    if "std_x" in frame.stats:
        fit = [round(frame.stats[name], 4) for name in ("mean_x", "mean_y", "std_x", "std_y")]
    held = _held(session, flat.way[-1])
    header |= {
        "kind": "plane",
        "run": flat.run,
        "terms": [_drawn(term) for term in flat.legend],
        "unit": UNIT,
        "fit": fit if fit is None or np.isfinite(fit).all() else None,
        "held": [round(share, 3) for share in held],
        "reached": sum(share >= HELD for share in held),
    }
    return pack(header, arrays)


def _drawn(term: Term) -> dict[str, Any]:
    """Describe how the page lists and draws a term of the loss; `sign` turns a prediction of noise into a pull."""
    return {
        "name": term.name,
        "symbol": letters(term.symbol),
        "text": term.pull,
        "sign": 1 if term.subtracted else -1,
        "colour": term.colour,
        "broad": term.broad,
    }


def _held(session: Session, points: np.ndarray) -> list[float]:
    """Return the share of the points in each place that the prompt asks for."""
    prior: Any = session.prior
    if not hasattr(prior, "mixture"):
        return []
    wanted = prior.mixture(session.effective.prompt.text)
    return shares(wanted.means.flatten(1), wanted.stds, torch.from_numpy(points))


def _alphas_cumprod(prior: Any) -> np.ndarray:
    alpha, _ = prior.marginal(torch.arange(1000, device=prior.device))
    return alpha.flatten().double().square().cpu().numpy().astype(np.float32)


def _digest(what: Any) -> str:
    return hashlib.blake2b(json.dumps(what).encode(), digest_size=6).hexdigest()


def saturation_of(pictures: np.ndarray) -> list[float]:
    """Return the saturation of images, uint8 [M, H, W, 3] -> M numbers in [0, 1]."""
    rgb = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 255
    return [round(share, 4) for share in saturation(rgb).tolist()]


def sheet_of(pictures: np.ndarray) -> bytes:
    """Encode uint8 [M, H, W, 3] as one PNG (JPEG if they are large), in rows of ceil(sqrt(M)) without gaps."""
    from PIL import Image

    out, small = BytesIO(), max(pictures.shape[1:3]) <= LOSSLESS
    Image.fromarray(grid(pictures, gap=0)).save(out, "PNG" if small else "JPEG", **({} if small else {"quality": 90}))
    return out.getvalue()


@functools.lru_cache(maxsize=64)
def true_saturation(*prompts: str) -> float | None:
    """Return the mean saturation of the toybox's true images of the prompts, None if one names no object or no
    colour."""
    from sdlab.toybox import figures, judge
    from sdlab.toybox.asked import asked_for

    found = []
    for prompt in prompts:
        try:
            name, colour = asked_for(prompt)
        except ValueError:
            return None
        if not colour:
            return None
        shots = [judge.shot_of(i, figures.plain_facts(name, colour)) for i in range(TRUE_PICTURES)]
        found.append(float(saturation(judge.render(shots).float() / 255).mean()))
    return round(sum(found) / len(found), 4)


# ---- routes ----------------------------------------------------------------------------------------------------------


def routes(views: FlatViews, embedders: str = "'self'") -> APIRouter:
    """Return the routes below /flat; `embedders`, the value of frame-ancestors, says who may embed a view."""
    router = APIRouter(include_in_schema=False)
    policy = f"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors {embedders}"

    def found(token: str) -> Session | Response:
        return views.session(token) or refusal("there is no such view, or its session has ended", 404)

    @router.get("/flat/{file}")
    def asset(file: str) -> Response:
        if file not in FILES:
            return refusal("there is no such file", 404)
        return Response((STATIC / file).read_bytes(), media_type=FILES[file], headers={"Cache-Control": "no-cache"})

    @router.get("/flat/{token}/")
    def page(token: str) -> Response:
        session = found(token)
        if isinstance(session, Response):
            return session
        headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy}
        return Response((STATIC / "flat.html").read_bytes(), media_type="text/html", headers=headers)

    @router.get("/flat/{token}/now")
    async def now(token: str, since: str = "", run: int = 0, row: int = -1) -> Response:
        session = views.session(token)
        if session is None:
            return _over()
        if session.effective.scene.kind in START:  # a millisecond; another thread would have to wait for its turn
            return _message(views.now(session, since, run, row))
        return _message(await run_in_threadpool(views.now, session, since, run, row))

    @router.get("/flat/{token}/ground")
    def ground(token: str) -> Response:
        session = views.session(token)
        return _over() if session is None else _message(views.ground(session))

    @router.post("/flat/{token}/start")
    async def start(token: str, request: Request) -> Response:
        session = found(token)
        if isinstance(session, Response):
            return session
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            return refusal("moving the start requires application/json", 415)
        body = await capped_body(request, MOST_BYTES)
        if body is None:
            return refusal(f"a request to move the start may have at most {MOST_BYTES} bytes", 413)
        if (refused := await held_up(views.delay(token))) is not None:
            return refused
        try:
            x, y = _place(body)
            at = views.move_start(session, x, y)
        except PermissionError as e:
            return refusal(str(e), 403)
        except ValueError as e:
            return refusal(str(e), 422)
        return Response(json.dumps(dict(zip("xy", at, strict=True))), media_type="application/json")

    return router


def _place(body: bytes) -> tuple[float, float]:
    """Return x and y of {"x": ..., "y": ...}; ValueError for anything else, or if one is not finite."""
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    if isinstance(said, dict) and said.keys() == {"x", "y"}:
        x, y = said["x"], said["y"]
        if all(type(v) in (int, float) and abs(v) <= FAR for v in (x, y)):  # False for NaN, which JSON here may hold
            return float(x), float(y)
    raise ValueError('a place is {"x": number, "y": number}')


def _over() -> Response:
    return Response(status_code=205, headers=NO_STORE)


def _message(packed: bytes | None) -> Response:
    if packed is None:
        return Response(status_code=204, headers=NO_STORE)
    return Response(packed, media_type="application/octet-stream", headers=NO_STORE)
