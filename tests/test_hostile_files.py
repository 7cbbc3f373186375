"""Files made to harm the server: bombs of every kind, and good files with damage at random."""

from __future__ import annotations

import io
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator

import hostile
import numpy as np
import psutil
import pytest
import trimesh
from PIL import Image
from trimesh.visual.material import PBRMaterial
from trimesh.visual.texture import TextureVisuals

from sdlab.parsing import VISITOR
from sdlab.parsing.children import CHILDREN
from sdlab.ui.uploads import UPLOADS

SECONDS, MEMORY = 2.0, 500_000_000


class Watch:
    """What the processes that parse files use, at most; `with` the block in which they do."""

    def __enter__(self) -> Watch:
        self.seconds, self.memory = 0.0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        began: dict[int, tuple[float, int]] = {}
        while not self._over.wait(0.02):
            for process in psutil.Process().children():
                try:
                    used, memory = sum(process.cpu_times()[:2]), process.memory_info().rss
                except psutil.Error:
                    continue
                first = began.setdefault(process.pid, (used, memory))
                self.seconds = max(self.seconds, used - first[0])
                self.memory = max(self.memory, memory - first[1])

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture(scope="module")
def warm() -> Iterator[None]:
    """A child that has its modules."""
    for knob, raw in (("scene.file", hostile.glb()), ("prior.path", hostile.glb())):
        UPLOADS[knob].check(raw, "'x'")
    yield
    CHILDREN.close()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in hostile.SLOW else []) for name in hostile.BOMBS]
)
def test_a_bomb_is_refused_or_read_in_time(warm: None, name: str):
    knob, make = hostile.BOMBS[name]
    raw = make()
    assert len(raw) <= 20_000_000, "what visitors may upload"
    UPLOADS["scene.file"].check(hostile.glb(), "'x'")
    said = ""
    with Watch() as used:
        began = time.monotonic()
        try:
            UPLOADS[knob].check(raw, "'x.bin'", VISITOR)
        except ValueError as e:
            said = str(e)
        took = time.monotonic() - began
    figures = f"{took:.2f} s, {used.seconds:.2f} s of CPU, {used.memory / 1e6:.0f} MB"
    print(f"{name}, {len(raw) / 1e6:.1f} MB: {figures}, {said or 'accepted'}")
    assert used.seconds <= SECONDS
    assert used.memory <= MEMORY
    must_be_a_sentence(said)


def must_be_a_sentence(said: str) -> None:
    """Check a refusal, "" for none."""
    assert not said or said.startswith("'x.bin' ")
    assert "\n" not in said
    assert len(said) < 600
    for leak in ("/tmp/", "site-packages", "Traceback", "/work", "/home", "crashed"):
        assert leak not in said


# ---- damage at random


def solid(visual: object = None) -> trimesh.Trimesh:
    mesh = trimesh.creation.icosphere(subdivisions=1)
    rng = np.random.default_rng(0)
    if visual == "texture":
        picture = Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8))
        mesh.visual = TextureVisuals(
            rng.random((len(mesh.vertices), 2)), material=PBRMaterial(baseColorTexture=picture)
        )
    else:
        mesh.visual.vertex_colors = rng.integers(0, 255, (len(mesh.vertices), 4), dtype=np.uint8)
    return mesh


def gaussians(count: int) -> bytes:
    names = [*"xyz", *(f"f_dc_{i}" for i in range(3)), "opacity"]
    names += [*(f"scale_{i}" for i in range(3)), *(f"rot_{i}" for i in range(4))]
    head = "".join(f"property float {name}\n" for name in names)
    table = np.random.default_rng(0).standard_normal((count, len(names))).astype("<f4")
    return (
        f"ply\nformat binary_little_endian 1.0\nelement vertex {count}\n{head}end_header\n".encode() + table.tobytes()
    )


def as_bytes(exported: bytes | str) -> bytes:
    return exported if isinstance(exported, bytes) else exported.encode()


def encoded(form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (24, 30, 3), dtype=np.uint8)).save(file, form)
    return file.getvalue()


def sound_meshes() -> list[tuple[str, bytes]]:
    kinds = [(kind, {}) for kind in ("glb", "ply", "obj", "stl", "stl_ascii")] + [("ply", {"encoding": "ascii"})]
    files = [as_bytes(solid().export(file_type=kind, **options)) for kind, options in kinds]
    files += [as_bytes(solid("texture").export(file_type="glb")), gaussians(50)]
    return [(knob, raw) for raw in files for knob in ("scene.file", "prior.path")]


def sound_pictures() -> list[tuple[str, bytes]]:
    files = [
        encoded(form) for form in ("PNG", "JPEG", "WEBP", "PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "ICO", "TGA")
    ]
    folder = hostile.packed({"cat/1.png": files[0], "cat/1.txt": b"red", "2.jpg": files[1], "3.webp": files[2]})
    return [("scene.picture", raw) for raw in files] + [("prior.path", folder)] * 4


NUMBERS = (b"999999999", b"-1", b"0", b"4294967295", b"1e308", b"18446744073709551616", b"nan", b"99999")
WORDS = (0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 65536)


def damaged(raw: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Return a file with one kind of damage."""
    b = bytearray(raw)
    at = rng.randrange(len(b))
    match rng.randrange(8):
        case 0:
            for _ in range(rng.randrange(1, 20)):
                b[rng.randrange(len(b))] = rng.randrange(256)
        case 1:
            del b[max(at, 1) :]
        case 2:
            end = at + rng.randrange(1, 200)
            b[at:end] = b[at:end] * rng.randrange(2, 30)
        case 3:
            b[rng.randrange(min(len(b), 600))] = rng.randrange(256)
        case 4:
            digits = [i for i, byte in enumerate(b[:3000]) if 48 <= byte <= 57] or [at]
            digit = rng.choice(digits)
            b[digit : digit + 1] = rng.choice(NUMBERS)
        case 5:
            b[at : at + 4] = struct.pack("<I", rng.choice(WORDS))
        case 6:
            b[at:at] = rng.randbytes(rng.randrange(1, 60))
        case _:
            other = rng.choice(others)
            b = b[: at + 1] + other[rng.randrange(len(other)) :]
    return bytes(b)


def survive(sound: list[tuple[str, bytes]], count: int, seed: int) -> Counter[str]:
    """Check `count` damaged files; return how many were accepted and refused."""
    rng = random.Random(seed)
    others = [raw for _, raw in sound]
    seen: Counter[str] = Counter()
    for number in range(count):
        knob, raw = rng.choice(sound)
        for _ in range(rng.choice((1, 1, 2, 4))):
            raw = damaged(raw, others, rng)
        began, said = time.monotonic(), ""
        try:
            UPLOADS[knob].check(raw, "'x.bin'", VISITOR)
        except ValueError as e:
            said = str(e)
            assert said
        assert time.monotonic() - began < 5, (number, knob, said)
        must_be_a_sentence(said)
        seen["refused" if said else "accepted"] += 1
    return seen


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_damaged_meshes_are_refused_in_a_sentence_or_read(warm: None, count: int):
    seen = survive(sound_meshes(), count, count)
    assert min(seen["refused"], seen["accepted"]) > 0.1 * count, seen


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.nightly)])
def test_damaged_pictures_are_refused_in_a_sentence_or_read(warm: None, count: int):
    seen = survive(sound_pictures(), count, count)
    assert min(seen["refused"], seen["accepted"]) > 0.1 * count, seen
