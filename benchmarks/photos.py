"""Photos that fit into memory: decoded once, and augmented batch by batch."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

STORED = 160
"""Height and width of the decoded photos, pixels."""


class Photos:
    """Decoded photos, and their augmentation."""

    def __init__(self, folder: Path, pixels: int, seed: int) -> None:
        self.pixels, self.seed = pixels, seed
        self.train_x, self.train_y = _decode(folder / "train")
        stored, self.val_y = _decode(folder / "val")
        size = (pixels, pixels)
        self.val_x = F.interpolate(_normalised(stored), size=size, mode="bilinear", antialias=True)

    def to(self, device: torch.device) -> Photos:
        """Return the same photos on a device; their augmentations are drawn on the CPU, the same on every device."""
        moved = copy.copy(self)
        for name in ("train_x", "train_y", "val_x", "val_y"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def epoch(self, number: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, a function of seed and number."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        order = torch.randperm(len(self.train_x), generator=generator)
        for chosen in order.split(batch)[: len(order) // batch]:
            yield self._vary(self.train_x[chosen], generator), self.train_y[chosen]

    def some(self, number: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the first images of an epoch and their classes; `count` is a multiple of 32."""
        drawn = zip(range(count // 32), self.epoch(number, 32), strict=False)
        x, y = zip(*(batch for _, batch in drawn), strict=True)
        return torch.cat(x), torch.cat(y)

    def _vary(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        count = len(stored)

        def drawn(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)

        area, ratio = drawn(0.35, 1), torch.exp(drawn(math.log(3 / 4), math.log(4 / 3)))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        window = torch.zeros(count, 2, 3)
        window[:, 0, 0] = width * torch.where(drawn(0, 1) < 0.5, -1.0, 1.0)
        window[:, 1, 1] = height
        window[:, 0, 2], window[:, 1, 2] = drawn(-1, 1) * (1 - width), drawn(-1, 1) * (1 - height)
        grid = F.affine_grid(window.to(stored.device), [count, 3, self.pixels, self.pixels], align_corners=False)
        return F.grid_sample(_normalised(stored), grid, padding_mode="reflection", align_corners=False)


def _normalised(stored: Tensor) -> Tensor:
    return (stored.float() - 127) / 128


def _decode(folder: Path) -> tuple[Tensor, Tensor]:
    images, classes = [], []
    for number, name in enumerate(sorted(os.listdir(folder))):
        for file in sorted((folder / name).iterdir()):
            with Image.open(file) as opened:
                image = opened.convert("RGB")
            scale = STORED / min(image.size)
            width, height = (max(STORED, round(side * scale)) for side in image.size)
            left, top = (width - STORED) // 2, (height - STORED) // 2
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + STORED, top + STORED))
            images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
            classes.append(number)
    return torch.stack(images), torch.tensor(classes)
