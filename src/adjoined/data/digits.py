"""The 1,797 handwritten digits of 8x8 pixels from scikit-learn."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from adjoined.data.augmentation import digit_transform
from adjoined.data.images import MemoryImages
from adjoined.data.source import Source


@cache  # scikit-learn reads them from a text, number by number
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(values).view(-1, 1, 8, 8).mul(255 / 16).round().to(torch.uint8)  # 17 levels, 0 to 16
    return images, torch.as_tensor(labels).long()


def open_digits(root: Path) -> Source:
    """Return the digits, in grey; they come with scikit-learn, so `root` is ignored.

    Source: Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (its test part).
    """
    return Source(
        train=MemoryImages(*_digits()),
        class_names=tuple("0123456789"),
        channels=1,
        size=8,
        mean=(0.3053,),
        std=(0.3759,),
        vary=partial(digit_transform, size=8),
    )
