"""Photos in folders, one folder per class: ImageNet, Imagenette, and the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from adjoined.data.images import FileImages
from adjoined.data.scanning import EXTENSIONS, LeftOut, class_name, holds_images, scan, subfolders
from adjoined.data.settings import folder_of
from adjoined.data.source import Source, find
from adjoined.errors import AdjoinedError
from adjoined.kinds import kind_of

TRAIN = ("train", "training")
"""Names of the folder of training images, in any case."""
VAL = ("val", "valid", "validation", "dev", "eval", "evaluation", "holdout", "test", "testing")
"""Names of the folder of validation images, in any case; the first that exists is used."""
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
    how = "Get the photos of ILSVRC2012 from image-net.org (registration needed) and unpack one folder per class."
    return open_folder(find("imagenet", [root, root / "imagenet"], ("train", "val"), how=how))


def open_imagenette(root: Path) -> Source:
    """Return Imagenette from `root`/{train,val}/<class>/, or from its unpacked archive in `root`."""
    archives = [root / f"imagenette{version}" for version in ("2", "2-320", "2-160", "")]
    how = "Get it with torchvision.datasets.Imagenette(ROOT, download=True)."
    return open_folder(find("imagenette", [root, *archives], ("train", "val"), how=how))


def open_folder(folder: Path) -> Source:
    """Return the photos of `folder`: {train,val}/<class>/, or <class>/, of which a fraction will be held out.

    `val/` may also be called `valid/`, `validation/`, `dev/`, `eval/`, `holdout/` or `test/`; the first of these that
    exists is used. Files that are hidden, are not regular, or do not have the extension of an image are left out and
    counted.

    Raises:
        AdjoinedError: the folder is missing or cannot be read; it has only one of train/ and val/; a class is empty;
            there are fewer than two classes; two have the same name; or those of train/ and val/ differ.
    """
    left_out = LeftOut()
    layout = _layout(folder, left_out)
    if (layout.train is None) != (layout.val is None):
        only = layout.train or layout.val
        raise AdjoinedError(
            f"there is only {only}/",
            where=f"data folder {folder.absolute()}",
            expected="both train/ and val/ (or valid/, validation/, test/), or neither",
            got=str(left_out) or "nothing else",
            fix=f"Use folder:{folder / str(only)} to hold out a fraction of it.",
        )
    train_folders = _named(folder / (layout.train or ""), left_out)
    val_folders = _named(folder / layout.val, left_out) if layout.val else train_folders
    if val_folders.keys() != train_folders.keys():
        only = {f"{name}/": sorted(one.keys() - other.keys())[:5] for name, one, other in (
            (layout.train, train_folders, val_folders), (layout.val, val_folders, train_folders)
        )}  # fmt: skip
        raise AdjoinedError(
            f"{layout.train}/ and {layout.val}/ have different classes",
            where=f"data folder {folder.absolute()}",
            expected="the same class folders in both",
            got="; ".join(f"only {name} has {', '.join(classes)}" for name, classes in only.items() if classes),
        )
    train_classes = list(train_folders.values())
    if len(train_classes) < 2:
        inside = [folder / each for each in train_classes if len(subfolders(folder / each, LeftOut())) > 1]
        beside = f"; {left_out}" if left_out.counts else ""
        raise AdjoinedError(
            "there are fewer than two classes",
            where=f"data folder {folder.absolute()}",
            expected="a folder of images for each class",
            got=f"folders: {', '.join(train_classes) or 'none'}{beside}",
            fix=f"Did you mean folder:{inside[0]}?" if inside and not layout.train else "",
        )
    train = _all_classes_filled(folder, layout.train or "", train_classes, left_out)
    if layout.val is None:
        return _photos(train, None, Source.val_name, train_classes, left_out)
    val = _all_classes_filled(folder, layout.val, [val_folders[name] for name in train_folders], left_out)
    return _photos(train, val, f"folder {layout.val}/", train_classes, left_out)


def open_all_photos(folder: Path, *, channels: int) -> Source:
    """Return all photos of `folder` as validation images: those in val/ if it has one, or else those of its classes.

    Any number of classes is allowed, and empty ones are left out.

    Raises:
        AdjoinedError: the folder is missing or cannot be read; it has only train/; or there are no images.
    """
    left_out = LeftOut()
    layout = _layout(folder, left_out)
    if layout.train and not layout.val:
        raise AdjoinedError(
            f"there is only {layout.train}/",
            where=f"data folder {folder.absolute()}",
            expected="a val/ (or valid/, validation/, test/) beside it, or class folders",
            fix=f"Use folder:{folder / layout.train} to evaluate on its images.",
        )
    inside = layout.val or ""
    classes = subfolders(folder / inside, left_out)
    images = scan(folder, inside, classes, left_out, channels=channels)
    filled = images.labels.unique()
    if not len(images.labels):
        raise AdjoinedError(
            "no images in class folders",
            where=f"data folder {(folder / inside).absolute()}",
            expected="a folder of images for each class",
            got=str(left_out) or "nothing",
        )
    for label in sorted(set(range(len(classes))) - set(filled.tolist())):
        left_out.add("classes without images", classes[label])
    nothing = images.subset(torch.zeros(len(images.labels), dtype=torch.bool))
    val_name = f"all of {layout.val}/" if layout.val else "all of them"
    return _photos(nothing, images, val_name, classes, left_out)


def check_outside(data: str, written: Path) -> None:
    """Raise AdjoinedError if a new folder would be taken for a class of the images in `folder:PATH`."""
    folder = folder_of(data)
    if folder is None or kind_of(data) != "folder" or not written.resolve().is_relative_to(folder.resolve()):
        return
    if folder.is_dir() and _layout(folder, LeftOut()) == (None, None):
        raise AdjoinedError(
            "it would lie in the folder of the images and count as a class",
            where=written,
            expected=f"a folder outside of {folder}",
            fix="Choose another folder.",
        )


def _photos(train: FileImages, val: FileImages | None, val_name: str, classes: list[str], left_out: LeftOut) -> Source:
    return Source(
        train=train,
        val=val,
        val_name=val_name,
        class_names=_readable(classes),
        channels=train.channels,
        class_folders=tuple(classes),
        left_out=left_out,
    )


class _Layout(NamedTuple):
    train: str | None
    """Folder of the training images; None: the class folders are in the folder itself."""
    val: str | None


def _layout(folder: Path, left_out: LeftOut) -> _Layout:
    """Find train/ and val/. A class may also be called train: folders that directly hold images are classes."""
    if not folder.is_dir():
        raise AdjoinedError(
            "no such folder",
            where=f"data folder {folder.absolute()}",
            expected="a folder with train/ and val/, or with one folder per class",
            got="a file" if folder.exists() else "",
            fix="If it has moved, give its new location: --data folder:PATH.",
        )
    try:
        beside = LeftOut()
        folders = subfolders(folder, beside)
        named = [name for name in folders if name.lower() in (*TRAIN, *VAL)]
        parts = [name for name in named if not holds_images(folder / name)]
        train, val = (_first(parts, names) for names in (TRAIN, VAL))
        like = _like(folder, train, folders) if train and not val else None
    except OSError as error:
        raise AdjoinedError(f"cannot be read: {error.strerror}", where=error.filename or folder) from error
    if (train and val) or (parts and folders == named):
        left_out.merge(beside)
        for name in folders:
            if name not in (train, val):
                left_out.add("folders beside them", f"{name}/")
        return _Layout(train, val)
    if like and train:
        raise AdjoinedError(
            f"{like}/ beside {train}/ has the same classes, but its name does not say what it is for",
            where=f"data folder {folder.absolute()}",
            expected="train/ and val/ (or valid/, validation/, dev/, test/), or one folder for each class",
            fix=f"Rename {like}/ to val/, or use folder:{folder / train} to hold out a fraction of {train}/.",
        )
    if named and folders == named:
        raise AdjoinedError(
            "there are images outside the class folders",
            where=f"data folder {folder.absolute() / named[0]}",
            expected="a folder of images for each class in it",
        )
    return _Layout(None, None)


def _like(folder: Path, train: str, folders: list[str]) -> str | None:
    """Return a folder beside `train` that holds folders of the same names, and so is not a class."""
    classes = subfolders(folder / train, LeftOut())
    beside = (name for name in folders if name != train and not holds_images(folder / name))
    return next((name for name in beside if classes and subfolders(folder / name, LeftOut()) == classes), None)


def _named(folder: Path, left_out: LeftOut) -> dict[str, str]:
    """Return the class folders in a folder, class name -> folder name, in the order of the folder names.

    Raises:
        AdjoinedError: two names differ only in how Unicode composes their characters.
    """
    first: dict[str, str] = {}
    for name in subfolders(folder, left_out):
        other = first.setdefault(class_name(name), name)
        if other != name:
            raise AdjoinedError(
                f"two class folders have the same name, {class_name(name)}, in two Unicode forms",
                where=f"data folder {folder.absolute()}",
                got=f"{other!a} and {name!a}",
                fix="Merge or rename them.",
            )
    return first


def _first(folders: list[str], names: tuple[str, ...]) -> str | None:
    """Return the folder whose name comes first among `names`, ignoring case."""
    return min(
        (each for each in folders if each.lower() in names), key=lambda each: names.index(each.lower()), default=None
    )


def _all_classes_filled(folder: Path, inside: str, classes: list[str], left_out: LeftOut) -> FileImages:
    here = LeftOut()
    images = scan(folder, inside, classes, here, channels=3)
    left_out.merge(here)
    counts = images.labels.bincount(minlength=len(classes))
    if counts.min() == 0:
        empty = classes[int(counts.argmin())]
        raise AdjoinedError(
            "the class has no images",
            where=f"data folder {(folder / inside / empty).absolute()}",
            expected=f"files {' '.join(sorted(EXTENSIONS))}",
            got=str(here),
            fix="Add images, or remove the folder.",
        )
    return images


def _readable(classes: list[str]) -> tuple[str, ...]:
    """Return readable names for ImageNet's class folders, which are named by WordNet ids; other names unchanged."""
    if all(name in _IMAGENETTE for name in classes):
        return tuple(_IMAGENETTE[name] for name in classes)
    if len(classes) == 1000:  # other choices of a thousand of ImageNet's 21,841 classes have other names
        from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]
        from torchvision.models import ResNet50_Weights

        if classes == ImageNetInfo("imagenet-1k").label_names():
            return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])
    return tuple(class_name(name) for name in classes)
