"""The common form of all data sets, and the error for a missing one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from adjoined.data.augmentation import photo_transform
from adjoined.data.images import ImageDataset, Images
from adjoined.data.preprocessing import Transform
from adjoined.data.scanning import LeftOut
from adjoined.errors import AdjoinedError

PHOTO_SIZE = 224
"""Default size of photos after cropping, pixels."""

PHOTO_RATIO = 0.875
"""Fraction of the shorter side kept when a photo is evaluated: 224 of 256 pixels."""


@dataclass(kw_only=True)
class Source:
    """The labelled images of a data set and their properties; the defaults are those of photos."""

    train: Images
    val: Images | None = None
    """None: a fraction of `train` will be held out."""
    val_name: str = "held-out split"
    class_names: tuple[str, ...]
    channels: int = 3
    size: int | None = None
    """Height and width of the images, pixels; None for photos of any size."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Those of ImageNet, like `std`."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    vary: Callable[..., Transform] = photo_transform
    """Builds the augmentation from (info, augmentation); if `shifted`, it also takes a `shift`."""
    shifted: bool = False
    """Whether the images are small and augmented by shifts and flips."""
    class_folders: tuple[str, ...] = ()
    """Names of the class folders, in the order of the classes, if every class has a folder."""
    left_out: LeftOut = field(default_factory=LeftOut)
    task: str = "classification"
    """classification, segmentation or multilabel."""
    dataset: type[ImageDataset] = ImageDataset
    """The data set that serves the images with their targets."""

    def strata(self, images: Images) -> Tensor:
        """Return the classes that a split or a limit keeps in proportion, int64 (N,): all 0 where images have none."""
        one_class = self.task == "classification"
        return images.labels if one_class else torch.zeros(len(images.labels), dtype=torch.int64)

    def counts(self, images: Images) -> Tensor:
        """Return the number of images in each of these classes, int64."""
        return self.strata(images).bincount(minlength=len(self.class_names) if self.task == "classification" else 1)

    def rarest(self, images: Images) -> tuple[int, str | None]:
        """Return the smallest of these numbers, and the name of its class: None where images have none."""
        least = self.counts(images).min(dim=0)
        name = self.class_names[int(least.indices)] if self.task == "classification" else None
        return int(least.values), name


def find(name: str, candidates: Iterable[Path], files: Iterable[str], *, how: str) -> Path:
    """Return the first folder of `candidates` that holds all `files` (plain, or with `.gz`).

    Raises:
        AdjoinedError: there is none; the error lists the folders, the files, and `how` to get them.
    """
    candidates, files = list(candidates), list(files)
    for folder in candidates:
        if all((folder / file).exists() or (folder / f"{file}.gz").exists() for file in files):
            return folder
    raise AdjoinedError(
        "the data are missing",
        where=f"data set {name}",
        expected=f"{', '.join(files)} in {' or '.join(str(folder.absolute()) for folder in candidates)}",
        fix=f"{how} Or give its folder (--data-root, DataSettings.root).",
    )


def damaged(path: Path, error: object) -> AdjoinedError:
    """Return the error for a file of a data set that cannot be read."""
    reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return AdjoinedError(f"the file is damaged: {reason}", where=path, fix="Download it again.")
