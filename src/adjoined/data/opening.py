"""Open a data set by its name."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from adjoined.data.checking import check_images, whole_ones
from adjoined.data.cifar import open_cifar10, open_cifar100
from adjoined.data.digits import open_digits
from adjoined.data.fashion_mnist import open_fashion_mnist
from adjoined.data.folders import open_folder, open_imagenet, open_imagenette
from adjoined.data.images import FileImages, ImageDataset, ImageLoader, Images
from adjoined.data.info import DataInfo
from adjoined.data.labels import open_labels
from adjoined.data.on_device import DeviceLoader
from adjoined.data.preprocessing import Transform, evaluation_transform
from adjoined.data.sampling import EpochSampler, choose_per_class
from adjoined.data.scanning import as_text
from adjoined.data.segmentation import open_segmentation
from adjoined.data.settings import DataSettings, check, folder_of
from adjoined.data.source import PHOTO_RATIO, PHOTO_SIZE, Source
from adjoined.errors import AdjoinedError, did_you_mean
from adjoined.kinds import CLASSES, OWN, in_brief, kind_of
from adjoined.printable import counted, printable

_SETS: dict[str, Callable[[Path], Source]] = {
    "digits": open_digits,
    "fashion-mnist": open_fashion_mnist,
    "cifar10": open_cifar10,
    "cifar100": open_cifar100,
    "imagenette": open_imagenette,
    "imagenet": open_imagenet,
}
_OWN: dict[str, Callable[[Path], Source]] = {
    "folder": open_folder,
    "segmentation": open_segmentation,
    "labels": open_labels,
}


@dataclass(frozen=True)
class ImageData:
    """An opened data set.

    Args:
        info: its classes, and how its images are prepared.
        train: the augmented training images: `train[index, seed]`.
        val: the validation images.
        val_name: their description in tables: "test set", "held-out split, seed 0".
        settings: the settings that it was opened with.
        vary: builds the augmentation of the training images, for how they are prepared.
        class_folders: the folders of the classes, if every class has a folder.
        left_out: kinds and counts of files other than images; "" if there are none.
        skipped: names of the damaged files that were left out.
    """

    info: DataInfo
    train: ImageDataset
    val: ImageDataset
    val_name: str
    settings: DataSettings
    vary: Callable[[DataInfo], Transform]
    shifted: bool = False
    """Whether the augmentation consists only of shifts and flips."""
    splits: bool = False
    """Whether the validation images are a held-out part of the training images."""
    class_folders: tuple[str, ...] = ()
    left_out: str = ""
    skipped: tuple[str, ...] = ()

    def normalised(self, mean: tuple[float, ...], std: tuple[float, ...]) -> ImageData:
        """Return the same images with another normalisation; with their own, if the other is not for their channels."""
        if len(mean) != self.info.channels:
            return self
        info = replace(self.info, mean=mean, std=std)
        return replace(
            self,
            info=info,
            train=type(self.train)(self.train.images, self.vary(info), mean, std),
            val=type(self.val)(self.val.images, evaluation_transform(info), mean, std),
            settings=replace(self.settings, normalisation=(mean, std)),
        )

    def naming_known(self, trained_on: Iterable[tuple[int, int]] | None = None) -> ImageData:
        """Return the same images; `val_name` tells how many validation images have the contents of training images.

        Args:
            trained_on: the size in bytes and the checksum of each file trained on; those of `train` by default.
        """
        if not isinstance(self.train.images, FileImages):
            return self
        count = self.count_known(self.train.images.contents() if trained_on is None else trained_on)
        return replace(self, val_name=f"{self.val_name}, {count} of them also trained on") if count else self

    def count_known(self, trained_on: Iterable[tuple[int, int]]) -> int:
        """Return how many validation images have these contents, sizes and checksums of files; 0 if not in files."""
        if not isinstance(self.val.images, FileImages):
            return 0
        known = set(trained_on)
        return sum(each in known for each in self.val.images.contents())

    def device_loader(self, device: torch.device, *, seed: int, rank: int = 0, world_size: int = 1) -> DeviceLoader:
        """Return a loader of training batches that stay on a device and are augmented there.

        Raises:
            AdjoinedError: the images are augmented by more than shifts and flips.
        """
        self.check_on_device()
        augment, shift = self.settings.augment, self.settings.shift
        size = self.info.image_size
        return DeviceLoader(
            self.train,
            EpochSampler(len(self.train), seed=seed, rank=rank, world_size=world_size),
            batch_size=self.settings.batch_size,
            device=device,
            flip=augment != "none",
            shift=0 if augment != "standard" else size // 8 if shift is None else shift,
        )

    def check_on_device(self) -> None:
        """Raise AdjoinedError if training images are augmented by more than shifts and flips."""
        if not self.shifted:
            raise AdjoinedError(
                "the images of this data set cannot be augmented batch by batch",
                where="--data-on-device",
                expected="cifar10, cifar100 or fashion-mnist",
                got=self.settings.name,
            )

    def in_words(self) -> str:
        """Return a few lines on the images: their number, the settings that select them, and what was left out."""
        settings, info = self.settings, self.info
        per_class = " per class" if info.task == "classification" else ""
        limit = "" if settings.limit is None else f" (--limit {settings.limit}{per_class})"
        split = f"; --val-fraction {settings.val_fraction:g}, --split-seed {settings.split_seed}" if self.splits else ""
        classes = printable(in_brief(info.class_names, info.task))
        mean, std = (", ".join(f"{value:.4g}" for value in each) for each in (info.mean, info.std))
        source = "the model's" if settings.normalisation == (info.mean, info.std) else "the data's"
        lines = [
            f"{printable(as_text(settings.name))}: {classes}, {info.image_size} px (--image-size)",
            f"{counted(len(self.train), 'training image')}{limit}",
            f"{counted(len(self.val), 'validation image')} ({self.val_name}{split})",
            f"normalised by mean {mean} and std {std} ({source})",
        ]
        if unseen := self.train.images.unseen():
            names = ", ".join(printable(info.class_names[each]) for each in unseen[:3])
            lines.append(f"{CLASSES[info.task]} in no training image: {len(unseen)} ({names})")
        if self.skipped:
            names = ", ".join(map(printable, self.skipped[:3]))
            lines.append(f"damaged images left out: {len(self.skipped)} ({names})")
        if self.left_out:
            lines.append(f"not read: {self.left_out}")
        return "\n".join(lines)

    def check(self, *, training: bool = True) -> None:
        """Open every image and mask once; raise AdjoinedError if one is damaged, not an image, too large, or wrong.

        Args:
            training: whether training images are opened, too, or only validation images.
        """
        parts = [part.images for part in (self.train, self.val)[0 if training else 1 :]]
        check_images(parts, self.info.resize)
        for images in parts:
            images.check_targets()

    def train_loader(self, *, seed: int, rank: int = 0, world_size: int = 1, drop_last: bool = True) -> ImageLoader:
        """Return a loader of training batches, float32 (N, C, H, W) and int64 (N,).

        Its batches are a pure function of (seed, epoch, rank, world_size), whatever the number of workers, and torch's
        global generator is not changed. `loader.sampler.set_epoch(e)` sets the epoch.

        Args:
            seed: seed of the order and of the augmentation.
            rank: rank of this process.
            world_size: number of processes; they share each epoch, padded to equal length.
            drop_last: drop an incomplete last batch, unless it is the only one.
        """
        sampler = EpochSampler(len(self.train), seed=seed, rank=rank, world_size=world_size)
        size = self.settings.batch_size
        return ImageLoader(
            self.train,
            sampler,
            batch_size=size,
            workers=self.settings.workers,
            drop_last=drop_last and len(sampler) >= size,
        )

    def val_loader(self, *, rank: int = 0, world_size: int = 1) -> ImageLoader:
        """Return a loader of all validation batches, in order; with several processes, padded to equal length.

        A single process sees every image once. Of w processes, up to w - 1 see one of the first images again, since
        processes with unequal numbers of batches would deadlock. The loader's `own` tells how many are not padding.
        """
        sampler = EpochSampler(len(self.val), seed=0, rank=rank, world_size=world_size, shuffle=False)
        size, workers = self.settings.eval_batch_size, self.settings.workers
        return ImageLoader(self.val, sampler, batch_size=size, workers=workers, drop_last=False)


def open_data(settings: DataSettings, *, skipped: Collection[str] | None = None) -> ImageData:
    """Open the data set named in `settings`; nothing is downloaded.

    Args:
        settings: the choice of images, their preparation and loading.
        skipped: names of the damaged files, if known, so that no file is opened to find them.

    Raises:
        AdjoinedError: a setting is out of range; the data set is unknown, missing or damaged; a class is empty.

    Example:
        >>> data = open_data(DataSettings(batch_size=32))
        >>> data.val_name, len(data.train), len(data.val)
        ('held-out split, seed 0', 1438, 359)
        >>> images, labels = next(iter(data.train_loader(seed=0)))
        >>> images.shape, labels.shape
        (torch.Size([32, 1, 8, 8]), torch.Size([32]))
    """
    check(settings)
    source = open_source(settings)
    info = _info(settings, source)
    if settings.bad_images == "skip":
        skipped = skip_damaged(source, settings, info.resize, skipped)
    train, val, val_name = source.train, source.val, source.val_name
    if val is None:
        train, val = _hold_out(source, settings)
        val_name = f"{val_name}, seed {settings.split_seed}"
    limit = settings.limit
    if limit is not None:
        train = train.subset(choose_per_class(source.strata(train), lambda n: min(n, limit), settings.split_seed))
    vary = partial(_variation, source, settings)
    return ImageData(
        info=info,
        train=source.dataset(train, vary(info), info.mean, info.std),
        val=source.dataset(val, evaluation_transform(info), info.mean, info.std),
        val_name=val_name,
        settings=settings,
        vary=vary,
        shifted=source.shifted,
        splits=source.val is None,
        class_folders=source.class_folders,
        left_out=str(source.left_out),
        skipped=tuple(skipped or ()),
    )


def _variation(source: Source, settings: DataSettings, info: DataInfo) -> Transform:
    if settings.shift is None:
        return source.vary(info, settings.augment)
    if not source.shifted:
        raise AdjoinedError(
            "the augmentation of this data set has no shifts",
            where="--shift",
            expected="cifar10, cifar100 or fashion-mnist",
            got=settings.name,
        )
    return source.vary(info, settings.augment, shift=settings.shift)


def open_source(settings: DataSettings) -> Source:
    """Return the labelled images of the data set named in `settings`; errors as for `open_data`."""
    kind, folder = kind_of(settings.name), folder_of(settings.name)
    if kind is not None and folder is not None:
        return _OWN[kind](folder)
    if settings.name not in _SETS:
        raise AdjoinedError(
            "unknown data set",
            where=f"data set {settings.name!r}",
            expected=f"one of {', '.join(_SETS)}, {', '.join(f'{kind}:PATH' for kind in OWN)}",
            fix=did_you_mean(
                settings.name, _SETS, "For your own images write folder:PATH, segmentation:PATH or labels:FILE.csv."
            ),
        )
    return _SETS[settings.name](Path(os.path.expanduser(settings.root)))


def _info(settings: DataSettings, source: Source) -> DataInfo:
    size = settings.image_size or source.size or PHOTO_SIZE
    folder = folder_of(settings.name)
    mean, std = settings.normalisation or (source.mean, source.std)
    if len(mean) != source.channels:
        mean, std = source.mean, source.std
    return DataInfo(
        # A full path would be private.
        name=settings.name if folder is None else f"{kind_of(settings.name)}:{folder.absolute().name}",
        num_classes=len(source.class_names),
        class_names=source.class_names,
        channels=source.channels,
        image_size=size,
        resize=size if source.size or source.task == "segmentation" else round(size / PHOTO_RATIO),
        mean=mean,
        std=std,
        task=source.task,
    )


def skip_damaged(
    source: Source, settings: DataSettings, resize: int, known: Collection[str] | None = None
) -> tuple[str, ...]:
    """Remove the damaged files from a source, and return their names."""
    bad: tuple[str, ...] = ()
    for part in ("train", "val"):
        images = getattr(source, part)
        if images is not None:
            whole, found = whole_ones(images, resize, known)
            setattr(source, part, whole)
            bad += found
            count, name = source.rarest(whole)
            if found and not count:
                of = "" if name is None else " of the class"
                raise AdjoinedError(
                    f"no image{of} can be read, or there is none; {len(bad)} files are damaged",
                    where=_place(settings, name),
                    got=bad[0],
                )
    return bad


def _hold_out(source: Source, settings: DataSettings) -> tuple[Images, Images]:
    count, name = source.rarest(source.train)
    if count < 2:
        raise AdjoinedError(
            "no image can be held out of " + ("only one" if name is None else "a class with only one"),
            where=_place(settings, name),
            expected="at least 2 images",
            fix="Add images." if name is None else "Add images, or remove the class.",
        )
    held_out = choose_per_class(
        source.strata(source.train), lambda n: min(max(1, round(settings.val_fraction * n)), n - 1), settings.split_seed
    )
    return source.train.subset(~held_out), source.train.subset(held_out)


def _place(settings: DataSettings, class_name: str | None) -> str:
    return f"data set {settings.name}" if class_name is None else f"class {class_name} of data set {settings.name}"
