"""CIFAR-10 and CIFAR-100 as their authors distribute them, with few images."""

import pickle
from pathlib import Path

import numpy as np


def write_cifar10(folder: Path, images: np.ndarray, labels: list[int]) -> None:
    """Write the authors' format: 3,072 bytes a row, in six pickles of protocol 2."""
    folder.mkdir(parents=True)
    parts = np.array_split(np.arange(len(labels)), 6)
    for name, part in zip([*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"], parts, strict=True):
        entry = {"data": images[part].reshape(len(part), -1), "labels": [labels[i] for i in part]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}, protocol=2))


def write_cifar100(folder: Path, count: int) -> None:
    """Write as many random training images, of 100 classes in turn, and a test image of each of 20 classes."""
    folder.mkdir(parents=True)
    dice = np.random.default_rng(0)
    for name, number in (("train", count), ("test", 20)):
        images = dice.integers(0, 256, (number, 3 * 32 * 32), dtype=np.uint8)
        entry = {"data": images, "fine_labels": [i % 100 for i in range(number)]}
        (folder / name).write_bytes(pickle.dumps(entry, protocol=2))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"class {i}" for i in range(100)]}, protocol=2))
