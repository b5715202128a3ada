"""CIFAR-10 and CIFAR-100: 60,000 colour images of 32x32 pixels, in the authors' Python format.

Source: Krizhevsky, "Learning multiple layers of features from tiny images", 2009.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adjoined.data.augmentation import small_image_transform
from adjoined.data.images import MemoryImages
from adjoined.data.source import Source, damaged, find


def open_cifar10(root: Path) -> Source:
    """Return CIFAR-10 from `root`/cifar-10-batches-py, or from `root` if it is that folder; errors as CIFAR-100."""
    return _open(
        root,
        name="cifar10",
        folder_name="cifar-10-batches-py",
        files=([f"data_batch_{number}" for number in range(1, 6)], ["test_batch"], "batches.meta"),
        keys=("labels", "label_names"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
    )


def open_cifar100(root: Path) -> Source:
    """Return CIFAR-100 (fine labels) from `root`/cifar-100-python, or from `root` if it is that folder.

    Raises:
        AdjoinedError: the files are missing or damaged.
    """
    return _open(
        root,
        name="cifar100",
        folder_name="cifar-100-python",
        files=(["train"], ["test"], "meta"),
        keys=("fine_labels", "fine_label_names"),
        mean=(0.5071, 0.4865, 0.4409),
        std=(0.2673, 0.2564, 0.2762),
    )


def _open(
    root: Path,
    *,
    name: str,
    folder_name: str,
    files: tuple[list[str], list[str], str],
    keys: tuple[str, str],
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Source:
    train, test, meta = files
    labels_key, names_key = keys
    archive = root / f"{folder_name.removesuffix('-batches-py').removesuffix('-python')}-python.tar.gz"
    how = (
        f"Unpack {archive} there."
        if archive.is_file()
        else f"Get it with torchvision.datasets.{name.upper()}(ROOT, download=True)."
    )
    folder = find(name, [root / folder_name, root], [*train, *test, meta], how=how)
    names = _read(folder / meta, names_key)[names_key]
    return Source(
        train=_images(folder, train, labels_key, len(names)),
        val=_images(folder, test, labels_key, len(names)),
        val_name="test set",
        class_names=tuple(names),
        channels=3,
        size=32,
        mean=mean,
        std=std,
        vary=partial(small_image_transform, size=32),
        shifted=True,
    )


def _images(folder: Path, files: list[str], labels_key: str, num_classes: int) -> MemoryImages:
    parts = []
    for file in files:
        entry = _read(folder / file, "data", labels_key)
        try:
            images = torch.as_tensor(entry["data"]).view(-1, 3, 32, 32)
            labels = torch.as_tensor(entry[labels_key], dtype=torch.int64)
            whole = images.dtype == torch.uint8 and 0 < len(images) == len(labels)
            whole = whole and bool(((labels >= 0) & (labels < num_classes)).all())
        except (TypeError, ValueError, RuntimeError) as error:
            raise damaged(folder / file, error) from error
        if not whole:
            raise damaged(folder / file, f"images {tuple(images.shape)}, {len(labels)} labels, {num_classes} classes")
        parts.append((images, labels))
    images, labels = (torch.cat(each) for each in zip(*parts, strict=True))
    return MemoryImages(images, labels)


def _read(path: Path, *keys: str) -> dict[str, Any]:
    try:
        entry = _ArraysOnly(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        return {key: entry[key] for key in keys}
    except Exception as error:  # damaged pickles raise almost anything
        raise damaged(path, error) from error


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that builds only containers, strings, numbers and numpy arrays, and calls nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        import numpy as np

        match module_name, global_name:
            case "numpy.core.multiarray" | "numpy._core.multiarray", "_reconstruct":
                return np.empty(0).__reduce__()[0]
            case "numpy", "ndarray":
                return np.ndarray
            case "numpy", "dtype":
                return lambda code, *_: np.dtype(code)  # the files' further arguments are deprecated
            case "_codecs", "encode":  # Python 3's encoding of bytes for Python 2
                return lambda text, _: text.encode("latin1")
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, code that no CIFAR file needs")
