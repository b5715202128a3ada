"""From an image file to the network's input; the same steps in evaluation and for a single image.

Shape legend: N images, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adjoined.data.info import DataInfo
from adjoined.data.levels import check_layout, plain
from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[[Tensor], Tensor]
_COLOUR_MAP = 320  # a TIFF tag

MOST_PIXELS = 2**26
"""Most pixels of an image, decoded or resized: a file of a hundred bytes can ask for gigabytes."""
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""Supported formats. Pillow knows more, such as PostScript, for which it starts another program."""


def load_image(path: str | Path) -> Image:
    """Read and decode an image file as a viewer shows it.

    Returns:
        A PIL image of mode L or RGB, upright, with transparent parts on white; of several frames, the first.

    Raises:
        AdjoinedError: the file is missing, is not an image, is truncated or damaged, has too many pixels, or its
            values have no known range.
    """
    with quiet(), opened_image(path) as image:
        image.load()
        return plain(image)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Pillow's warnings, such as those about damaged tags in good photos; not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def opened_image(path: str | Path) -> Iterator[Image]:
    """Open an image file and read its header, under `quiet`; errors in the block are attributed to the file.

    Yields:
        A PIL image that is not yet decoded.

    Raises:
        AdjoinedError: as `load_image` does.
    """
    from PIL import Image, UnidentifiedImageError

    Image.init()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would block
            raise AdjoinedError("not a regular file")
        formats = [each for each in FORMATS if each in Image.OPEN]
        # Given a path, Pillow maps an uncompressed TIFF that has to be rotated into memory with its sides swapped.
        with open(path, "rb") as file, Image.open(file, formats=formats) as image:
            check_pixels(*image.size)
            check_layout(image)
            _scale_transparent_colour(image)
            _widen_colour_map(image)
            yield image
    except FileNotFoundError:
        raise AdjoinedError("no such image", where=path) from None
    except AdjoinedError as error:
        raise error.at(path) from error
    except Image.DecompressionBombError as error:
        raise _too_many_pixels("more than a hundred million").at(path) from error
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, UnidentifiedImageError):  # an OSError whose text repeats the path
            reason = "it is not an image of a known format"
        elif isinstance(error, OSError):
            reason = error.strerror or str(error)
        raise AdjoinedError(
            f"the image cannot be read: {reason}",
            where=path,
            expected="a whole JPEG, PNG, WebP, AVIF, GIF, BMP, TIFF or PPM file",
            fix="Replace the file, or remove it from the data.",
        ) from error


def check_pixels(width: int, height: int, resize: int | None = None) -> None:
    """Raise AdjoinedError if an image has too many pixels, or would have once its shorter side has `resize` pixels."""
    if width * height > MOST_PIXELS:
        raise _too_many_pixels(f"{width} x {height}")
    if resize is not None and resize * resize * max(width, height) > MOST_PIXELS * min(width, height):
        raise AdjoinedError(
            f"the image is too elongated: with {resize} pixels on its shorter side it would have too many pixels",
            where="image",
            expected=f"at most {MOST_PIXELS} pixels",
            got=f"{width} x {height} before resizing",
            fix="Crop it, or remove it from the data.",
        )


def _too_many_pixels(got: str) -> AdjoinedError:
    return AdjoinedError(
        "the image has too many pixels",
        where="image",
        expected=f"at most {MOST_PIXELS}",
        got=got,
        fix="Downscale it, or remove it from the data.",
    )


def _scale_transparent_colour(image: Image) -> None:
    """Convert a PNG's transparent colour to 8 bits: Pillow converts only the pixels."""
    key = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    rawmode = tiles[0].args if tiles else None
    if rawmode in ("L;2", "L;4") and isinstance(key, int):
        image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[rawmode]
    elif rawmode == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _widen_colour_map(image: Image) -> None:
    """Read a TIFF's colour map of 8-bit values, as old programs write it, as viewers do; Pillow makes it black."""
    if image.mode in ("P", "PA") and max(colours := getattr(image, "tag_v2", {}).get(_COLOUR_MAP, (256,))) < 256:
        from PIL import ImagePalette

        image.palette = ImagePalette.raw("RGB;L", bytes(colours))


def to_tensor(image: Image, channels: int) -> Tensor:
    """Return a PIL image of any mode as uint8 (C, H, W), as a viewer shows it: grey for one channel, RGB for three.

    Raises:
        AdjoinedError: the image's values have no known range.
    """
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(plain(image).convert("L" if channels == 1 else "RGB"))


def evaluation_transform(info: DataInfo) -> Transform:
    """Return the resize and centre crop of `info`: uint8 (C, H, W) to uint8 (C, image_size, image_size).

    It also takes an image with its mask, as torchvision's Image and Mask.

    The transform raises AdjoinedError for an image so elongated that resizing it would give too many pixels.
    """
    from torchvision.transforms import v2

    check = partial(_check_before_resize, resize=info.resize)
    return v2.Compose([check, v2.Resize(info.resize), v2.CenterCrop(info.image_size)])


def _check_before_resize(image: Tensor, *masks: Tensor, resize: int) -> Any:
    """Check an image, alone or with its mask."""
    check_pixels(image.shape[-1], image.shape[-2], resize)
    return (image, *masks) if masks else image


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 (images / 255 - mean) / std, per channel, of uint8 (N, C, H, W).

    Example:
        >>> normalise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), mean=[0.5], std=[0.25]).item()
        2.0
    """
    shift, scale = (255 * torch.tensor(each, dtype=torch.float32).view(1, -1, 1, 1) for each in (mean, std))
    return images.float().sub_(shift).div_(scale)


def preprocess(info: DataInfo, image: Image) -> Tensor:
    """Prepare one image exactly as in the evaluation of a data set, bit for bit.

    Returns:
        float32 (1, C, image_size, image_size), normalised.
    """
    pixels = evaluation_transform(info)(to_tensor(image, info.channels))
    return normalise(pixels.unsqueeze(0), info.mean, info.std)
