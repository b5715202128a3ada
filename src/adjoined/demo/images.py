"""What the networks say about an image, and the images to start with."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import torch
from torch import nn

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

    guesses: list[tuple[str, float]]
    """Classes with their probabilities in [0, 1], the most probable first."""
    milliseconds: float | None
    """Median time of a call; None without timed calls."""


def look(
    networks: Sequence[nn.Module], info: DataInfo, image: PIL.Image.Image, *, top: int = GUESSES, calls: int = CALLS
) -> list[Answer]:
    """Classify an image with every network, in interleaved calls.

    Args:
        networks: in evaluation mode, on the CPU.
        info: the classes, and how images are prepared.
        image: an image of any mode and size.
        top: the most guesses of each network.
        calls: timed calls of each network, after one that is slow and not timed.
    """
    x = preprocess(info, image)
    times: list[list[float]] = [[] for _ in networks]
    with torch.inference_mode():
        logits = [network(x)[0] for network in networks]
        for _ in range(calls):
            for network, own in zip(networks, times, strict=True):
                begin = time.perf_counter()
                network(x)
                own.append(1000 * (time.perf_counter() - begin))
    answers = []
    for each, own in zip(logits, times, strict=True):
        likeliest = each.softmax(dim=0).topk(min(top, info.num_classes))
        pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
        guesses = [(info.class_names[index], probability) for index, probability in pairs]
        answers.append(Answer(guesses, median(own) if own else None))
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
