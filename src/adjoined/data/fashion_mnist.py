"""Fashion-MNIST: 70,000 grey images of clothes, 28x28 pixels, in idx files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adjoined.data.augmentation import small_image_transform
from adjoined.data.images import MemoryImages
from adjoined.data.source import Source, damaged, find

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_LARGEST = 1 << 26
"""Most bytes of a file once unpacked; the largest has 47,040,016."""
_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def open_fashion_mnist(root: Path) -> Source:
    """Return Fashion-MNIST from idx files, compressed (.gz) or not, in the layout of torchvision or Debian.

    Raises:
        AdjoinedError: the files are missing or damaged.

    Source: Xiao et al., arXiv 1708.07747.
    """
    folder = find(
        "fashion-mnist",
        [root / "FashionMNIST" / "raw", root / "fashion-mnist", root],
        _FILES,
        how="Get it with torchvision.datasets.FashionMNIST(ROOT, download=True), or Debian's dataset-fashion-mnist.",
    )
    parts = []
    for images, labels in (_FILES[:2], _FILES[2:]):
        part = MemoryImages(_read_idx(folder, images), _read_idx(folder, labels).long())
        if part.images.ndim != 3 or part.labels.shape != part.images.shape[:1] or part.labels.max() > 9:
            raise damaged(folder / images, f"images {tuple(part.images.shape)}, labels {tuple(part.labels.shape)}")
        part.images = part.images.unsqueeze(1)
        parts.append(part)
    return Source(
        train=parts[0],
        val=parts[1],
        val_name="test set",
        class_names=_CLASSES,
        channels=1,
        size=28,
        mean=(0.2860,),
        std=(0.3530,),
        vary=partial(small_image_transform, size=28),
        shifted=True,
    )


def _read_idx(folder: Path, name: str) -> Tensor:
    """Read a tensor of bytes: 0, 0, type 8, number of dimensions, the sizes as big-endian int32, the values."""
    path = folder / name
    if not path.exists():
        path = folder / f"{name}.gz"
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        zero, kind, dimensions = struct.unpack_from(">HBB", content)
        shape = struct.unpack_from(f">{dimensions}i", content, offset=4)
    except (OSError, EOFError, zlib.error, struct.error) as error:
        raise damaged(path, error) from error
    if len(content) > _LARGEST:
        raise damaged(path, f"it has more than {_LARGEST} bytes")
    start = 4 + 4 * dimensions
    if (zero, kind) != (0, 8) or len(content) - start != math.prod(shape) or not math.prod(shape):
        raise damaged(path, f"not an idx file of bytes, or of the wrong length: {len(content)} bytes")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
