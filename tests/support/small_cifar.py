"""CIFAR-10 as its authors distribute it, with few images."""

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
