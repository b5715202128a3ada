"""The user's settings of the data."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from adjoined.errors import AdjoinedError, check_range
from adjoined.kinds import kind_of

Augmentation = Literal["none", "light", "standard", "strong"]
BadImages = Literal["stop", "skip"]


def folder_of(name: str) -> Path | None:
    """Return the path of KIND:PATH; None for the name of a known data set.

    Raises:
        AdjoinedError: PATH is empty, as after an unset variable of the shell; it would mean the current folder.

    Example:
        >>> str(folder_of("folder:photos")), folder_of("cifar10")
        ('photos', None)
    """
    path = name.partition(":")[2]
    if kind_of(name) and not path:
        raise AdjoinedError("the path is missing", where=f"data set {name!r}", expected=f"{name}PATH")
    return Path(os.path.expanduser(path)) if kind_of(name) else None


@dataclass
class DataSettings:
    """The choice of images, and how they are loaded; fields without a description are those of `Settings`."""

    name: str = "digits"
    """The data set, `Settings.data`."""
    root: str = "data"
    """`Settings.data_root`; not needed for the user's own data. Nothing is downloaded."""
    image_size: int | None = None
    batch_size: int = 128
    """Images per training step and process."""
    eval_batch_size: int = 256
    """Images per evaluation step and process."""
    workers: int = 0
    augment: Augmentation = "standard"
    shift: int | None = None
    val_fraction: float = 0.2
    split_seed: int = 0
    limit: int | None = None
    bad_images: BadImages = "stop"
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation per channel, of values in [0, 1], with which a pretrained network was trained. None,
    and for images with other channels: the data set's."""


def check(settings: DataSettings) -> None:
    """Raise AdjoinedError for a setting out of its range."""
    lowest = {"image_size": 4, "batch_size": 1, "eval_batch_size": 1, "workers": 0, "split_seed": 0, "limit": 1}
    for name, least in lowest.items():
        value = getattr(settings, name)
        check_range(value is None or value >= least, name, f"at least {least}", value)
    fraction = settings.val_fraction
    check_range(0 < fraction < 1, "val_fraction", "a number between 0 and 1, such as 0.2", fraction)
    for name, choices in (("augment", get_args(Augmentation)), ("bad_images", get_args(BadImages))):
        if getattr(settings, name) not in choices:
            expected = f"one of {', '.join(choices)}"
            raise AdjoinedError("unknown choice", where=name, expected=expected, got=getattr(settings, name))
