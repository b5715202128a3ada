"""Images with a mask each, in the folder layouts that users of torchvision and segmentation_models_pytorch have.

Shape legend: N images, K classes, H and W height and width in pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adjoined.data.augmentation import masked_photo_transform
from adjoined.data.folders import TRAIN, VAL
from adjoined.data.images import FileImages, ImageDataset, sampled_checksum
from adjoined.data.levels import upright
from adjoined.data.preprocessing import opened_image, quiet
from adjoined.data.scanning import LeftOut, images_below
from adjoined.data.source import Source
from adjoined.errors import AdjoinedError
from adjoined.files import read_utf8
from adjoined.printable import counted

if TYPE_CHECKING:
    from PIL.Image import Image

IGNORED = 255
"""Value of a mask's pixels that belong to no class."""
NOT_COUNTED = -100
"""The same pixels in a target: what cross-entropies leave out."""
NAMES = "classes.txt"
"""File with the name of a class in each line, in the order of the values."""
_IMAGES, _MASKS = ("images", "image", "imgs", "JPEGImages"), ("masks", "mask", "annotations", "SegmentationClass")
_MODES = ("1", "L", "P", "I", "I;16", "I;16B")
_LOSSY = ("JPEG", "MPO", "AVIF", "jpeg", "tiff_jpeg", "webp")
"""Names of formats and of compressions in TIFF files, as in Pillow."""
_values: dict[str, dict[int, str]] = {}  # the stages of a run have the same masks


class MaskedImages(FileImages):
    """Images in files, with a mask in a file each.

    Args:
        folder: folder of the files.
        names: paths of the images below `folder`.
        masks: paths of the masks below `folder`, in the same order.
        num_classes: K; mask values are 0 to K - 1, or 255 for pixels that do not count.
    """

    def __init__(self, folder: Path, names: Sequence[str], masks: Sequence[str], num_classes: int) -> None:
        sizes = [os.path.getsize(folder / name) for name in names]
        super().__init__(folder, names, torch.zeros(len(names), dtype=torch.int64), 3, sizes)
        self.masks, self.num_classes = np.array(masks, dtype=object), num_classes
        self._seen: set[int] | None = None

    def target(self, index: int) -> Tensor:
        """Return the mask of one image, int64 (H, W), 255 where a pixel does not count.

        Raises:
            AdjoinedError: the file is damaged, is not a mask of class indices, or does not fit the image.
        """
        place = os.path.join(self.folder, self.masks[index])
        mask = read_mask(place)
        wrong = np.unique(mask[((mask < 0) | (mask >= self.num_classes)) & (mask != IGNORED)])
        if len(wrong):
            raise AdjoinedError(
                "the mask has a value that is not a class",
                where=place,
                expected=f"0 to {self.num_classes - 1}, or {IGNORED} for pixels that do not count",
                got=int(wrong[0]),
            )
        return torch.from_numpy(mask)

    def subset(self, chosen: Tensor) -> Self:
        """Return those for which `chosen`, bool (N,), is True."""
        subset = super().subset(chosen)
        subset.masks, subset._seen = self.masks[chosen.numpy()], None
        return subset

    def identity(self) -> str:
        """Return a digest of the files' names below the folder and of their sizes."""
        digest = hashlib.sha256(super().identity().encode())
        for name in self.masks:
            digest.update(b"%d %s\0" % (os.path.getsize(self.folder / name), os.fsencode(name)))
        return digest.hexdigest()

    def checksums(self) -> NDArray[np.uint32]:
        """Return a checksum of each image's file and its mask's, uint32 (N,); the files are read once."""
        masks = [sampled_checksum(os.path.join(self.folder, name)) for name in self.masks]
        return super().checksums() ^ np.array(masks, dtype=np.uint32)

    def check_targets(self) -> None:
        """Read every mask.

        Raises:
            AdjoinedError: one is damaged, has a wrong value, or does not fit its image; or no pixel of all has a class.
        """
        seen: set[int] = set()
        for index in range(len(self.labels)):
            mask = self.target(index)
            seen.update(_values_of(mask.numpy()))
            with quiet(), opened_image(self.place(index)) as image:
                width, height = upright(image).size
            _check_size(self, index, tuple(mask.shape), (height, width))
        if seen == {IGNORED}:
            raise _without_classes([os.path.join(self.folder, mask) for mask in self.masks])
        self._seen = seen

    def unseen(self) -> list[int]:
        """Return the classes that `check_targets` has not seen in any mask; none before it has been called."""
        return [] if self._seen is None else sorted(set(range(self.num_classes)) - self._seen)


class MaskedDataset(ImageDataset):
    """Images with their masks, augmented together: float32 (C, H, W) and int64 (H, W), -100 where nothing counts."""

    def one(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image, uint8 (C, size, size), and its mask, int64 (size, size)."""
        from torchvision import tv_tensors

        images = self.images
        assert isinstance(images, MaskedImages)
        image, mask = images.pixels(index), images.target(index)
        _check_size(images, index, tuple(mask.shape), tuple(image.shape[1:]))
        image, mask = self.augmented(index, tv_tensors.Image(image), tv_tensors.Mask(mask))
        mask = mask.as_subclass(Tensor)
        return image.as_subclass(Tensor), torch.where(mask == IGNORED, NOT_COUNTED, mask)


def _check_size(images: MaskedImages, index: int, mask: tuple[int, ...], image: tuple[int, ...]) -> None:
    if mask != image:
        raise AdjoinedError(
            "the mask does not have the size of its image",
            where=os.path.join(images.folder, images.masks[index]),
            expected=f"{image[1]} x {image[0]} pixels, like {images.name(index)}",
            got=f"{mask[1]} x {mask[0]}",
        )


def read_mask(path: str) -> np.ndarray:
    """Return the class indices of a mask file, int64 (H, W); of a palette image the indices, not the colours.

    Raises:
        AdjoinedError: the file is damaged, lossy, or has colours or floating-point values.
    """
    with quiet(), opened_image(path) as image:
        if how := _changed_by(image):
            raise AdjoinedError(
                "the values of the mask are not read as they were saved",
                where=path,
                expected="values of 8 or 16 bits, compressed without loss",
                got=how,
                fix="Save it as a PNG file with 8 bits per pixel.",
            )
        if image.mode not in _MODES:
            raise AdjoinedError(
                "the mask does not have one integer per pixel",
                where=path,
                expected="a grey or palette image",
                got=f"an image of mode {image.mode}",
                fix="Save class indices, not colours.",
            )
        return np.asarray(upright(image)).astype(np.int64)


def _changed_by(image: Image) -> str:
    """Return what changes the values of a mask between saving and reading it, or ""."""
    if image.format in _LOSSY or image.info.get("compression") in _LOSSY:
        return f"{image.format}, with loss"
    args = image.tile[0].args if image.tile else ""  # pyright: ignore
    layout, *most = args if isinstance(args, tuple) else (args,)
    if str(layout).startswith("L;"):  # Pillow scales 2 and 4 bits to 8, and inverts where 0 is white
        return f"{image.format} of fewer than 8 bits, or with 0 as white"
    if image.format == "PPM" and most and image.mode != "1" and most[-1] not in (255, 65535):
        return f"{most[-1]} as white"
    return ""


def open_segmentation(folder: Path) -> Source:
    """Return the images of `folder` with their masks; an image and its mask have the same name except for the suffix.

    Supported layouts are train/images, train/masks; images/train, masks/train; train, trainannot (each also with val,
    valid, validation or test instead of train); and images, masks, of which a fraction is held out. Instead of images
    and masks, the folders may be called JPEGImages and SegmentationClass, as in Pascal VOC. The classes are named in
    classes.txt, one per line; without it they are the values from 0 to the largest one in the masks.

    Raises:
        AdjoinedError: the folder has none of these layouts; an image lacks its mask, or a mask its image; the masks
            have only 0 and 255; or, without classes.txt, a value below the largest one does not occur in them.
    """
    if not folder.is_dir():
        raise AdjoinedError(
            "no such folder",
            where=f"data folder {folder.absolute()}",
            fix="If it has moved, give its new location: --data segmentation:PATH.",
        )
    left_out = LeftOut()
    found = {name: pair for name, names in (("train", TRAIN), ("val", VAL)) if (pair := _part(folder, names))}
    whole = next(_pairs(folder, ((a, b) for a in _IMAGES for b in _MASKS)), None)
    if found and len(found) < 2:
        raise AdjoinedError(
            f"there are only {' and '.join(next(iter(found.values())))}",
            where=f"data folder {folder.absolute()}",
            expected="images and masks both to train and to validate on, or one folder of each, to be split",
        )
    if not found and whole is None:
        raise AdjoinedError(
            "no images with masks",
            where=f"data folder {folder.absolute()}",
            expected="the folders images/ and masks/, or train/ and val/ with both, or images/train, masks/train ...",
        )
    pairs = {
        name: _matched(folder, pair[0], pair[1], left_out) for name, pair in (found or {"train": whole}).items() if pair
    }
    names = _class_names(folder, [mask for _, masks in pairs.values() for mask in masks])
    parts = {name: MaskedImages(folder, images, masks, len(names)) for name, (images, masks) in pairs.items()}
    return Source(
        train=parts["train"],
        val=parts.get("val"),
        val_name=f"folder {found['val'][0]}/" if found else Source.val_name,
        class_names=names,
        vary=masked_photo_transform,
        left_out=left_out,
        task="segmentation",
        dataset=MaskedDataset,
    )


def _part(folder: Path, names: Sequence[str]) -> tuple[str, str] | None:
    """Return the folders of the images and of the masks of training or validation."""
    both = [(a, b) for a in _IMAGES for b in _MASKS]
    for name in names:
        inside = [(f"{name}/{a}", f"{name}/{b}") for a, b in both]
        around = [(f"{a}/{name}", f"{b}/{name}") for a, b in both]
        if pair := next(_pairs(folder, [*inside, *around, (name, f"{name}annot")]), None):
            return pair
    return None


def _pairs(folder: Path, candidates: Any) -> Any:
    return ((a, b) for a, b in candidates if (folder / a).is_dir() and (folder / b).is_dir())


def _matched(folder: Path, images: str, masks: str, left_out: LeftOut) -> tuple[list[str], list[str]]:
    """Return the paths of images and masks below the folder, pair by pair."""
    by_stem: list[dict[str, str]] = []
    for inside in (images, masks):
        stems: dict[str, str] = {}
        for path in images_below(folder / inside, left_out):
            name = os.path.relpath(path, folder)
            stem = os.path.splitext(os.path.relpath(path, folder / inside))[0]
            if stem in stems:
                raise AdjoinedError("two files have the same name", where=folder / stems[stem], got=name)
            stems[stem] = name
        by_stem.append(stems)
    for one, other, what in ((*by_stem, "mask"), (*reversed(by_stem), "image")):
        if alone := sorted(one.keys() - other.keys()):
            raise AdjoinedError(
                f"there is no {what} for it" + (f", nor for {len(alone) - 1} others" if len(alone) > 1 else ""),
                where=folder / one[alone[0]],
                expected=f"a file {alone[0]}.* in {masks if what == 'mask' else images}/",
            )
    if not by_stem[0]:
        raise AdjoinedError("no images", where=folder / images, got=str(left_out) or "nothing")
    order = sorted(by_stem[0])
    return [by_stem[0][stem] for stem in order], [by_stem[1][stem] for stem in order]


def _class_names(folder: Path, masks: Sequence[str]) -> tuple[str, ...]:
    if (folder / NAMES).is_file():
        names = _names_in(folder / NAMES)
        _check_more_than_one(folder, masks)
        return names
    found = dict(_values_in(folder, masks))
    ignored = found.pop(IGNORED, None)
    if not found:
        raise _without_classes([str(folder / mask) for mask in masks])
    values = sorted(found)
    if values == [0] and ignored is not None:
        raise _black_and_white(folder / ignored)
    missing, strange = next((pair for pair in enumerate(values) if pair[0] != pair[1]), (None, 0))
    if missing is not None or len(found) < 2:
        raise AdjoinedError(
            "the masks have only one class" if missing is None else "the values of the masks are not class indices",
            where=folder / found[strange],
            expected=f"values from 0 without gaps, and {IGNORED} for pixels that do not count",
            got="only 0" if missing is None else f"{strange}, but no mask has {missing}" if strange > 0 else strange,
            fix=f"Save class indices; or name all classes in {NAMES}, one per line.",
        )
    return tuple(map(str, values))


def _without_classes(masks: Sequence[str]) -> AdjoinedError:
    return AdjoinedError(
        "no pixel of the masks belongs to a class",
        where=masks[0] + (f" and {counted(len(masks) - 1, 'other mask')}" if len(masks) > 1 else ""),
        expected="some pixels with a class both in training and in validation masks",
        got=f"only {IGNORED}",
        fix=f"Save the values of the classes; {IGNORED} is for pixels without one.",
    )


def _check_more_than_one(folder: Path, masks: Sequence[str]) -> None:
    """Raise AdjoinedError if all masks are of 0 and 255; read them only up to the first with another value."""
    found: dict[int, str] = {}
    for mask in masks:
        for value in _values_of(read_mask(str(folder / mask))):
            found.setdefault(value, mask)
        if found.keys() - {0, IGNORED}:
            return
    if len(found) == 2:
        raise _black_and_white(folder / found[IGNORED])


def _black_and_white(mask: Path) -> AdjoinedError:
    return AdjoinedError(
        "the masks have only one class",
        where=mask,
        expected=f"values from 0 without gaps; {IGNORED} marks pixels that do not count",
        got=f"only 0 and {IGNORED}",
        fix=f"Save the class that is {IGNORED} as 1.",
    )


def _names_in(path: Path) -> tuple[str, ...]:
    """Return the names of the classes, a name in each line."""
    lines = [line.strip() for line in read_utf8(path, "the names of the classes").rstrip().splitlines()]
    names: dict[str, int] = {}
    for row, name in enumerate(lines, start=1):
        if not name:
            raise AdjoinedError("a class has no name", where=f"{path}, row {row}", expected="a name in each line")
        if name in names:
            raise AdjoinedError(
                "two classes have the same name", where=f"{path}, rows {names[name]} and {row}", got=name
            )
        names[name] = row
    if not 2 <= len(names) <= IGNORED:
        raise AdjoinedError(
            "the number of classes is out of range",
            where=path,
            expected=f"2 to {IGNORED} lines, with a name in each",
            got=len(names),
        )
    return tuple(names)


def _values_of(mask: NDArray[np.int64]) -> list[int]:
    """Return the values in a mask, in order: by counting, as sorting millions of pixels takes far longer."""
    if mask.min() < 0 or mask.max() > 0xFFFF:
        return np.unique(mask).tolist()
    return np.flatnonzero(np.bincount(mask.ravel())).tolist()


def _values_in(folder: Path, masks: Sequence[str]) -> dict[int, str]:
    """Return every value in the masks, with the first file that has it."""
    stats = [os.stat(folder / mask) for mask in masks]
    files = [(mask, stat.st_size, stat.st_mtime_ns) for mask, stat in zip(masks, stats, strict=True)]
    key = hashlib.sha256(repr((str(folder.absolute()), files)).encode()).hexdigest()
    if key not in _values:
        found: dict[int, str] = {}
        for mask in masks:
            for value in _values_of(read_mask(str(folder / mask))):
                found.setdefault(value, mask)
        _values[key] = found
    return _values[key]
