"""Exports of degenerate scenes, and onto full disks."""

import contextlib
import resource
import sys
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from sdlab.export.writers import Material, unwatched, write_film, write_ply
from sdlab.settings import preset
from sdlab.types import RawSplats, SplatSnapshot
from sdlab.ui.results import FORMATS


def test_gaussians_that_are_not_finite_are_left_out_alone(tmp_path):
    n = 5
    s = RawSplats(
        np.zeros((n, 3), np.float32),
        np.tile(np.float32([1, 0, 0, 0]), (n, 1)),
        np.zeros((n, 3), np.float32),
        np.float32([0, np.nan, 0, np.inf, 0]),
        np.full((n, 3), 0.5, np.float32),
    )
    assert write_ply(tmp_path / "x.ply", s) == 3
    assert b"element vertex 3\n" in (tmp_path / "x.ply").read_bytes()


# ---- full disks --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def files_of_at_most(limit: int):
    """Let no file of this process and its children grow beyond `limit` bytes, as on a full disk.

    Meanwhile imports are not cached: Python 3.11 does not notice that a .pyc file was cut off.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    caching = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = caching


def noise(frames: int):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (32, 32, 3), dtype=np.uint8) for _ in range(frames)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = tmp_path_factory.mktemp("film") / "whole.mp4"
    assert write_film(path, noise(24)) == 24
    return path


def test_equal_films_have_equal_bytes(film, tmp_path):
    for _ in range(8):
        write_film(tmp_path / "again.mp4", noise(24))
        assert (tmp_path / "again.mp4").read_bytes() == film.read_bytes()


def test_a_film_has_all_its_frames_and_their_rate(film):
    frames, seconds = imageio_ffmpeg.count_frames_and_secs(str(film))
    assert (frames, seconds) == (24, 1.0)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.99, 1, 1.5])
def test_a_film_is_whole_or_an_error(share, film, tmp_path):
    """At every size at which the disk may be full, also when only the index at the end does not fit."""
    size = film.stat().st_size
    path = tmp_path / "cut.mp4"
    with files_of_at_most(int(share * size) - (share == 1)):
        if share > 1:
            assert write_film(path, noise(24)) == 24
            assert path.read_bytes() == film.read_bytes()
            return
        with pytest.raises(OSError, match=r"cut\.mp4 cannot be written"):
            write_film(path, noise(24))
    assert not path.exists()


@pytest.mark.parametrize("frames", [1, 4, 72])
@pytest.mark.parametrize("name", ["nowhere/a.mp4", ".", "x" * 300 + ".mp4"])
def test_a_film_with_an_impossible_name_is_an_error_with_few_frames_too(name, frames, tmp_path):
    with pytest.raises(OSError, match="cannot be written"):
        write_film(tmp_path / name, noise(frames))


@pytest.mark.parametrize("name", ["-y.mp4", "pipe:1.mp4", "http:.mp4", "a%02d.mp4", "film", "b c.mp4"])
def test_a_name_is_a_name(name, tmp_path, monkeypatch):
    """ffmpeg reads options, protocols and patterns in names."""
    monkeypatch.chdir(tmp_path)
    assert write_film(Path(name), noise(2)) == 2
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_film_that_fails_leaves_an_earlier_one(film, tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(film.read_bytes())
    with files_of_at_most(100), pytest.raises(OSError, match="cannot be written"):
        write_film(path, noise(5))
    assert path.read_bytes() == film.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_a_film_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no images"):
        write_film(tmp_path / "a.mp4", [])


def test_a_film_that_is_cancelled_ends_its_encoder(tmp_path):
    def cancelled():
        yield from noise(3)
        raise KeyError("cancelled")

    with pytest.raises(KeyError, match="cancelled"):
        write_film(tmp_path / "a.mp4", cancelled())


@pytest.fixture(scope="module")
def material():
    n = 400
    rng = np.random.default_rng(0)
    quats = np.tile(np.float32([1, 0, 0, 0]), (n, 1))
    means = rng.normal(scale=0.2, size=(n, 3)).astype(np.float32)
    rgbs = rng.uniform(size=(n, 3)).astype(np.float32)
    s = RawSplats(means, quats, np.full((n, 3), -2.5, np.float32), np.full(n, 2.0, np.float32), rgbs)
    pictures = rng.integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    covariances = np.tile(np.float32(0.006 * np.eye(3)), (n, 1, 1))
    film = ((3, SplatSnapshot(means, covariances, rgbs, np.ones((n, 1), np.float32))),)
    return Material(preset("mixture"), 3, s, film, pictures)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_an_error_on_a_full_disk(kind, material, tmp_path):
    path = tmp_path / f"a{FORMATS[kind].suffix}"
    with files_of_at_most(20), pytest.raises(OSError, match=r"File too large|cannot be written"):
        FORMATS[kind].write(path, material, unwatched)
    FORMATS[kind].write(path, material, unwatched)
    assert path.stat().st_size > 20
