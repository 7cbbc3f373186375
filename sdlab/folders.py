"""The files of a folder or of a ZIP archive, read by name, and the pictures among them. Free of torch.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from io import BufferedIOBase, BytesIO
from pathlib import Path

from sdlab.decoding import MAGIC_BYTES, MAX_BYTES, is_picture, pixels_of, square_of
from sdlab.quoting import first_line

MAX_FILES = 200_000  # in a folder or an archive, pictures or not
MAX_ARCHIVE = 500_000_000  # bytes of an archive
MAX_UNPACKED = 4_000_000_000  # bytes of all its files
ENTRY = b"PK\x01\x02"  # begins each entry in an archive's list of files
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # the memory that LZMA needs is up to the file
WANTED = "give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif")
HEADER_BYTES = 65_536  # of a picture, which say how large it is
SHOWN_SKIPPED = 5  # files in a note
SHOWN_NAME = 60  # characters

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


def sorted_out(files: Files, read: Read, skipped: dict[str, str]) -> Iterator[str | None]:
    """Yield, for each of the files, its name if its first bytes are those of a picture, else None. Files that are named
    like pictures and are none go to `skipped`, with the reason."""
    for name in files.names:
        reason = _refused(read, name)
        if reason:
            skipped[name] = reason
        yield name if reason is None else None


def _refused(read: Read, name: str) -> str | None:
    """Return None for a picture; otherwise why it is skipped, or "" if it is not named like a picture either."""
    is_named_so = name.lower().endswith(SUFFIXES)
    try:
        if is_picture(read(name, MAGIC_BYTES)):
            return None
    except Exception as e:  # reading from an archive raises all kinds of errors
        return reason_of(e) if is_named_so else ""
    return "not PNG, JPEG or WebP" if is_named_so else ""


def none_found(given: str, skipped: Mapping[str, str]) -> ValueError:
    """Return the error for files without a picture among them."""
    why = f". Skipped: {reasons(skipped)}" if skipped else ""
    return ValueError(f"{given} contains no pictures: {WANTED}{why}")


def check_archive(raw: bytes, given: str, most_pixels: int | None = None) -> None:
    """Raise ValueError, which begins with `given`, unless `raw` is a ZIP file with a picture that can be decoded, and
    its pictures have at most `most_pixels` together."""
    files = Archive(raw, given)
    skipped = dict(files.skipped)
    with files.reading() as read:
        names = [name for name in sorted_out(files, read, skipped) if name is not None]
        if not names:
            raise none_found(given, skipped)
        pixels = sum(_size(read, name) for name in names) if most_pixels is not None else 0
        if most_pixels is not None and pixels > most_pixels:
            raise ValueError(f"{given} has pictures of {pixels:,} pixels together; the limit is {most_pixels:,}")
        for name in names:
            try:
                square_of(read(name, MAX_BYTES + 1), 8)
            except Exception as e:
                skipped[name] = reason_of(e)
            else:
                return
    raise ValueError(f"{given} contains no picture that can be read: {reasons(skipped)}")


def _size(read: Read, name: str) -> int:
    """Return how many pixels a picture has; 0 if its beginning does not say, and it will not be decoded either."""
    try:
        return pixels_of(read(name, HEADER_BYTES))
    except Exception:
        return 0


def reason_of(error: Exception) -> str:
    """Return why a file is skipped, in a few words."""
    return (error.strerror if isinstance(error, OSError) else None) or first_line(error, 80)


def reasons(skipped: Mapping[str, str]) -> str:
    """Return the first of the skipped files, with the reasons."""
    named = [f"{_shown(name)} ({skipped[name]})" for name in sorted(skipped)[:SHOWN_SKIPPED]]
    more = f" and {len(skipped) - SHOWN_SKIPPED:,} more" if len(skipped) > SHOWN_SKIPPED else ""
    return ", ".join(named) + more


def _shown(name: str) -> str:
    """Return a file's name for messages: printable, and only the end of a long one."""
    name = name if name.isprintable() else ascii(name)[1:-1]
    return name if len(name) <= SHOWN_NAME else f"...{name[3 - SHOWN_NAME :]}"
