"""A person's own pictures as a gallery: a folder, or a ZIP file of one.

    pets/cat/black/1.png       caption: cat, black
    pets/cat/2.jpg, 2.txt      caption: cat, and the words of 2.txt

A caption consists of the names of the folders below the root and, if a text file has the picture's name, of its words:
both count. The picture's own name does not. See `sdlab.priors.sources.captions` for how a prompt selects pictures, and
`sdlab.folders` for what is read and how a picture becomes a square. Transparency is kept.

Descriptors that are in no caption ("blurry") are made by the toybox's filters, on a background of the toybox's data.
There is no limit to such images: a picture may be repeated, with other flaws on another background.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from sdlab.decoding import MAX_BYTES, square_of
from sdlab.folders import WANTED, Files, Read, files_at, none_found, reason_of, reasons, sorted_out
from sdlab.parsing import Limits, parsed
from sdlab.priors.sources import Drawn, Source, as_bytes, unheard
from sdlab.priors.sources.captions import Captions, split
from sdlab.toybox.flawed import flawed

VERSION = 1  # raise it when the same files give other images
CAPTION_BYTES = 4000  # of a text file that are read
REPORT_EVERY = 0.25  # seconds
PICTURE = Limits(20.0, 2_000_000_000)  # for one of them
KEPT_BYTES = 100_000_000  # of decoded pictures, so that another prompt need not decode them again


class FolderSource(Source):
    """The pictures of a folder or a ZIP file. In memory: names, captions, and decoded pictures up to `KEPT_BYTES`."""

    def __init__(self, path: str | Path, knob: str = "prior.path", progress: Drawn = unheard) -> None:
        """List the pictures and their captions; no picture is decoded. `progress` receives the number of files read.

        Raises ValueError that names `knob` and the path, for anything but a folder or a ZIP with a picture.
        """
        self._given = f"{knob} = {str(path)!r}"
        if not str(path).strip() or "\0" in str(path):
            raise ValueError(f"{self._given} is no path: {WANTED}")
        self._files = files_at(Path(path), self._given)
        self._list = listing(self._files, self._given, progress)
        self.name = f"folder {Path(path).expanduser().resolve().name}"
        self.identity = f"folder {VERSION} {self._files.identity}"
        self._count = functools.lru_cache(1024)(lambda words: len(self._list.captions.selected(words)))
        self._lock = threading.Lock()  # guards all below
        self._damaged: dict[int, str] = {}  # picture -> why it cannot be decoded; found by drawing it
        self._kept: dict[tuple[int, int], Tensor] = {}  # (picture, size), the oldest first
        self._kept_bytes = 0

    def __len__(self) -> int:
        """Return the number of pictures, including any that turn out to be damaged."""
        return len(self._list.names)

    @property
    def note(self) -> str:
        """Which files are skipped and why, "" if none are. A damaged picture is added when it is first drawn."""
        with self._lock:
            damaged = {self._list.names[i]: reason for i, reason in self._damaged.items()}
        skipped = {**self._list.skipped, **damaged}
        total = len(self) + len(self._list.skipped)
        return f"skipped {len(skipped):,} of {total:,} files: {reasons(skipped)}" if skipped else ""

    def key(self, text: str) -> str:
        """Return the words that select pictures, and the descriptors; "" for all pictures without flaws."""
        reading = self._list.captions.read(text)
        words = reading.words if self._count(reading.words) < len(self) else ()
        return " ".join(words) + (f"|{' '.join(reading.flaws)}" if reading.flaws else "")

    def remark(self, text: str) -> str:
        return self._list.captions.remark(text)

    def available(self, key: str) -> int | None:
        """Return how many pictures `key` selects, None with descriptors. Damaged ones count, as they are not known
        before they are drawn: `draw` returns fewer then."""
        words, flaws = _meant(key)
        return None if flaws else self._count(words)

    def draw(
        self, key: str, count: int, size: int, seed: int, progress: Drawn = unheard
    ) -> UInt8[Tensor, "N 4 size size"]:
        """Return a random `count` of the pictures of `key`, or all that can be decoded if these are fewer.

        No more pictures are decoded than needed. With descriptors, pictures repeat up to `count`. Raises ValueError if
        none can be decoded.
        """
        words, flaws = _meant(key)
        order = np.random.default_rng(seed).permutation(self._list.captions.selected(words)).tolist()
        total = count if flaws else min(count, len(order))
        report = _paced(progress)
        drawn: list[Tensor] = []
        clear: list[Tensor] = []
        with self._files.reading() as read:
            fresh = self._squares(read, order, size)
            while len(drawn) < total:
                square = next(fresh, None)
                if square is not None:
                    clear.append(square)
                elif flaws and clear:
                    square = clear[len(drawn) % len(clear)]
                else:
                    break
                drawn.append(_spoilt(square, flaws, np.random.default_rng((seed, len(drawn)))) if flaws else square)
                report(len(drawn), total)
        if not drawn:
            raise ValueError(f"{self._given}: no picture that the text selects can be read; {self.note}")
        return torch.stack(drawn)

    def _squares(self, read: Read, order: Iterable[int], size: int) -> Iterator[Tensor]:
        """Yield the pictures of `order` as squares, without those that cannot be decoded."""
        for i in order:
            with self._lock:
                square = self._kept.get((i, size))
                if square is None and i in self._damaged:
                    continue
            if square is None:
                try:
                    square = torch.from_numpy(_decoded(read(self._list.names[i], MAX_BYTES + 1), size))
                except Exception as e:  # reading from an archive raises all kinds of errors
                    with self._lock:
                        self._damaged[i] = reason_of(e)
                    continue
                self._keep((i, size), square)
            yield square

    def _keep(self, which: tuple[int, int], square: Tensor) -> None:
        with self._lock:
            if which not in self._kept:  # another thread may have been quicker
                self._kept[which] = square
                self._kept_bytes += square.nbytes
            while self._kept_bytes > KEPT_BYTES:
                self._kept_bytes -= self._kept.pop(next(iter(self._kept))).nbytes


def _decoded(raw: bytes, size: int) -> np.ndarray:
    """Return a picture as in `square_of`, decoded in another process."""
    return parsed(square_of, raw, size, given="", limits=PICTURE)


def _paced(progress: Drawn) -> Drawn:
    """Return a callback that passes on the first report and the last, and one every `REPORT_EVERY` seconds."""
    due = 0.0

    def report(done: int, total: int) -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due or done == total:
            due = now + REPORT_EVERY
            progress(done, total)

    return report


def _meant(key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words and the descriptors of a key."""
    words, _, flaws = key.partition("|")
    return tuple(words.split()), tuple(flaws.split())


def _spoilt(square: UInt8[Tensor, "4 S S"], flaws: Sequence[str], rng: np.random.Generator) -> UInt8[Tensor, "4 S S"]:
    rgba = square.permute(1, 2, 0).numpy().astype(np.float32) / 255
    rgb, coverage = flawed(rgba[..., :3], rgba[..., 3], flaws, rng)
    return as_bytes(rgb[None], coverage[None])[0]


class Listing(NamedTuple):
    """The pictures among some files."""

    names: list[str]
    captions: Captions  # in the same order
    skipped: dict[str, str]  # name -> reason, of files that are named like pictures or could not be read


def listing(files: Files, given: str, progress: Drawn = unheard) -> Listing:
    """Find the pictures by their first bytes, and read their captions; ValueError, beginning with `given`, without any.

    `progress` receives the number of files read so far, and of all files.
    """
    report = _paced(progress)
    names: list[str] = []
    captions: list[set[str]] = []
    skipped = dict(files.skipped)
    texts = {name[:-4]: name for name in files.names if name.lower().endswith(".txt")}
    with files.reading() as read:
        for done, name in enumerate(sorted_out(files, read, skipped), 1):
            if name is not None:
                names.append(name)
                captions.append(_caption(read, name, texts, skipped))
            report(done, len(files.names))
    if not names:
        raise none_found(given, skipped)
    return Listing(names, Captions(captions), skipped)


def _caption(read: Read, name: str, texts: Mapping[str, str], skipped: dict[str, str]) -> set[str]:
    """Return the words of a picture's caption; `texts` are the text files, by their names without the suffix."""
    folders, _, _ = name.rpartition("/")
    said = set(split(folders))
    beside = texts.get(os.path.splitext(name)[0])
    if beside is not None:
        try:
            said.update(split(read(beside, CAPTION_BYTES).decode("utf-8-sig", "ignore")))
        except Exception as e:
            skipped[beside] = reason_of(e)
    return said
