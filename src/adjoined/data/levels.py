"""Convert PIL images of any mode to what a viewer shows: upright, 8-bit grey or RGB, transparency on white."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

_ORIENTATION = 0x0112  # the EXIF tag of the camera's orientation; Pillow also takes it from XMP
_BITS, _COMPRESSION, _PHOTOMETRIC, _PLANES, _SAMPLE_FORMAT = 258, 259, 262, 284, 339  # TIFF tags
_UNCOMPRESSED, _WHITE_IS_ZERO, _ONE_PER_COLOUR, _SIGNED = 1, 0, 2, 2  # values of these tags
_INFO, _OLD_INFO = 14, 12  # in a BMP file: the place of its information, and the size of the oldest kind
_COLOUR = ("P", "RGB", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def plain(image: Image) -> Image:
    """Return the image as a viewer shows it.

    It is rotated by its EXIF or XMP orientation. 16-bit grey is scaled to 8 bits, and so are floating-point values in
    [0, 1] and 32-bit integers whose largest value shows that they hold 16-bit grey. Transparent parts are blended with
    white.

    Args:
        image: an image of any mode and size; of several frames, the current one is used.

    Returns:
        A PIL image of mode L or RGB; `image` itself if it is one already.

    Raises:
        AdjoinedError: the values have no known range, or Pillow does not read their layout.

    Example:
        >>> from PIL import Image
        >>> plain(Image.new("LA", (1, 1), (0, 51))).getpixel((0, 0))  # black, 51/255 opaque
        204
    """
    tags = getattr(image, "tag_v2", {})  # before the image is rotated: the copy has no tags
    check_layout(image)
    image = upright(image)
    if image.mode[0] in "IF":
        return _eight_bits(image, tags)
    if image.has_transparency_data:
        return _on_white(image)
    if image.mode in ("1", "L"):
        return image if image.mode == "L" else image.convert("L")
    if image.mode in _COLOUR:
        return image if image.mode == "RGB" else image.convert("RGB")
    raise AdjoinedError("unknown kind of image", where="image", expected="grey or colour", got=f"mode {image.mode}")


def check_layout(image: Image) -> None:
    """Raise AdjoinedError if it is a TIFF or BMP whose values Pillow would misread; this takes only its header."""
    _check_bitmap(image)
    tags = getattr(image, "tag_v2", {})
    bits, signed = tags.get(_BITS, (0,)), _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    raw = tags.get(_COMPRESSION, 1) == _UNCOMPRESSED
    planes = len(bits) if tags.get(_PLANES) == _ONE_PER_COLOUR else 1
    if (signed and max(bits) <= 8) or (planes > 1 and raw and max(bits) > 8):
        raise AdjoinedError(
            "a TIFF file of this layout cannot be read",
            where="image",
            expected="unsigned values; with 16 bits, the colours of a pixel side by side",
            got=f"{max(bits)} bits, {'signed' if signed else 'a plane for each colour'}",
            fix="Save it as PNG.",
        )
    parts = [each[1] for each in getattr(image, "tile", ())] if tags and raw else []
    there = sum((right - left) * (lower - upper) for left, upper, right, lower in filter(None, parts))
    if parts and there < planes * image.width * image.height:  # Pillow leaves the rest black
        raise AdjoinedError(
            "parts of the TIFF file are missing",
            where="image",
            expected=f"{planes * image.width * image.height} values",
            got=there,
            fix="Replace the file, or remove it from the data.",
        )


def _check_bitmap(image: Image) -> None:
    """Raise AdjoinedError if Pillow would read a BMP with more or fewer bits per pixel than its header says.

    It takes a palette of black and white for 1 bit per pixel, and one of greys from 0 for 8, whatever the header says.
    """
    tiles, file = getattr(image, "tile", ()), getattr(image, "fp", None)
    read = {"1": 1, "L": 8}.get(image.mode)
    if image.format != "BMP" or read is None or file is None or not tiles or tiles[0][0] != "raw":
        return
    before = file.tell()
    file.seek(_INFO)
    info = file.read(16)
    file.seek(before)
    place = 10 if info[0] == _OLD_INFO else 14
    there = int.from_bytes(info[place : place + 2], "little")
    if there != read:
        raise AdjoinedError(
            "a BMP file of this layout cannot be read",
            where="image",
            expected="a black and white palette only with 1 bit per pixel, a grey one only with 8",
            got=f"{there} bits",
            fix="Save it as PNG.",
        )


def upright(image: Image) -> Image:
    """Return an image of any mode rotated by its EXIF or XMP orientation; `image` itself if that leaves it as it is."""
    from PIL import ImageOps
    from PIL.ImageFile import ImageFile

    try:
        if image.getexif().get(_ORIENTATION, 1) == 1:
            return image
        if isinstance(image, ImageFile):
            image.filename = ""  # else Pillow maps an uncompressed TIFF into memory with height and width swapped
        return ImageOps.exif_transpose(image)
    except Exception:  # an unreadable tag is ignored, as in viewers
        return image


def _on_white(image: Image) -> Image:
    from PIL import Image as pillow

    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("La", "RGBa"):  # colours already multiplied by their opacity
        image = image.convert(f"{image.mode[:-1]}A")
    bitmap, image = image.format == "BMP", image.convert("RGBA")
    if bitmap and image.getchannel("A").getextrema() == (0, 0):  # unset rather than transparent: browsers ignore it
        image.putalpha(255)
    white = pillow.new("RGBA", image.size, "white")
    return pillow.alpha_composite(white, image).convert("L" if grey else "RGB")


def _eight_bits(image: Image, tags: Any) -> Image:
    import numpy as np
    from PIL import Image as pillow

    values = np.asarray(image)
    white = _white(image, values, tags)
    levels = np.rint(values.astype(np.float32) * (255 / white)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        levels = 255 - levels
    key = image.info.get("transparency")
    if isinstance(key, int):  # PNG: the one value that is transparent
        levels[values == key] = 255
    return pillow.fromarray(levels)


def _white(image: Image, values: np.ndarray, tags: Any) -> float:
    """Return the value of white, and check that all values are between 0 and white."""
    bits, signed = (tags.get(tag, (None,))[0] for tag in (_BITS, _SAMPLE_FORMAT))
    low, high = float(values.min()), float(values.max())
    if image.mode == "F":
        white, known = 1.0, "floating-point values from 0 to 1"
    elif image.mode == "I" and image.format != "PPM":
        # 32-bit integers. Nothing in the file tells what white is: 16-bit grey is assumed, unless it may be 8-bit.
        white, known = 65535.0, "8- or 16-bit values, or 32-bit integers from 0 to more than 255, at most 65535"
        if 0 < high <= 255 or (bits == 16 and signed == _SIGNED):
            high = float("nan")
    else:
        white, known = float(2 ** (bits or 16) - 1), f"values of {bits or 16} bits"
    if not 0 <= low <= high <= white:
        raise AdjoinedError(
            "the range of the image's values is unknown",
            where="image",
            expected=known,
            got=f"{float(values.min()):g} to {float(values.max()):g}, mode {image.mode}",
            fix="Save it with 8 or 16 bits per value.",
        )
    return white
