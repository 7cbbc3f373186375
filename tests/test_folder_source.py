"""A person's own pictures as a gallery: what is found, what a prompt selects, how pictures come out, and bad input."""

from __future__ import annotations

import os
import re
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pictures import stored_as

from sdlab import decoding, folders
from sdlab.folders import check_archive
from sdlab.priors.sources import folder as module
from sdlab.priors.sources.folder import FolderSource
from sdlab.toybox.filters import FILTERS

COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 200, 30),
    "blue": (30, 30, 200),
    "yellow": (220, 220, 30),
    "black": (10, 10, 10),
    "white": (245, 245, 245),
}


def encoded(picture: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def plain(colour: str, size: tuple[int, int] = (20, 20), form: str = "PNG") -> bytes:
    return encoded(Image.new("RGB", size, COLOURS[colour]), form)


def square_of(raw: bytes, size: int) -> torch.Tensor:
    return torch.from_numpy(decoding.square_of(raw, size))


def tree(root: Path, content: dict[str, bytes | str]) -> Path:
    """Write files by relative name."""
    for name, data in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    return root


def packed(content: dict[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return file.getvalue()


PETS: dict[str, bytes | str] = {
    "cat/black/1.png": plain("black"),
    "cat/2.jpg": plain("red", form="JPEG"),
    "cat/2.txt": "A red cat, front view",
    "cat/3.png": plain("white"),
    "cat/3.txt": "a white cat; back view",
    "dog/front_view/4.webp": plain("green", form="WEBP"),
    "dog/5.png": plain("blue"),
    "dog/5.txt": "a blue dog on a red box",
    "6.png": plain("yellow"),
    "notes.md": "not a picture",
    "loose.txt": "belongs to nothing",
}


@pytest.fixture
def pets(tmp_path: Path) -> FolderSource:
    return FolderSource(tree(tmp_path / "pets", PETS))


def shown(source: FolderSource, text: str, count: int = 100) -> set[str]:
    """Return the colours of the pictures that a text selects."""
    images = source.draw(source.key(text), count, 4, 0)
    middle = images[:, :3, 2, 2].tolist()
    return {min(COLOURS, key=lambda c: sum(abs(a - b) for a, b in zip(COLOURS[c], m, strict=True))) for m in middle}


# ---- what a prompt selects


@pytest.mark.parametrize(
    ("text", "colours"),
    [
        ("", {"black", "red", "white", "green", "blue", "yellow"}),
        ("a cat", {"black", "red", "white"}),
        ("A photo of a CAT, high quality", {"black", "red", "white"}),
        ("black cat", {"black"}),
        ("red", {"red", "blue"}),  # of the blue dog's caption, too
        ("a red cat", {"red"}),
        ("a dog and a box", {"blue"}),
        ("a cat, front view", {"red"}),
        ("a dog, front view", {"green"}),  # "front_view" is two words
        ("a black cat, front view", {"black"}),  # no caption has all: view words go first
        ("front view", {"red", "green"}),
        ("a white dog", {"white", "green", "blue"}),  # none has both, so those with one of the two
        ("a white dog in red", {"red", "white", "blue", "green"} - {"red", "white", "green"}),  # dog and red: two
        ("a dragon", {"black", "red", "white", "green", "blue", "yellow"}),
        ("a dragon and a cat", {"black", "red", "white"}),
        ("cats", {"black", "red", "white", "green", "blue", "yellow"}),  # a whole word, not a part of one
    ],
)
def test_the_words_of_the_captions_select(pets: FolderSource, text: str, colours: set[str]):
    assert shown(pets, text) == colours
    assert pets.available(pets.key(text)) == len(colours)


def test_texts_that_select_the_same_words_share_a_key(pets: FolderSource):
    assert pets.key("a red cat") == pets.key("the cat is red, a dragon, seen from above")
    assert pets.key("a red cat") != pets.key("a black cat")
    assert pets.key("") == pets.key("of the") == pets.key("a dragon") == ""


def test_a_word_that_all_pictures_have_selects_all(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {f"cat/{i}.png": plain("red") for i in range(3)}))
    assert source.key("a cat") == ""


def test_words_are_compared_without_case_and_in_one_form_of_unicode(tmp_path: Path):
    content: dict[str, bytes | str] = {
        "Bär/1.png": plain("red"),  # as macOS writes it: a, and a combining diaeresis
        "猫/2.png": plain("green"),
        "CAFÉ/3.png": plain("blue"),
        "4.png": plain("white"),
        "4.txt": b"\xef\xbb\xbfStra\xc3\x9fe \xff",  # a byte order mark, and a byte that is no UTF-8
    }
    source = FolderSource(tree(tmp_path, content))
    for text, colour in {"ein BÄR": "red", "猫": "green", "café": "blue", "STRASSE": "white"}.items():
        assert shown(source, text) == {colour}, text


def test_remarks_say_what_a_text_stands_for(pets: FolderSource):
    few = "only {} pictures fit, so the result can only be one of them"
    assert pets.remark("") == pets.remark(" , ") == ""
    assert pets.remark("a cat, high quality, front view") == "only one picture fits, so the result can only be this one"
    assert pets.remark("a cat") == few.format(3)
    said, _, vocabulary = pets.remark("a catt and a dragon").partition(". The captions contain ")
    assert said == (
        "no caption contains 'catt' (did you mean 'cat'?), 'dragon'; no word of the text selects pictures, so it "
        f"stands for all 6; {few.format(6)}"
    )
    assert vocabulary == "cat, view, dog, front, red, back, black, blue, box, white", "the most common first"
    assert pets.remark("a black cat, front view") == (
        "no caption has all of its words, so 'front', 'view' has no effect; "
        "only one picture fits, so the result can only be this one"
    )
    assert pets.remark("a white dog") == (
        f"no caption contains all of 'dog', 'white', so the text stands for the 3 with 1 of them; {few.format(3)}"
    )
    assert pets.remark("a cat, seen from above").startswith("only 3"), "a view word that is unknown is nothing unusual"


def test_a_large_selection_needs_no_remark(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {f"{'cat' if i % 2 else 'dog'}/{i}.png": plain("red") for i in range(30)}))
    assert source.remark("a cat") == source.remark("a photo of a dog, side view, sharp") == ""
    assert source.available(source.key("a cat")) == 15


def test_long_lists_of_words_are_cut(tmp_path: Path):
    captions = {f"{i}.txt": f"word{i}" for i in range(100)}
    source = FolderSource(tree(tmp_path, {**{f"{i}.png": plain("red") for i in range(100)}, **captions}))
    said = source.remark(" ".join(f"x{i}" for i in range(50)))
    assert "and 42 more;" in said
    assert said.endswith(" and 70 more")
    assert len(said) < 1000


# ---- images


def test_draws_are_random_subsets_that_depend_on_the_seed_only(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {f"{i}.png": encoded(Image.new("L", (4, 4), i)) for i in range(60)}))

    def values(count: int, seed: int, size: int = 4) -> list[int]:
        images = source.draw("", count, size, seed)
        assert images.dtype == torch.uint8
        assert images.shape == (min(count, 60), 4, size, size)
        assert (images[:, 3] == 255).all()
        return images[:, 0, 1, 1].tolist()

    first = values(20, 1)
    assert first == values(20, 1) == values(20, 1, size=8) == values(30, 1)[:20]
    assert len(set(first)) == 20
    assert max(first) > 40, "not the first files"
    assert set(values(20, 2)) != set(first)
    assert sorted(values(1000, 3)) == list(range(60)), "each picture once"
    assert FolderSource(tmp_path).draw("", 20, 4, 1).equal(source.draw("", 20, 4, 1))


def test_no_more_is_decoded_than_needed_and_nothing_twice(tmp_path: Path, monkeypatch):
    tree(tmp_path, {f"{i}.png": encoded(Image.new("L", (4, 4), i)) for i in range(60)})
    decoded: list[int] = []
    monkeypatch.setattr(module, "_decoded", lambda raw, size: (decoded.append(size), decoding.square_of(raw, size))[1])
    source = FolderSource(tmp_path)
    assert source.key("red") == ""
    source.remark("red")
    assert decoded == [], "texts are read without a picture"
    one = source.draw("", 10, 4, 0)
    assert len(decoded) == 10
    assert source.draw("", 10, 4, 0).equal(one)
    assert len(decoded) == 10
    source.draw("", 10, 8, 0)
    assert decoded == [4] * 10 + [8] * 10
    monkeypatch.setattr(module, "KEPT_BYTES", 5 * one[0].nbytes)
    crowded = FolderSource(tmp_path)
    decoded.clear()
    assert all(crowded.draw("", 10, 4, 0).equal(one) for _ in range(3))
    assert len(decoded) == 30, "beyond the limit the oldest are dropped, and it holds fewer than are drawn"


def test_progress_counts_pictures_and_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", 0.0)
    tree(tmp_path, {f"{i}.png": plain("red") for i in range(10)})
    reports: list[tuple[int, int]] = []

    def report(done: int, total: int) -> None:
        reports.append((done, total))

    source = FolderSource(tmp_path, progress=report)
    source.draw("", 3, 4, 0, report)
    source.draw("|noisy", 25, 4, 0, report)
    assert reports == [(i + 1, total) for total in (10, 3, 25) for i in range(total)]
    monkeypatch.setattr(module, "REPORT_EVERY", 3600.0)
    reports.clear()
    FolderSource(tmp_path, progress=report).draw("|noisy", 25, 4, 0, report)
    assert reports == [(1, 10), (10, 10), (1, 25), (25, 25)], "not so often that showing it takes longer than the work"


def test_many_threads_may_draw_at_once(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {f"{i}.png": encoded(Image.new("L", (9, 9), i)) for i in range(40)}))
    got: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: got.append(source.draw("", 30, 8, 5))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 6
    assert all(one.equal(got[0]) for one in got)


def two_halves(size: tuple[int, int] = (40, 20), mode: str = "RGB") -> Image.Image:
    """Red on the left, blue on the right; green in the upper left corner."""
    picture = Image.new("RGB", size, COLOURS["red"])
    w, h = size
    picture.paste(COLOURS["blue"], (w // 2, 0, w, h))
    picture.paste(COLOURS["green"], (0, 0, w // 4, h // 4))
    return picture.convert(mode)


def test_a_picture_without_transparency_gives_its_central_square():
    got = square_of(encoded(two_halves((80, 20))), 20)
    assert got.shape == (4, 20, 20)
    assert (got[3] == 255).all()
    assert got[:3, 10, 2].tolist() == list(COLOURS["red"])
    assert got[:3, 10, 17].tolist() == list(COLOURS["blue"])
    assert got[:3, 1, 1].tolist() == list(COLOURS["red"]), "the green corner lies outside"
    assert square_of(encoded(two_halves((20, 80))), 20)[:3, 1, 1].tolist() == list(COLOURS["red"])
    opaque = two_halves((80, 20)).convert("RGBA")
    assert square_of(encoded(opaque), 20).equal(got), "an alpha channel that hides nothing changes nothing"


def test_a_picture_with_transparency_fits_whole():
    picture = two_halves((40, 20)).convert("RGBA")
    picture.putpixel((39, 19), (0, 0, 0, 0))
    got = square_of(encoded(picture), 20)
    assert (got[:, :5] == 0).all(), "transparent above"
    assert (got[:, 15:] == 0).all(), "and below"
    assert got[:, 10, 5].tolist() == [*COLOURS["red"], 255]
    assert got[:, 10, 15].tolist() == [*COLOURS["blue"], 255]
    assert got[:, 5, 1].tolist()[1] > 150, "the green corner is inside"
    tall = square_of(encoded(picture.transpose(Image.Transpose.ROTATE_90)), 20)
    assert tall[3].sum() == got[3].sum()
    assert (tall[:, :, :5] == 0).all()


def test_colours_are_premultiplied_before_they_are_mixed():
    """A transparent pixel has a colour, too, which must not bleed into its neighbours."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0] = 255  # red and transparent
    pixels[16:48, 16:48] = (0, 0, 255, 255)
    pixels[20:44, 20:44] = (0, 0, 255, 128)
    got = square_of(encoded(Image.fromarray(pixels)), 16).int()
    assert got[0].max() == 0
    assert (got[:3] <= got[3]).all()
    assert got[:, 8, 8].tolist() == pytest.approx([0, 0, 128, 128], abs=4), "the filter rings a little"
    assert got[3].float().mean().item() == pytest.approx(pixels[..., 3].mean(), abs=1)


MODES = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "JPEG": ("1", "L", "RGB", "CMYK", "YCbCr"),
    "WEBP": ("RGB", "RGBA"),
}


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in MODES.items() for mode in modes])
def test_all_kinds_of_pixels_are_converted(form: str, mode: str):
    picture = Image.new("RGB", (32, 32), COLOURS["yellow"]).convert(mode)
    got = square_of(encoded(picture, form, **({"lossless": True} if form == "WEBP" else {})), 8)
    want = np.asarray(picture.convert("RGB"), float).mean((0, 1))
    assert got[:3].float().mean((1, 2)).tolist() == pytest.approx(want.tolist(), abs=6)
    assert (got[3] == 255).all()


def test_sixteen_bits_are_scaled_and_not_cut_off():
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    got = square_of(encoded(Image.fromarray(ramp)), 64)
    assert (got[0].int() - torch.from_numpy((ramp >> 8).astype(np.int32))).abs().max() <= 1
    assert got[0].equal(got[2])


def test_palettes_may_have_transparent_entries():
    picture = Image.new("P", (16, 16), 0)
    picture.putpalette([200, 30, 30, 30, 30, 200])
    picture.paste(1, (0, 0, 16, 8))
    got = square_of(encoded(picture, transparency=0), 16)
    assert got[:, 3, 8].tolist() == [30, 30, 200, 255]
    assert got[:, 12, 8].tolist() == [0, 0, 0, 0]
    coloured = encoded(Image.new("RGB", (8, 8), COLOURS["red"]), transparency=COLOURS["red"])
    assert (square_of(coloured, 4) == 0).all()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(orientation: int, form: str):
    """Each orientation's picture, stored turned, comes out the same."""
    upright = two_halves((64, 64))
    picture, exif = stored_as(upright, orientation)
    options = {"quality": 95} if form == "JPEG" else {}
    got = square_of(encoded(picture, form, exif=exif, **options), 16)
    assert (got.int() - square_of(encoded(upright), 16).int()).abs().float().mean() < 8


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_damaged_exif_data_do_no_harm():
    raw = encoded(two_halves((32, 32)), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\xff\xff" * 9)
    assert square_of(raw, 8)[:3, 4, 1].tolist() == pytest.approx(list(COLOURS["red"]), abs=12)


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_the_first_frame_of_an_animation_counts(form: str):
    frames = [Image.new("RGB", (16, 16), COLOURS[c]) for c in ("red", "blue", "green")]
    raw = encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100)
    with Image.open(BytesIO(raw)) as picture:
        assert getattr(picture, "n_frames", 1) == 3
    assert square_of(raw, 4)[:3, 1, 1].tolist() == pytest.approx(list(COLOURS["red"]), abs=6)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 2)])
def test_tiny_pictures_are_enlarged(size: tuple[int, int]):
    assert (square_of(plain("red", size), 16)[:3, 8, 8].tolist()) == list(COLOURS["red"])
    clear = square_of(encoded(Image.new("RGBA", size, (200, 30, 30, 128))), 16)
    assert clear.amax((1, 2)).tolist() == pytest.approx([100, 15, 15, 128], abs=2)
    assert (clear[3] > 0).sum() == 16 * max(round(16 * min(size) / max(size)), 1)


def test_a_reduced_decoding_of_jpeg_is_close_to_the_whole():
    smooth = np.random.default_rng(0).uniform(0, 255, (12, 16, 3)).astype(np.uint8)
    photo = Image.fromarray(smooth).resize((1600, 1200), Image.Resampling.BICUBIC)
    reduced, whole = (square_of(encoded(photo, form, **o), 64) for form, o in (("JPEG", {"quality": 95}), ("PNG", {})))
    error = (reduced.float() - whole.float())[:3]
    assert error.square().mean().sqrt() < 3


# ---- descriptors


def test_descriptors_that_no_caption_has_are_made_by_filters(pets: FolderSource):
    key = pets.key("a cat, blurry, low resolution")
    assert key == "cat|pixelated blurry"
    assert pets.available(key) is None, "there is no limit"
    got = pets.draw(key, 20, 32, 0)
    assert got.shape == (20, 4, 32, 32)
    assert (got[:, 3] == 255).all()
    assert got.equal(pets.draw(key, 20, 32, 0))
    assert not got.equal(pets.draw(key, 20, 32, 1))
    assert pets.key("low quality, ugly") == "|" + " ".join(FILTERS)
    assert pets.key("blurry, low quality") == pets.key("out of focus") == "|blurry"
    assert pets.remark("blurry, noisy") == ""


def test_pictures_of_a_flawed_text_stand_on_backgrounds_of_their_own(tmp_path: Path):
    clear = Image.new("RGBA", (16, 16))
    clear.paste((200, 30, 30, 255), (4, 4, 12, 12))
    source = FolderSource(tree(tmp_path, {"1.png": encoded(clear)}))
    got = source.draw("|noisy", 60, 16, 0)
    assert len(got) == 60
    corners = got[:, :3, 0, 0].float()
    assert corners.std(0).min() > 30
    assert (got[:, 0, 8, 8].int() - 200).abs().float().mean() < 60, "the object is still there"


def test_a_descriptor_that_is_in_a_caption_selects_like_any_word(tmp_path: Path):
    content: dict[str, bytes | str] = {"cartoon/1.png": plain("red"), "2.png": plain("blue"), "2.txt": "low table"}
    source = FolderSource(tree(tmp_path, content))
    assert source.key("a cartoon") == "cartoon"
    assert source.key("low resolution") == "|pixelated", "one of its words is not enough"
    assert source.key("cartoon, blurry") == "cartoon|blurry"


def test_descriptors_that_deform_objects_are_said_to_have_no_effect(pets: FolderSource):
    assert pets.key("a cat, bad anatomy, blurry, malformed") == "cat|blurry"
    assert pets.key("malformed") == ""
    said = "'bad structure', 'malformed' would deform an object, which no filter can do: no effect"
    assert pets.remark("a cat, bad structure, blurry, malformed") == said


# ---- ZIP


def test_a_zip_holds_what_its_folder_holds(tmp_path: Path, pets: FolderSource):
    (tmp_path / "pets.zip").write_bytes(packed(PETS))
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        (tmp_path / "pets.zip").write_bytes(packed(PETS, method))
        source = FolderSource(tmp_path / "pets.zip")
        assert source.name == "folder pets.zip"
        for text in ("", "a cat", "a red cat, blurry", "a dragon"):
            assert source.key(text) == pets.key(text)
            assert source.remark(text) == pets.remark(text)
            assert source.draw(source.key(text), 5, 8, 3).equal(pets.draw(pets.key(text), 5, 8, 3))
    assert not [p for p in tmp_path.rglob("*") if p.is_dir() and p.name not in ("pets", "cat", "dog")][2:], "unpacked"


def test_names_in_a_zip_are_no_paths(tmp_path: Path):
    content: dict[str, bytes | str] = {
        "../../up/1.png": plain("red"),
        "/abs/2.png": plain("green"),
        "C:\\win\\3.png": plain("blue"),
        "__MACOSX/cat/._1.png": plain("white"),
        ".hidden/5.png": plain("white"),
        "a/.6.png": plain("white"),
    }
    (tmp_path / "odd.zip").write_bytes(packed(content))
    before = sorted(tmp_path.rglob("*"))
    source = FolderSource(tmp_path / "odd.zip")
    assert shown(source, "") == {"red", "green", "blue"}
    assert (shown(source, "up"), shown(source, "abs"), shown(source, "win")) == ({"red"}, {"green"}, {"blue"})
    assert sorted(tmp_path.rglob("*")) == before


def test_entries_that_are_encrypted_or_oddly_packed_are_skipped(tmp_path: Path):
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("good.png", plain("red"))
        archive.writestr("odd.png", plain("blue"), zipfile.ZIP_LZMA)
        archive.writestr("secret.png", plain("blue"))
        archive.writestr("good.png/", b"")
    raw = bytearray(file.getvalue())
    entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(b"secret.png"))
    raw[entry + 8] |= 1
    (tmp_path / "x.zip").write_bytes(raw)
    source = FolderSource(tmp_path / "x.zip")
    assert source.note == "skipped 2 of 3 files: odd.png (compressed in an unusual way), secret.png (encrypted)"
    assert shown(source, "") == {"red"}


def zip_of(entries: int) -> bytes:
    return packed({f"{i}.txt": "" for i in range(entries)})


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"GIF89a and so on", "is neither a folder nor a ZIP file: give a folder, or a ZIP file, of PNG, JPEG or WebP"),
        (b"", "is neither a folder nor a ZIP file"),
        (plain("red"), "is neither a folder nor a ZIP file"),
        (packed({}), "contains no pictures: give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"),
        (packed({"a.txt": "cat", "b.md": "dog"}), "contains no pictures"),
        (packed({"a.gif": b"GIF89a", "b.png": b""}), r"Skipped: a\.gif \(not PNG, JPEG or WebP\), b\.png \(not PNG"),
        (packed({"a.png": plain("red")})[:-30], "is a damaged ZIP file"),
        (b"PK\x03\x04" + bytes(100), "is a damaged ZIP file"),
    ],
)
def test_a_file_that_is_no_zip_of_pictures_is_refused(tmp_path: Path, raw: bytes, said: str):
    path = tmp_path / "x.zip"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=said) as error:
        FolderSource(path, "prior.path")
    assert str(error.value).startswith(f"prior.path = {str(path)!r} ")


def test_limits_of_a_zip_are_checked_before_its_files_are_read(tmp_path: Path, monkeypatch):
    path = tmp_path / "x.zip"
    path.write_bytes(zip_of(30))

    def refused(**limits: int) -> str:
        with monkeypatch.context() as patch:
            for name, value in limits.items():
                patch.setattr(folders, name, value)
            with pytest.raises(ValueError, match=r"^prior\.path = ") as error:
                FolderSource(path)
        return str(error.value).removeprefix(f"prior.path = {str(path)!r} ")

    assert refused(MAX_FILES=29) == "has more than 29 files: leave some out"
    assert refused(MAX_FILES=30).startswith("contains no pictures")
    assert refused(MAX_ARCHIVE=1000) == "has more than 1,000 bytes: unpack it and choose the folder instead"
    path.write_bytes(packed({"a.png": bytes(10**6)}))
    assert refused(MAX_UNPACKED=999_999) == "has 1,000,000 bytes when unpacked; the limit is 999,999"
    assert refused(MAX_UNPACKED=1_000_000).startswith("contains no pictures")


def test_a_zip_that_lies_about_a_size_does_not_unpack_more(tmp_path: Path):
    """The entry says 200 bytes and would unpack into 30 MB."""
    raw = bytearray(packed({"bomb.png": plain("red") + bytes(30_000_000), "good.png": plain("blue")}))
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        entry = raw.index(mark)
        raw[entry + at : entry + at + 4] = struct.pack("<I", 200)
    (tmp_path / "x.zip").write_bytes(raw)
    source = FolderSource(tmp_path / "x.zip")
    assert shown(source, "") == {"blue"}
    assert source.note.startswith("skipped 1 of 2 files: bomb.png (")


def test_an_archive_for_upload_is_checked_from_memory():
    check_archive(packed(PETS), "'x.zip'")
    check_archive(packed({"a.png": plain("red")[:-30], "b.png": plain("red")}), "'x.zip'")
    truncated = packed({"a.png": encoded(noise())[:-500]})
    with pytest.raises(ValueError, match=r"^'x\.zip' contains no picture that can be read: a\.png \(truncated\)$"):
        check_archive(truncated, "'x.zip'")
    with pytest.raises(ValueError, match=r"^'x\.zip' contains no pictures"):
        check_archive(packed({"a.txt": "cat"}), "'x.zip'")


# ---- folders with a bit of everything


def noise(size: tuple[int, int] = (40, 40)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))


def test_damaged_files_among_good_ones_are_skipped_and_named(tmp_path: Path):
    good: dict[str, bytes | str] = {f"{i:02}.png": plain("red") for i in range(38)}
    bad: dict[str, bytes | str] = {"a.png": encoded(noise())[:-500], "b.gif": encoded(noise(), "GIF")}
    source = FolderSource(tree(tmp_path, {**good, **bad}))
    assert source.note == "skipped 1 of 40 files: b.gif (not PNG, JPEG or WebP)"
    assert source.available("") == 39
    got = source.draw("", 100, 4, 0)
    assert len(got) == 38
    assert source.note == "skipped 2 of 40 files: a.png (truncated), b.gif (not PNG, JPEG or WebP)"
    assert source.available("") == 39, "so that a gallery in use keeps its number"
    assert source.draw("", 100, 4, 0).equal(got)
    assert len(source.draw("", 38, 4, 1)) == 38, "another takes the place of a damaged one"
    assert len(source.draw("|noisy", 50, 4, 0)) == 50


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (encoded(noise(), "PNG")[:-500], "truncated"),
        (encoded(noise(), "JPEG")[:-500], "truncated"),
        (encoded(noise(), "WEBP", lossless=True)[:-500], r"\w.*"),
        (encoded(noise(), "PNG")[:20], "truncated"),
        (b"\x89PNG\r\n\x1a\n", "damaged"),
        (b"\xff\xd8\xff" + bytes(50), "damaged"),
        (b"RIFF\0\0\0\0WEBP" + bytes(50), "damaged"),
    ],
)
def test_damage_has_a_short_reason(tmp_path: Path, raw: bytes, reason: str):
    source = FolderSource(tree(tmp_path, {"bad.png": raw, "good.png": plain("red")}))
    assert len(source.draw("", 2, 4, 0)) == 1
    note = source.note
    assert re.fullmatch(rf"skipped 1 of 2 files: bad\.png \({reason}\)", note), note
    assert len(note) < 130


def test_a_text_whose_pictures_are_all_damaged_is_an_error(tmp_path: Path):
    content: dict[str, bytes | str] = {"cat/1.png": encoded(noise())[:-500], "dog/2.png": plain("red")}
    source = FolderSource(tree(tmp_path, content))
    for key in ("cat", "cat|blurry"):
        with pytest.raises(
            ValueError, match=r"no picture that the text selects can be read; skipped 1 of 2 files: cat/1"
        ):
            source.draw(key, 5, 4, 0)
    assert len(source.draw("dog", 5, 4, 0)) == 1, "the run goes on with another text"


def bomb(width: int, height: int) -> bytes:
    """A small PNG that says it has width x height pixels, all black."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_pictures_of_too_many_pixels_are_not_decoded(tmp_path: Path, monkeypatch):
    content: dict[str, bytes | str] = {
        "a.png": bomb(12_000, 10_000),
        "b.png": bomb(100_000, 100_000),
        "good.png": plain("red"),
    }
    source = FolderSource(tree(tmp_path, content))
    assert len(source.draw("", 3, 4, 0)) == 1
    assert "a.png (12000 x 10000 pixels; the limit is 100,000,000)" in source.note
    assert "b.png (more than 100,000,000 pixels)" in source.note
    monkeypatch.setattr(decoding, "MAX_BYTES", 50)
    with pytest.raises(ValueError, match=r"^more than 50 bytes$"):
        square_of(plain("red"), 4)


def test_mixed_sizes_and_formats_make_one_gallery(tmp_path: Path):
    sizes = [(1, 1), (5, 300), (640, 480), (64, 64), (33, 17)]
    content: dict[str, bytes | str] = {
        f"{i}.{form.lower()}": plain("red", size, form)
        for form in ("PNG", "JPEG", "WEBP")
        for i, size in enumerate(sizes)
    }
    got = FolderSource(tree(tmp_path, content)).draw("", 100, 48, 0)
    assert got.shape == (15, 4, 48, 48)
    assert (got[:, 0].int() - 200).abs().max() < 12


def test_content_decides_not_the_name(tmp_path: Path):
    content: dict[str, bytes | str] = {
        "photo": plain("red"),
        "b.dat": plain("green", form="JPEG"),
        "c.png": plain("blue", form="WEBP"),
        "d.jpg": "text",
        "dotted.folder/photo": plain("black"),
        "dotted.txt": "not its caption",
    }
    source = FolderSource(tree(tmp_path, content))
    assert shown(source, "") == {"red", "green", "blue", "black"}
    assert source.note == "skipped 1 of 5 files: d.jpg (not PNG, JPEG or WebP)"
    assert source.key("caption") == ""


def test_three_pictures_work_and_are_said_to_be_few(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {f"cat/{c}.png": plain(c) for c in ("red", "green", "blue")}))
    assert source.remark("a cat") == "only 3 pictures fit, so the result can only be one of them"
    assert len(source.draw(source.key("a cat"), 1024, 64, 0)) == 3


@pytest.mark.parametrize("count", [5000, pytest.param(50_000, marks=pytest.mark.nightly)])
def test_many_pictures(count: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "REPORT_EVERY", module.REPORT_EVERY * count / 50_000)
    raw = encoded(Image.new("L", (2, 2), 90))
    for n in range(50):
        sub = tmp_path / f"kind{n}" / ("even" if n % 2 == 0 else "odd")
        sub.mkdir(parents=True)
        for i in range(count // 50):
            (sub / f"{i}.png").write_bytes(raw)
    reports: list[tuple[int, int]] = []
    source = FolderSource(tmp_path, progress=lambda *counts: reports.append(counts))
    assert len(source) == count
    assert reports[0] == (1, count)
    assert reports[-1] == (count, count)
    assert 3 < len(reports) < 1000
    assert source.available(source.key("even")) == count // 2
    assert len(source.draw(source.key("kind7, odd"), 64, 8, 0)) == 64
    assert source.remark("kind7") == ""


def test_a_folder_of_too_many_files_is_refused(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(folders, "MAX_FILES", 20)
    tree(tmp_path, {f"{i}.png": plain("red") for i in range(20)})
    assert len(FolderSource(tmp_path)) == 20
    tree(tmp_path, {"sub/x.png": plain("red")})
    with pytest.raises(ValueError, match=r"has more than 20 files: choose a folder below it"):
        FolderSource(tmp_path)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "does not exist: give a folder, or a ZIP file, of PNG, JPEG or WebP pictures"),
        ("empty", "contains no pictures"),
        ("texts", "contains no pictures"),
        ("", "is no path"),
        ("  ", "is no path"),
        ("a\0b", "is no path"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("~nobody-of-this-name/x", "cannot be read"),
        ("pipe", "is neither a folder nor a ZIP file"),
        ("texts/a.txt/below", "cannot be read: Not a directory"),
    ],
)
def test_a_path_without_pictures_is_refused(tmp_path: Path, monkeypatch, path: str, said: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    tree(tmp_path, {"texts/a.txt": "cat"})
    with pytest.raises(ValueError, match=said) as error:
        FolderSource(path, "prior.path")
    assert str(error.value).startswith(f"prior.path = {path!r} ")


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    tree(tmp_path / "outside", {"secret/1.png": plain("blue"), "2.png": plain("blue"), "3.txt": "password"})
    root = tree(tmp_path / "root", {"a.png": plain("red"), "sub/b.png": plain("green"), "c.png": plain("black")})
    (root / "within.png").symlink_to(root / "sub" / "b.png")
    (root / "out.png").symlink_to(tmp_path / "outside" / "2.png")
    (root / "c.txt").symlink_to(tmp_path / "outside" / "3.txt")
    (root / "folder").symlink_to(tmp_path / "outside" / "secret")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "self.png").symlink_to(root / "self.png")
    source = FolderSource(root)
    assert len(source) == 4
    assert shown(source, "") == {"red", "green", "black"}
    assert source.key("password") == ""
    assert source.note.startswith("skipped 6 of 10 files: c.txt (a link out of the folder), folder (a link ")
    assert FolderSource(tmp_path / "root").note == source.note
    (tmp_path / "link").symlink_to(root)
    assert len(FolderSource(tmp_path / "link")) == 4, "the path itself may be a link"


def test_a_link_back_to_a_folder_is_named(tmp_path: Path):
    tree(tmp_path, {"a/1.png": plain("red")})
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert FolderSource(tmp_path).note == "skipped 1 of 2 files: b (a link to a folder)"


def test_what_may_not_be_read_is_skipped(tmp_path: Path, monkeypatch):
    tree(tmp_path, {"a.png": plain("red"), "b.png": plain("blue"), "sub/c.png": plain("green"), "a.txt": "cat"})
    listed, opened = os.scandir, Path.open

    def refuse(path: Path) -> None:
        if path.name in ("sub", "b.png", "a.txt"):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", lambda path: (refuse(path), listed(path))[1])
    monkeypatch.setattr(Path, "open", lambda path, *args: (refuse(path), opened(path, *args))[1])
    denied = "a.txt (Permission denied), b.png (Permission denied), sub/ (Permission denied)"
    assert FolderSource(tmp_path).note == f"skipped 3 of 4 files: {denied}"


def test_files_that_vanish_are_skipped(tmp_path: Path):
    source = FolderSource(tree(tmp_path, {"a.png": plain("red"), "b.png": plain("blue")}))
    (tmp_path / "b.png").unlink()
    assert shown(source, "") == {"red"}
    assert source.note == "skipped 1 of 2 files: b.png (No such file or directory)"


def test_names_are_printable_in_messages(tmp_path: Path):
    tree(tmp_path, {"ok.png": plain("red")})
    odd = os.fsencode(tmp_path) + b"/" + b"\xff\n<b>" + b"x" * 100 + b".gif"
    Path(os.fsdecode(odd)).write_bytes(b"GIF89a")
    note = FolderSource(tmp_path).note
    assert note.isprintable()
    assert note.encode()
    assert len(note) < 130


@pytest.mark.parametrize("change", ["add", "remove", "rewrite", "rename", "caption"])
def test_the_identity_follows_the_files(tmp_path: Path, change: str):
    root = tree(tmp_path / "root", {"a.png": plain("red"), "sub/b.png": plain("blue"), "sub/b.txt": "cat"})

    def identities() -> tuple[str, str]:
        content: dict[str, bytes | str] = {
            str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
        }
        file = BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for name, data in content.items():
                archive.writestr(zipfile.ZipInfo(name), data)
        (tmp_path / "x.zip").write_bytes(file.getvalue())
        return FolderSource(root).identity, FolderSource(tmp_path / "x.zip").identity

    before = identities()
    assert identities() == before
    steps: dict[str, Callable[[], object]] = {
        "add": lambda: tree(root, {"c.png": plain("green")}),
        "remove": lambda: (root / "a.png").unlink(),
        "rewrite": lambda: (root / "a.png").write_bytes(plain("green")),
        "rename": lambda: (root / "a.png").rename(root / "z.png"),
        "caption": lambda: (root / "sub/b.txt").write_text("a dog"),
    }
    steps[change]()
    after = identities()
    assert after[0] != before[0]
    assert after[1] != before[1]
