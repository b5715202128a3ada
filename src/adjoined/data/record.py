"""The record of the images that a run started with, so that it resumes with the same ones or reports changes."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch

from adjoined.atomic import write_whole
from adjoined.data.folders import TRAIN
from adjoined.data.images import FileImages, Images
from adjoined.data.opening import ImageData, open_data
from adjoined.data.scanning import as_text
from adjoined.data.settings import DataSettings, folder_of
from adjoined.errors import AdjoinedError
from adjoined.files import open_regular
from adjoined.json_files import read_versioned, write_json
from adjoined.kinds import kind_of
from adjoined.schema import conform

FORMAT = 1
_KIND = "the record of a run's images"
_LONGEST_LINE = 1 << 16  # bytes
_SHOWN = 3


class _File(NamedTuple):
    part: str
    """train or val."""
    size: int
    """Bytes."""
    checksum: int
    """Of the contents."""


_Files = dict[str, _File]  # by name


@dataclass(frozen=True)
class Part:
    """The training or the validation images."""

    images: int
    sha256: str
    """Digest of the files' names and sizes, in order, or of pixels and labels in memory."""
    contents: str
    """Digest of the files' checksums, in order; "" for images in memory."""

    @classmethod
    def of(cls, images: Images) -> Part:
        """Return the record of one part."""
        contents = ""
        if isinstance(images, FileImages):
            contents = hashlib.sha256(images.checksums().astype("<u4").tobytes()).hexdigest()
        return cls(len(images.labels), images.identity(), contents)


@dataclass(frozen=True)
class DataRecord:
    """The images that a run's settings selected when it started."""

    name: str
    class_names: tuple[str, ...]
    class_folders: tuple[str, ...]
    """Names of the class folders, if every class has a folder."""
    train: Part
    val: Part
    skipped: tuple[str, ...]
    """Damaged files that were left out."""

    @classmethod
    def of(cls, data: ImageData) -> DataRecord:
        """Return the record of opened images."""
        train, val = Part.of(data.train.images), Part.of(data.val.images)
        folders = tuple(map(as_text, data.class_folders))
        skipped = tuple(map(as_text, data.skipped))
        return cls(data.info.name, data.info.class_names, folders, train, val, skipped)

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """Read a record.

        Raises:
            AdjoinedError: the file is missing, damaged, or of another program or version.
        """
        return conform(cls, read_versioned(path, _KIND, format="adjoined-data", version=FORMAT), where=path)

    def write(self, path: Path, files: Path, data: ImageData) -> None:
        """Write the record, and beside it the list of the images' files, if they are in files."""
        if isinstance(data.train.images, FileImages):
            lines = "".join(
                f"{each.part}\t{each.size} {each.checksum:08x}\t{name}\n" for name, each in _listed(data).items()
            )
            write_whole(files, lambda file: file.write(gzip.compress(lines.encode(), mtime=0)))
        write_json(path, {"format": "adjoined-data", "version": FORMAT, **asdict(self)})

    def same_images(self, other: DataRecord) -> bool:
        """Return whether another record is of the same images, with the same labels and the same split."""
        return (self.class_names, self.train, self.val) == (other.class_names, other.train, other.val)

    def in_words(self) -> str:
        """Return the numbers of images."""
        return f"{self.train.images} images to train on, {self.val.images} to validate on"

    def fits(self, data: ImageData, *, training: bool = True) -> bool:
        """Return whether these are the same images, with the same labels and the same split.

        Args:
            data: the current images.
            training: whether the contents of training images are compared, too, or only their names and sizes.
        """
        if self.class_names != data.info.class_names:
            return False
        parts = (self.train, data.train), (self.val, data.val)
        if any(known.sha256 != now.images.identity() for known, now in parts):  # without reading the files
            return False
        return all(known == Part.of(now.images) for known, now in parts[0 if training else 1 :])

    def check(self, data: ImageData, files: Path, *, training: bool = True) -> None:
        """Raise AdjoinedError, listing the changes, if these are not the same images.

        Args:
            data: the current images.
            files: the list of files beside the record.
            training: as in `fits`.
        """
        if self.fits(data, training=training):
            return
        raise AdjoinedError(
            f"the images are not those that the run started with: {self._difference(data, files)}",
            where=f"data {data.settings.name}",
            expected=self.in_words(),
            got=f"{len(data.train)} and {len(data.val)}",
            fix=f"Restore them, or give their new location (--data {kind_of(self.name) or 'folder'}:PATH). "
            "For other images start a new run.",
        )

    def found(self, settings: DataSettings) -> DataSettings:
        """Return the settings with the current place of the images: if it has moved, `root` or a folder in it."""
        place, kind, root = folder_of(settings.name), kind_of(settings.name), Path(settings.root)
        if place is None or place.exists() or not root.is_dir():
            return settings
        for folder in (root, *sorted(each for each in root.iterdir() if each.is_dir())):
            # Looking for one file or class first avoids scanning everything in the folder.
            if kind == "labels":
                candidate = folder / place.name
                likely = candidate.is_file()
            else:
                candidate = folder
                likely = kind == "segmentation" or self._has_first_class(folder)
            if not likely:
                continue
            moved = replace(settings, name=f"{kind}:{candidate.absolute()}")
            with suppress(AdjoinedError):  # it holds something else
                if self.fits(open_data(moved, skipped=self.skipped)):
                    return moved
        return settings

    def _has_first_class(self, folder: Path) -> bool:
        folders = self.class_folders
        return bool(folders) and any((folder / part / folders[0]).is_dir() for part in ("", *TRAIN))

    def _difference(self, data: ImageData, files: Path) -> str:
        found = []
        known, now = set(self.class_names), set(data.info.class_names)
        gone = [name for name in self.class_names if name not in now]
        new = [name for name in data.info.class_names if name not in known]
        if len(gone) == len(new) == 1:
            found.append(f"class {gone[0]} is now called {new[0]}")
        elif gone or new:
            found += [
                f"{what} {_some(names)}" for what, names in (("without class", gone), ("with class", new)) if names
            ]
        elif self.class_names != data.info.class_names:
            found.append("the classes are in another order")
        if isinstance(data.train.images, FileImages) and files.is_file():
            found += _changes(_read_files(files), _listed(data))
        return "; ".join(found) or "their pixels, labels or order differ"


def trained_on(files: Path) -> Iterator[tuple[int, int]]:
    """Yield the size in bytes and the checksum of each training image in a run's list of files.

    Raises:
        AdjoinedError: the list is damaged.
    """
    for each in _read_files(files).values():
        if each.part == "train":
            yield each.size, each.checksum


def changed_meanwhile(files: Path, data: ImageData) -> str:
    """Return which files of a run have other contents than at its start, counted and named; "" if none has.

    Args:
        files: the list of files beside the run's record.
        data: the images that the run reads; their files are read again.

    Raises:
        AdjoinedError: the list is damaged, or an image is gone.
    """
    if not files.is_file():
        return ""
    before, now = _read_files(files), _listed(data, again=True)
    changed = [name for name, each in now.items() if name in before and before[name].checksum != each.checksum]
    return f"{len(changed)} ({_some(changed)})" if changed else ""


def _changes(before: _Files, now: _Files) -> list[str]:
    """Return counts and examples of files that are new, gone, renamed, changed, or on the other side of the split."""
    gone, added = ([name for name in ones if name not in others] for ones, others in ((before, now), (now, before)))
    by_size: dict[int, list[str]] = {}
    for name in reversed(gone):
        by_size.setdefault(before[name].size, []).append(name)
    # A new file of the same size counts as the missing one, renamed.
    renamed = {name: by_size[now[name].size].pop() for name in added if by_size.get(now[name].size)}
    taken = set(renamed.values())
    both = [name for name in now if name in before]
    same_size = [name for name in both if before[name].size == now[name].size]
    counted = (
        ("added", [name for name in added if name not in renamed]),
        ("removed", [name for name in gone if name not in taken]),
        ("renamed", list(renamed)),
        ("of another size", [name for name in both if before[name].size != now[name].size]),
        ("of the same size with other contents", [n for n in same_size if before[n].checksum != now[n].checksum]),
        ("on the other side of the split", [name for name in both if before[name].part != now[name].part]),
    )
    return [f"{len(names)} {what} ({_some(names)})" for what, names in counted if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _listed(data: ImageData, *, again: bool = False) -> _Files:
    """Return the files of some images; `again`: their contents are read anew."""
    listed: _Files = {}
    for part, images in (("train", data.train.images), ("val", data.val.images)):
        unread = images.subset(torch.ones(len(images.labels), dtype=torch.bool)) if again else images
        listed |= _files(unread, part)
    return listed


def _files(images: Images, part: str) -> _Files:
    if not isinstance(images, FileImages):
        return {}
    return {
        as_text(images.name(index)).replace("\n", "\\n"): _File(part, size, checksum)
        for index, (size, checksum) in enumerate(images.contents())
    }


def _read_files(path: Path) -> _Files:
    files: _Files = {}
    try:
        with open_regular(path, _KIND) as packed, gzip.open(packed) as lines:
            while line := lines.readline(_LONGEST_LINE):
                part, figures, name = line.decode().rstrip("\n").split("\t", 2)
                if name in files:  # no run writes it; a small file could unpack to any number of such lines
                    raise ValueError(f"{name[:80]!r} is listed twice")
                size, checksum = figures.split(" ")
                files[name] = _File(part, int(size), int(checksum, 16))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise AdjoinedError(f"the file is damaged: {error}", where=path, expected=_KIND) from error
    return files
