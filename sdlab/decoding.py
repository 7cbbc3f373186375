"""Encoded pictures as arrays: a square of PNG, JPEG or WebP. Free of torch: processes that parse files import it."""

from __future__ import annotations

import re
from io import BytesIO

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from sdlab.quoting import first_line

MAX_BYTES = 50_000_000  # of an image file
MAX_PIXELS = 100_000_000  # of an image that is decoded
MAGIC = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
MAGIC_BYTES = 12
FORMATS = ("PNG", "JPEG", "WEBP")
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


def is_picture(head: bytes) -> bool:
    """Return whether a file's first bytes are those of a PNG, JPEG or WebP."""
    return MAGIC.match(head) is not None


def square_of(raw: bytes, size: int) -> np.ndarray:
    """Decode a picture to premultiplied rgb and coverage, uint8 [4, size, size], turned upright as its EXIF data say.

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
    return rgba_bytes(rgba[..., :3], rgba[..., 3])[0]


def rgba_bytes(rgb: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    """Convert premultiplied rgb [N, S, S, 3] and coverage [N, S, S], both in [0, 1], to uint8 [N, 4, S, S].

    Rounding cannot make a colour brighter than its coverage allows.
    """
    alpha = np.rint(255 * np.clip(coverage, 0, 1)).astype(np.uint8)
    colour = np.minimum(np.rint(255 * np.clip(rgb, 0, 1)).astype(np.uint8), alpha[..., None])
    return np.ascontiguousarray(np.concatenate([colour, alpha[..., None]], -1).transpose(0, 3, 1, 2))


def pixels_of(head: bytes) -> int:
    """Return how many pixels a picture has, from the beginning of its file. Raises any error if it does not say."""
    with Image.open(BytesIO(head), formats=FORMATS) as picture:
        return picture.width * picture.height


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
    picture = in_8_bits(picture)
    left, top = (max(side - min(picture.size), 0) / 2 for side in picture.size)
    box = (left, top, picture.width - left, picture.height - top)
    square = picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS, box)
    return _turned(square, turn).convert("RGBA").convert("RGBa")


def _turned(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def picture_of(raw: bytes, size: int, given: str) -> np.ndarray:
    """Return the central square of an encoded image as float32 [size, size, 3] in [0, 1].

    It is turned upright as its EXIF data say; where it is transparent, it is white. Raises ValueError that starts with
    `given` and says what is wrong.
    """
    try:
        with Image.open(BytesIO(raw), formats=FORMATS) as picture:
            allowed = picture.width * picture.height <= MAX_PIXELS
            pixels = f"{picture.width} x {picture.height} pixels"
            whole = _opaque(in_8_bits(picture)) if allowed else picture
            turn = _turn_of(picture) if allowed else None
    except UnidentifiedImageError as e:
        raise ValueError(f"{given} is not an image: use PNG, JPEG or WebP") from e
    except Exception as e:  # decoders raise all kinds of errors on malformed input
        raise ValueError(f"{given} cannot be read: {e or type(e).__name__}") from e
    if not allowed:
        raise ValueError(f"{given} has {pixels}; the limit is {MAX_PIXELS:,}")
    side = min(whole.size)
    left, top = (whole.width - side) // 2, (whole.height - side) // 2
    square = whole.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + side, top + side))
    return np.asarray(_turned(square, turn), dtype=np.float32) / 255


def in_8_bits(picture: Image.Image) -> Image.Image:
    """Return an image with 8 bits a channel; Pillow would cut 16 bits off at 255 when it converts them."""
    if not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture).clip(0, 65535).astype(np.uint16)
    return Image.fromarray((values >> 8).astype(np.uint8))


def _opaque(picture: Image.Image) -> Image.Image:
    """Return an image as RGB, over white where it is transparent: the colour below is arbitrary, often black."""
    if not picture.has_transparency_data:
        picture.load()
        return picture if picture.mode == "RGB" else picture.convert("RGB")  # which would copy
    rgba = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
