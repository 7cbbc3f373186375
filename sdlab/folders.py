"""The files of a folder or of a ZIP archive, read by name; and pictures among them, decoded to squares.

Files are untrusted. Nothing is written or unpacked to disk, links out of a folder are not followed, and counts, sizes
and pixels are limited. An archive is read entry by entry, so that its unpacked size does not matter for memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from sdlab.errors import first_line
from sdlab.pictures import MAX_BYTES, MAX_PIXELS
from sdlab.priors.sources import as_bytes

MAX_FILES = 200_000  # in a folder or an archive, pictures or not
MAX_ARCHIVE = 500_000_000  # bytes of an archive
MAX_UNPACKED = 4_000_000_000  # bytes of all its files
ENTRY = b"PK\x01\x02"  # begins each entry in an archive's list of files
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the memory that LZMA needs is up to the file
MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
MAGIC_BYTES = 12
FORMATS = ("PNG", "JPEG", "WEBP")
WANTED = "give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"
TURNS = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
DETAIL = 2  # JPEG may be decoded at a reduced size, but no smaller than this many times the square

Read = Callable[[str, int], bytes]  # (name, most): the first `most` bytes of a file; may raise any error


class Files(ABC):
    """Regular files below a folder, or in an archive.

    `names` are relative, with "/" between folders, and sorted; files and folders that begin with a dot are left out.
    `skipped` maps the names of others to the reason. `identity` changes with the files.
    """

    names: list[str]
    skipped: dict[str, str]
    identity: str

    @abstractmethod
    def reading(self) -> AbstractContextManager[Read]:
        """Return a context with a function that reads files; for one thread."""


class Folder(Files):
    """The files below `root`; links to files within it count, all other links are skipped."""

    def __init__(self, root: Path, given: str) -> None:
        """List the files; ValueError, which begins with `given`, if there are too many or `root` cannot be read."""
        self._root = root.resolve()
        self.skipped = {}
        stamps = {}
        folders = [""]
        while folders:
            below = folders.pop()
            try:
                with os.scandir(self._root / below) as entries:
                    found = [e for e in entries if not e.name.startswith(".")]
            except OSError as e:
                if not below:
                    raise ValueError(f"{given} cannot be read: {e.strerror or e}") from e
                self.skipped[below] = e.strerror or str(e)
                continue
            for entry in found:
                name = below + entry.name
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{name}/")
                elif (stamp := self._stamp(entry, name)) is not None:
                    stamps[name] = stamp
            if len(stamps) + len(folders) > MAX_FILES:
                raise ValueError(f"{given} has more than {MAX_FILES:,} files: choose a folder below it")
        self.names = sorted(stamps)
        listed = "\n".join(f"{stamps[name]} {name}" for name in self.names)
        self.identity = _digest(listed.encode(errors="surrogateescape"))

    def _stamp(self, entry: os.DirEntry[str], name: str) -> str | None:
        """Return size and time of a file; None if it is none, or a link that is not followed."""
        try:
            if entry.is_symlink() and not Path(entry.path).resolve(strict=True).is_relative_to(self._root):
                self.skipped[name] = "a link out of the folder"
                return None
            found = entry.stat()
        except (OSError, RuntimeError):
            self.skipped[name] = "a broken link" if entry.is_symlink() else "cannot be read"
            return None
        if stat.S_ISDIR(found.st_mode):
            self.skipped[name] = "a link to a folder"
        return f"{found.st_size} {found.st_mtime_ns}" if stat.S_ISREG(found.st_mode) else None

    @contextmanager
    def reading(self) -> Iterator[Read]:
        def read(name: str, most: int) -> bytes:
            with (self._root / name).open("rb") as stream:
                return stream.read(most)

        yield read


class Archive(Files):
    """The files in a ZIP archive, a path or its content. Names are never used as paths."""

    def __init__(self, file: Path | bytes, given: str) -> None:
        """List the files; ValueError, which begins with `given`, if it is no ZIP archive or exceeds a limit."""
        self._file = file
        self.skipped = {}
        self._entries: dict[str, zipfile.ZipInfo] = {}
        try:
            with self._stream() as stream:
                self.identity, count = _survey(stream)
                if stream.tell() > MAX_ARCHIVE:
                    raise ValueError(
                        f"{given} has more than {MAX_ARCHIVE:,} bytes: unpack it and choose the folder instead"
                    )
                if count > MAX_FILES:  # before each of them takes memory
                    raise ValueError(f"{given} has more than {MAX_FILES:,} files: leave some out")
                with zipfile.ZipFile(stream) as archive:
                    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except zipfile.BadZipFile as e:
            raise ValueError(f"{given} is a damaged ZIP file ({first_line(e)}): make it again") from e
        except OSError as e:
            raise ValueError(f"{given} cannot be read: {e.strerror or e}") from e
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > MAX_UNPACKED:
            raise ValueError(f"{given} has {unpacked:,} bytes when unpacked; the limit is {MAX_UNPACKED:,}")
        for entry in entries:
            parts = [part for part in re.split(r"[/\\]+", entry.filename) if part not in ("", "..", ".")]
            if any(part.startswith(".") or part == "__MACOSX" for part in parts):
                continue
            name = "/".join(parts)
            if entry.flag_bits & 1:
                self.skipped[name] = "encrypted"
            elif entry.compress_type not in PACKED:
                self.skipped[name] = "compressed in an unusual way"
            elif name:
                self._entries.setdefault(name, entry)
        self.names = sorted(self._entries)

    def _stream(self) -> BufferedIOBase:
        return BytesIO(self._file) if isinstance(self._file, bytes) else self._file.open("rb")

    @contextmanager
    def reading(self) -> Iterator[Read]:
        with self._stream() as stream, zipfile.ZipFile(stream) as archive:

            def read(name: str, most: int) -> bytes:
                with archive.open(self._entries[name]) as file:
                    return file.read(most)

            yield read


def files_at(path: Path, given: str) -> Files:
    """Return the files at `path`; ValueError, which begins with `given`, if it is neither a folder nor a ZIP file."""
    try:
        path = path.expanduser()
        if path.is_dir():
            return Folder(path, given)
        path.stat()
        if path.is_file() and is_archive(path):
            return Archive(path, given)
    except FileNotFoundError:
        raise ValueError(f"{given} does not exist: {WANTED}") from None
    except (OSError, RuntimeError) as e:  # no home folder is a RuntimeError
        raise ValueError(f"{given} cannot be read: {getattr(e, 'strerror', None) or e}") from e
    raise ValueError(f"{given} is neither a folder nor a ZIP file: {WANTED}")


def is_archive(file: Path | bytes) -> bool:
    """Return whether a file, or content, is a ZIP archive, which may be empty. Raises OSError if it is unreadable."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            file = stream.read(4)
    return file.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def _survey(stream: BufferedIOBase) -> tuple[str, int]:
    """Return a digest of a stream and how many files an archive in it can list; stop beyond `MAX_ARCHIVE` bytes."""
    digest, count, end = hashlib.blake2b(digest_size=16), 0, b""
    while part := stream.read(1 << 20):
        digest.update(part)
        count += (end + part).count(ENTRY)
        end = part[1 - len(ENTRY) :]
        if stream.tell() > MAX_ARCHIVE:
            break
    return digest.hexdigest(), count


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


# ---- pictures --------------------------------------------------------------------------------------------


def is_picture(head: bytes) -> bool:
    """Return whether a file's first bytes are those of a PNG, JPEG or WebP."""
    return MAGIC.match(head) is not None


def square_of(raw: bytes, size: int) -> UInt8[Tensor, "4 size size"]:
    """Decode a picture to premultiplied rgb and coverage in 0 .. 255, turned upright as its EXIF data say.

    A picture with transparent parts fits whole into the square, centred, and the rest is transparent; of any other, the
    central square is taken. Of an animation, the first frame is. Raises ValueError with the reason.
    """
    if len(raw) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES:,} bytes")
    try:
        with Image.open(BytesIO(raw), formats=FORMATS) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise ValueError(f"{picture.width} x {picture.height} pixels; the limit is {MAX_PIXELS:,}")
            picture.draft(None, (DETAIL * size, DETAIL * size))
            picture.load()
            square = _fitted(picture, size, _turn_of(picture))
    except ValueError:
        raise
    except UnidentifiedImageError:
        raise ValueError("damaged") from None
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels") from None
    except Exception as e:  # decoders raise all kinds of errors on malformed input
        text = first_line(e, 80)
        raise ValueError("truncated" if "truncated" in text.lower() else text) from e
    rgba = np.asarray(square, np.float32)[None] / 255
    return as_bytes(rgba[..., :3], rgba[..., 3])[0]


def _turn_of(picture: Image.Image) -> Image.Transpose | None:
    """Return what turns a picture upright, None if it is or if its EXIF data cannot be read."""
    try:
        return TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # parsers raise all kinds of errors on malformed input, and the pixels are fine without
        return None


def _fitted(picture: Image.Image, size: int, turn: Image.Transpose | None) -> Image.Image:
    """Return a picture as a premultiplied RGBa square."""
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        if picture.getchannel("A").getextrema() != (255, 255):
            scale = size / max(picture.size)
            shape = (max(round(scale * picture.width), 1), max(round(scale * picture.height), 1))
            small = _turned(picture.convert("RGBa").resize(shape, Image.Resampling.LANCZOS), turn)
            square = Image.new("RGBa", (size, size))
            square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
            return square
    if picture.mode.startswith("I"):  # 16 bits, which convert() would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    left, top = (max(side - min(picture.size), 0) / 2 for side in picture.size)
    box = (left, top, picture.width - left, picture.height - top)
    square = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box)
    return _turned(square, turn).convert("RGBA").convert("RGBa")


def _turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)
