"""From an image file to what a network sees; the same steps in evaluation and for a single image.

Shape legend: N images, C channels, H and W height and width in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adjoined.data.info import DataInfo
from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    from PIL.Image import Image

Transform = Callable[[Tensor], Tensor]


def load_image(path: str | Path) -> Image:
    """Read an image file whole.

    Returns:
        A PIL image, in the file's own mode and size.

    Raises:
        AdjoinedError: the file is missing, is no image, or is cut off or damaged.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            return image
    except FileNotFoundError:
        raise AdjoinedError("there is no such image", where=path) from None
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise AdjoinedError(
            f"the image cannot be read: {type(error).__name__}: {error}",
            where=path,
            expected="a whole JPEG, PNG, WebP, BMP, TIFF or PPM file",
            fix="Replace the file, or take it out of the data.",
        ) from error


def to_tensor(image: Image, channels: int) -> Tensor:
    """Return the image as uint8 (C, H, W), grey for one channel and RGB for three."""
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(image.convert("L" if channels == 1 else "RGB"))


def evaluation_transform(info: DataInfo) -> Transform:
    """Return the resize and central crop of `info`: uint8 (C, H, W) to uint8 (C, image_size, image_size)."""
    from torchvision.transforms import v2

    return v2.Compose([v2.Resize(info.resize), v2.CenterCrop(info.image_size)])


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 (images / 255 - mean) / std, per channel, of uint8 (N, C, H, W).

    Example:
        >>> normalise(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8), mean=[0.5], std=[0.25]).item()
        2.0
    """
    shift, scale = (255 * torch.tensor(each, dtype=torch.float32).view(1, -1, 1, 1) for each in (mean, std))
    return images.float().sub_(shift).div_(scale)


def preprocess(info: DataInfo, image: Image) -> Tensor:
    """Prepare one image as the evaluation of a data set does, to the bit.

    Args:
        info: the data that the network was trained on.
        image: a PIL image of any mode and size.

    Returns:
        float32 (1, C, image_size, image_size), normalised.
    """
    pixels = evaluation_transform(info)(to_tensor(image, info.channels))
    return normalise(pixels.unsqueeze(0), info.mean, info.std)
