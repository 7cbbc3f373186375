"""Pictures for tests."""

from PIL import ExifTags, Image

STORED = {  # how an upright picture is turned so that its EXIF orientation turns it back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored_as(upright: Image.Image, orientation: int) -> tuple[Image.Image, Image.Exif]:
    """Return a picture as cameras store it with an EXIF orientation, 1 to 8, and that EXIF data."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return upright.transpose(STORED[orientation]) if orientation in STORED else upright, exif
