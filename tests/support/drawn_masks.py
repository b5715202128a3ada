"""Folders of images with masks, drawn here: a bright square on a dark ground."""

from pathlib import Path

import numpy as np
from PIL import Image

CODE = """
from torch import nn

def make(num_classes, in_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, num_classes, 1),
    )
"""
"""A network with one logit per class and pixel."""


def draw(images: Path, masks: Path, count: int, *, seed: int = 0, palette: bool = False) -> None:
    """Write images with their masks: class 1 is a square, class 2 its centre, and its left edge belongs to no class."""
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for number in range(count):
        pixels = random.integers(0, 90, (24, 20, 3), dtype=np.uint8)
        mask = np.zeros((24, 20), dtype=np.uint8)
        top, left = random.integers(2, 10), random.integers(2, 8)
        pixels[top : top + 10, left : left + 10] += 100
        pixels[top + 3 : top + 7, left + 3 : left + 7, 0] += 60
        mask[top : top + 10, left : left + 10] = 1
        mask[top + 3 : top + 7, left + 3 : left + 7] = 2
        mask[top : top + 10, left] = 255
        Image.fromarray(pixels).save(images / f"{number}.png")
        image = Image.fromarray(mask)
        if palette:
            image.putpalette(
                [0, 0, 0, 200, 0, 0, 0, 200, 0] + 247 * [255, 255, 255]
            )  # a short one would cut off the index 255
        image.save(masks / f"{number}.png")
