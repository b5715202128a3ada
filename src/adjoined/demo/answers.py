"""What the networks say about an image, and the images to start with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adjoined.data import ImageData
from adjoined.data.info import DataInfo
from adjoined.data.preprocessing import load_image, preprocess
from adjoined.errors import AdjoinedError
from adjoined.report import units

if TYPE_CHECKING:
    import PIL.Image

LARGEST_FILE = 20_000_000
"""Largest image file, bytes."""
CALLS = 11
"""Timed calls of each network; the median is shown."""
GUESSES = 5
PICTURES = 12
"""Validation images to start with."""


@dataclass(frozen=True)
class DemoNetwork:
    """One network on the page."""

    name: str
    module: nn.Module
    """In evaluation mode, on the CPU."""
    parameters: int
    file_bytes: int


@dataclass(frozen=True)
class Answer:
    """One network's predictions for one image."""

    network: DemoNetwork
    guesses: dict[str, float]
    """Class -> probability in [0, 1], the most probable first."""
    milliseconds: float
    """Median time of a call."""


def look(networks: Sequence[DemoNetwork], info: DataInfo, image: PIL.Image.Image) -> list[Answer]:
    """Classify an image with every network, in interleaved calls.

    Args:
        networks: the base network first.
        info: the classes, and how images are prepared.
        image: an image of any mode and size.
    """
    x = preprocess(info, image)
    times: dict[str, list[float]] = {network.name: [] for network in networks}
    logits: dict[str, Tensor] = {}
    with torch.inference_mode():
        for number in range(CALLS + 1):
            for network in networks:
                begin = time.perf_counter()
                logits[network.name] = network.module(x)[0]
                if number:  # the first call is slow
                    times[network.name].append(1000 * (time.perf_counter() - begin))
    answers = []
    for network in networks:
        likeliest = logits[network.name].softmax(dim=0).topk(min(GUESSES, info.num_classes))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        guesses = {info.class_names[index]: probability for index, probability in pairs}
        answers.append(Answer(network, guesses, median(times[network.name])))
    return answers


@dataclass(frozen=True)
class Picture:
    """A validation image to start with."""

    image: PIL.Image.Image
    """As the data set has it."""
    name: str
    """Its true class."""


def pictures(images: ImageData) -> list[Picture]:
    """Return a few validation images, spread evenly over the classes.

    Args:
        images: the data of a run.
    """
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
