"""The finished networks' predictions on the run's validation images."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from adjoined.data import DataInfo, ImageData
from adjoined.data.images import ImageDataset
from adjoined.data.sampling import choose_per_class
from adjoined.report.page.answers import Answers, ask

if TYPE_CHECKING:
    from PIL.Image import Image

    from adjoined.report.plan import Layer

LARGEST_SIDE = 144
"""Largest side, in pixels, of a picture on the page."""
LOSSLESS_SIDE = 48
"""Pictures with sides up to this many pixels are stored losslessly, larger ones as WebP."""


class Pictures:
    """Images of a data set as data URIs, as the networks see them before normalisation."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset = dataset

    def __getitem__(self, index: int) -> str:
        """Return one image as a data URI of a few kilobytes."""
        return picture(self.dataset.transform(self.dataset.images.pixels(index)))


def picture(pixels: Tensor) -> str:
    """Return an image, uint8 (C, H, W), as a data URI of a few kilobytes."""
    from PIL.Image import fromarray

    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    lossless = max(image.size) <= LOSSLESS_SIDE
    image.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return data_uri(image, lossless=lossless)


def data_uri(image: Image, *, lossless: bool = True) -> str:
    """Return an image as a data URI: PNG, or WebP of lower quality."""
    content, kind = io.BytesIO(), "png" if lossless else "webp"
    image.save(content, kind, **({"optimize": True} if lossless else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


@dataclass(frozen=True)
class Evidence:
    """The predictions of all networks, and their images."""

    info: DataInfo
    answers: Answers
    pictures: Mapping[int, str] | Pictures
    """Index into the predictions -> data URI."""
    total: int
    """Number of validation images; the predictions may cover only some of them."""
    layers: tuple[Layer, ...] = ()
    """Every layer of the networks, base first."""
    notes: tuple[str, ...] = ()
    """Which layers stay at full width, and why."""

    @property
    def images(self) -> int:
        """Number of images that the networks classified."""
        return len(self.answers.labels)


def look_at(
    networks: Mapping[str, nn.Module], images: ImageData, *, most: int, device: torch.device | str = "cpu"
) -> Evidence:
    """Classify the validation images of a run with its networks.

    Args:
        networks: label -> finished network.
        images: the opened data.
        most: largest number of images; beyond it, a stratified sample is drawn with the split seed.
        device: where to compute.
    """
    total = len(images.val)
    if most < total:
        source = images.val.images
        chosen = choose_per_class(source.labels, lambda n: max(1, ceil(n * most / total)), images.settings.split_seed)
        images = replace(images, val=images.val.of(source.subset(chosen)))
    answers = ask(networks, images.val_loader(), device)
    return Evidence(images.info, answers, Pictures(images.val), total)
