"""What every data set is brought to, and the error for one that is not there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from adjoined.data.images import Images
from adjoined.data.preprocessing import Transform
from adjoined.data.scanning import LeftOut
from adjoined.errors import AdjoinedError

PHOTO_SIZE = 224
"""Pixels; what photos are cut to unless a user says otherwise."""

PHOTO_RATIO = 0.875
"""Share of the shorter side that is kept when a photo is evaluated: 224 of 256 pixels."""


@dataclass
class Source:
    """The labelled images of a data set, and what is known about them."""

    train: Images
    val: Images | None
    """None: a share of `train` is to be held out."""
    val_name: str
    class_names: tuple[str, ...]
    channels: int
    size: int | None
    """Height and width of the images, pixels; None for photos of any size."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    vary: Callable[..., Transform]
    """Makes the variation of training images out of (info, augmentation); takes a `shift`, too, where `shifted`."""
    shifted: bool = False
    """Whether the images are small ones that are varied by shifts and flips."""
    class_folders: tuple[str, ...] = ()
    """Where the images lie in a folder for each class: the folders' names, in the order of the classes."""
    left_out: LeftOut = field(default_factory=LeftOut)


def find(name: str, candidates: Iterable[Path], files: Iterable[str], *, how: str) -> Path:
    """Return the first folder of `candidates` that holds all `files` (plain, or with `.gz`).

    Raises:
        AdjoinedError: there is none; it says where was looked, what for, and `how` to get it.
    """
    candidates, files = list(candidates), list(files)
    for folder in candidates:
        if all((folder / file).exists() or (folder / f"{file}.gz").exists() for file in files):
            return folder
    raise AdjoinedError(
        "the data are not there",
        where=f"data set {name}",
        expected=f"{', '.join(files)} in {' or '.join(str(folder.absolute()) for folder in candidates)}",
        fix=f"{how} Or name the folder where it is (--data-root, DataSettings.root).",
    )


def damaged(path: Path, error: object) -> AdjoinedError:
    """Return the error for a file of a data set that cannot be read."""
    reason = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else str(error)
    return AdjoinedError(f"the file is damaged: {reason}", where=path, fix="Fetch it again.")
