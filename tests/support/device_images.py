"""A small data set in memory, for the tests of images that stay on the device."""

from __future__ import annotations

import torch

from adjoined.data.images import ImageDataset, MemoryImages

COUNT, SIZE = 60, 8


def dataset() -> ImageDataset:
    """Images without repetition, so that each can be told from its shifted and flipped self."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    images = MemoryImages(pixels, torch.arange(COUNT))
    return ImageDataset(images, lambda image: image, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
