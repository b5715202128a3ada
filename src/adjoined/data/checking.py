"""Integrity check of image files: all are opened once before a long run; of large data sets most are not decoded."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import torch

from adjoined.data.images import FileImages, Images
from adjoined.data.levels import plain
from adjoined.data.preprocessing import check_pixels, opened_image, quiet
from adjoined.data.scanning import as_text
from adjoined.errors import AdjoinedError
from adjoined.printable import counted

if TYPE_CHECKING:
    from PIL.Image import Image

_THREADS = 8  # they wait for the disk together
DECODED = 1 << 30
"""Data sets of up to this many bytes are decoded, which takes seconds; of larger ones, files that may be cut off."""
_RANGE_IN_THE_VALUES = ("I", "F")  # modes in which only the values tell what white is

_found: dict[tuple[str, str, int, bool], tuple[AdjoinedError | None, ...]] = {}  # stages share their images


def check_images(parts: Sequence[Images], resize: int) -> None:
    """Open every image file once, and decode it if all files together are small enough.

    Args:
        parts: the images; those in memory are skipped.
        resize: the shorter side after resizing, pixels.

    Raises:
        AdjoinedError: a file is damaged or truncated, is not an image, or has too many pixels; the error names the
            first and counts the others.
    """
    files = [part for part in parts if isinstance(part, FileImages)]
    decoded = sum(int(part.sizes.sum()) for part in files) <= DECODED
    faults = [fault for part in files for fault in _faults(part, resize, decoded=decoded) if fault]
    if faults:
        first, others = faults[0], len(faults) - 1
        more = f"; and {counted(others, 'other')} like it" if others else ""
        fix = "Replace or remove such files, or leave them out with --bad-images skip."
        raise first.but(what=f"{first.what}{more}", fix=fix)


def whole_ones(images: Images, resize: int, known: Collection[str] | None = None) -> tuple[Images, tuple[str, ...]]:
    """Return the readable images, and the names of those left out: the `known` ones, or else those found bad.

    All are decoded, whatever their size: a run that leaves out bad images must not stop at one.
    """
    if not isinstance(images, FileImages):
        return images, ()
    names = [as_text(images.name(index)) for index in range(len(images.labels))]
    known = set(known) if known is not None else None
    if known is None:
        good = [fault is None for fault in _faults(images, resize, decoded=True)]
    else:
        good = [name not in known for name in names]
    left_out = tuple(name for name, whole in zip(names, good, strict=True) if not whole)
    return images.subset(torch.tensor(good, dtype=torch.bool)), left_out


def _faults(images: FileImages, resize: int, *, decoded: bool) -> tuple[AdjoinedError | None, ...]:
    key = str(images.folder.absolute()), images.identity(), resize, decoded
    if key not in _found:
        with quiet(), ThreadPoolExecutor(_THREADS) as threads:
            places = (images.place(index) for index in range(len(images.labels)))
            _found[key] = tuple(threads.map(lambda place: _fault(place, resize, decoded), places))
    return _found[key]


def _fault(path: str, resize: int, decoded: bool) -> AdjoinedError | None:
    try:
        with opened_image(path) as image:
            check_pixels(*image.size, resize)
            if image.mode in _RANGE_IN_THE_VALUES:
                plain(image)
            elif image.format == "PNG":
                image.verify()  # the checksums of all its parts
            elif decoded or not _ends_where_it_should(image, path):
                image.draft("L", (1, 1))  # a JPEG is decoded to an eighth of its size, from all of its data
                image.load()
    except AdjoinedError as error:
        return error.at(path)
    return None


def _ends_where_it_should(image: Image, path: str) -> bool:
    """Return whether a file is certainly not truncated; if it may be, or is of another format, it must be decoded."""
    if image.format not in ("JPEG", "MPO"):
        return False
    with open(path, "rb") as file:
        file.seek(-2, os.SEEK_END)
        return file.read() == b"\xff\xd9"
