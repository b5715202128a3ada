"""The images of the page: those that a visitor brings, and those to start with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.data import ImageData
from adjoined.data.preprocessing import load_image
from adjoined.errors import AdjoinedError
from adjoined.report import units

if TYPE_CHECKING:
    import PIL.Image

LARGEST_FILE = 20_000_000
"""Largest image file, bytes."""
PICTURES = 12
"""Validation images to start with."""


@dataclass(frozen=True)
class Picture:
    """A validation image to start with."""

    image: PIL.Image.Image
    """As the data set has it."""
    name: str
    """Its true class."""


def pictures(images: ImageData) -> list[Picture]:
    """Return a few validation images, spread evenly over the classes."""
    from torchvision.transforms.v2.functional import to_pil_image

    by_class = images.val.labels.argsort(stable=True).tolist()
    count = min(PICTURES, len(by_class))
    chosen = [by_class[number * len(by_class) // count] for number in range(count)]
    names, labels = images.info.class_names, images.val.labels.tolist()
    return [Picture(to_pil_image(images.val.images.pixels(index)), names[labels[index]]) for index in chosen]


def open_image(path: Path) -> PIL.Image.Image:
    """Read an image after checking the size of its file.

    Raises:
        AdjoinedError: the file is too large, or `load_image` refuses it; it names the file without its folder.
    """
    size = path.stat().st_size
    if size > LARGEST_FILE:
        raise AdjoinedError("the file is too large", where=path.name, expected="at most 20 MB", got=units.size(size))
    try:
        return load_image(path)
    except AdjoinedError as error:
        raise error.at(path.name) from error
