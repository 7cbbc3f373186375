"""What a teacher sees of a run: its last pictures as JPEG, from copies that the session has published. Nothing is
rendered for them."""

from __future__ import annotations

import threading
from io import BytesIO
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np
from PIL import Image

from sdlab.live.session import Session
from sdlab.pictures import grid

THUMBNAIL = 128  # pixels; larger pictures are reduced
MOST_SEEN = 4  # pictures of what the loss sees
QUALITY = 85

Kind = Literal["front", "around", "seen"]  # one view, the views around the object, what the loss sees
_kept: WeakKeyDictionary[Session, dict[Kind, tuple[str, bytes]]] = WeakKeyDictionary()
_lock = threading.Lock()


def version(session: Session) -> str:
    """Return what changes when the pictures do, "" before there are any."""
    return f"{session.around.version}.{session.latest.version}" if session.latest.get() is not None else ""


def picture(session: Session, kind: Kind) -> bytes | None:
    """Return a picture as JPEG, None if there is none. Encoded once for each version."""
    now = version(session)
    with _lock:
        kept = _kept.setdefault(session, {})
        if kind in kept and kept[kind][0] == now:
            return kept[kind][1]
    pixels = _pixels(session, kind)
    if pixels is None:
        return None
    encoded = _jpeg(pixels)
    with _lock:
        kept[kind] = now, encoded
    return encoded


def _pixels(session: Session, kind: Kind) -> np.ndarray | None:
    around, frame = session.around.get(), session.latest.get()
    if kind == "around":
        return None if around is None else grid(around.images, gap=0)
    if frame is None or not len(frame.preview):
        return None
    if kind == "seen":
        return grid(frame.preview[:MOST_SEEN])
    return _small(around.images[0] if around is not None else grid(frame.preview[:MOST_SEEN]))


def _small(pixels: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(pixels)
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    return np.asarray(picture)


def _jpeg(pixels: np.ndarray) -> bytes:
    out = BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=QUALITY)
    return out.getvalue()
