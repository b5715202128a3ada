"""Photos in folders, one folder per class: ImageNet, Imagenette, and anybody's own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import torch

from adjoined.data.augmentation import photo_transform
from adjoined.data.images import FileImages
from adjoined.data.source import Source, find
from adjoined.errors import AdjoinedError

_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_PARTS = ("train", "val")
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def open_imagenet(root: Path) -> Source:
    """Return ImageNet from `root`/{train,val}/<class>/, or `root`/imagenet/...; errors as for `open_folder`."""
    how = "Unpack the photos of ILSVRC2012 into one folder per class, which image-net.org gives to registered users."
    return open_folder(find("imagenet", [root, root / "imagenet"], _PARTS, how=how))


def open_imagenette(root: Path) -> Source:
    """Return Imagenette from `root`/{train,val}/<class>/, or from its unpacked archive in `root`."""
    archives = [root / f"imagenette{version}" for version in ("2", "2-320", "2-160", "")]
    how = "Get it with torchvision.datasets.Imagenette(ROOT, download=True)."
    return open_folder(find("imagenette", [root, *archives], _PARTS, how=how))


def open_folder(folder: Path) -> Source:
    """Return the photos of `folder`: {train,val}/<class>/, or <class>/, of which a share is to be held out.

    Hidden files and folders are passed over, and so is what has no image's extension.

    Raises:
        AdjoinedError: the folder is missing; it has one of train/ and val/; a class is empty; there are fewer than
            two classes, or other ones in val/ than in train/.
    """
    if not folder.is_dir():
        raise AdjoinedError(
            "there is no such folder",
            where=f"data folder {folder.absolute()}",
            expected="a folder with train/ and val/, or with one folder per class",
        )
    parts = [part for part in _PARTS if (folder / part).is_dir()]
    if len(parts) == 1:
        raise AdjoinedError(
            f"there is {parts[0]}/ alone",
            where=f"data folder {folder.absolute()}",
            expected="both train/ and val/, or neither",
            fix=f"Name folder:{folder / parts[0]} to have a share of it held out.",
        )
    train, *rest = [_scan(folder / part) for part in parts] or [_scan(folder)]
    val = rest[0] if rest else None
    if val and val.classes != train.classes:
        only = {name: sorted(set(one) - set(other))[:5] for name, one, other in (
            ("train/", train.classes, val.classes), ("val/", val.classes, train.classes)
        )}  # fmt: skip
        raise AdjoinedError(
            "train/ and val/ have different classes",
            where=f"data folder {folder.absolute()}",
            expected="the same class folders in both",
            got="; ".join(f"{name} alone has {', '.join(classes)}" for name, classes in only.items() if classes),
        )
    return Source(
        train=train.images,
        val=val.images if val else None,
        val_name="validation folder" if val else "held-out split",
        class_names=_readable(train.classes),
        channels=3,
        size=None,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        vary=photo_transform,
    )


class _Scanned(NamedTuple):
    classes: list[str]
    images: FileImages


def _scan(folder: Path) -> _Scanned:
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    if len(classes) < 2:
        raise AdjoinedError(
            "there are fewer than two classes",
            where=f"data folder {folder.absolute()}",
            expected="a folder of images per class",
            got=f"the folders {classes}",
        )
    names: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = _image_files(folder, name)
        if not found:
            raise AdjoinedError(
                "the class has no images",
                where=f"data folder {folder.absolute() / name}",
                expected=f"files {' '.join(_EXTENSIONS)}",
                fix="Put images in, or take the folder away.",
            )
        names += found
        labels += [label] * len(found)
    return _Scanned(classes, FileImages(folder, names, torch.tensor(labels), channels=3))


def _image_files(folder: Path, name: str) -> list[str]:
    found = []
    for place, subfolders, files in os.walk(folder / name, followlinks=True):
        subfolders[:] = [each for each in subfolders if not each.startswith(".")]
        inside = os.path.relpath(place, folder)
        found += [
            os.path.join(inside, file)
            for file in files
            if file.lower().endswith(_EXTENSIONS) and not file.startswith(".")
        ]
    return sorted(found)


def _readable(classes: list[str]) -> tuple[str, ...]:
    """Return the words for ImageNet's class folders, which are named by numbers; other names as they are."""
    if all(name in _IMAGENETTE for name in classes):
        return tuple(_IMAGENETTE[name] for name in classes)
    if len(classes) == 1000 and all(re.fullmatch(r"n\d{8}", name) for name in classes):
        from torchvision.models import ResNet50_Weights

        return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return tuple(classes)
