"""Find the images of each class in a folder; files left out are counted, with an example for each reason."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from os import DirEntry
from pathlib import Path

import torch

from adjoined.data.images import FileImages
from adjoined.errors import AdjoinedError
from adjoined.printable import printable

EXTENSIONS = frozenset((
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".avif", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
))  # fmt: skip
_ELSEWHERE = "links to folders read elsewhere"
_OF_THE_SYSTEM = ("__MACOSX", "@eaDir")  # folders that archives of macOS and network drives add
_SHOWN = 6
_NOWHERE = (errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Errors of links that lead in a circle, through a file, or to an impossible name; Python handles missing targets."""
_Identity = tuple[int, int]  # device and inode: they identify a folder behind any link


@dataclass
class LeftOut:
    """Files in a folder of images that are not read."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        """Count a file that is left out."""
        self.counts[reason] += 1
        self.examples.setdefault(reason, example)

    def merge(self, other: LeftOut) -> None:
        """Add the counts of another record."""
        self.counts.update(other.counts)
        self.examples = other.examples | self.examples

    def __str__(self) -> str:
        shown = self.counts.most_common(_SHOWN)
        parts = [f"{count} {reason} (such as {printable(self.examples[reason])})" for reason, count in shown]
        more = self.counts.total() - sum(count for _, count in shown)
        return ", ".join([*parts, *([f"{more} others"] if more else [])])


def as_text(name: str) -> str:
    r"""Return a file's name as text, with bytes that are not UTF-8 escaped.

    Example:
        >>> as_text("caf\udce9")
        'caf\\xe9'
    """
    return os.fsencode(name).decode(errors="backslashreplace")


def class_name(folder: str) -> str:
    """Return the name of a class as text in one Unicode form, since file systems and archives differ."""
    return unicodedata.normalize("NFC", as_text(folder))


def subfolders(folder: Path, left_out: LeftOut) -> list[str]:
    """Return the names of the subfolders of a folder, without hidden ones and links to a parent or to one another."""
    found = []
    seen = _with_parents(folder)
    # A folder comes before a link to it.
    for entry in sorted(_entries(folder), key=lambda each: (each.is_symlink(), each.name)):
        if _is_hidden(entry.name):
            left_out.add("hidden", entry.name)
        elif not _leads_to(entry.is_dir):
            left_out.add("beside the folders", entry.name)
        elif (identity := _identity(entry.stat())) in seen:
            left_out.add(_ELSEWHERE, entry.name)
        else:
            seen.add(identity)
            found.append(entry.name)
    return sorted(found)


def holds_images(folder: Path) -> bool:
    """Return whether a folder directly contains an image."""
    return any(_is_image(entry.name) for entry in _entries(folder))


def scan(root: Path, inside: str, classes: Sequence[str], left_out: LeftOut, *, channels: int = 3) -> FileImages:
    """Return all images of some classes, ordered by class and then by file name.

    Every folder is visited once per class, so cyclic links are harmless; links to another class or to a parent folder
    are not followed.

    Args:
        root: the folder of the data set.
        inside: the folder below it that holds the classes: "", "train" …
        classes: names of the class folders; a class's label is its place among them.
        left_out: collects what is not an image.
        channels: as in FileImages.

    Raises:
        AdjoinedError: a folder cannot be read.
    """
    names: list[str] = []
    sizes: list[int] = []
    labels: list[int] = []
    with _walked(root):
        place = root / inside
        elsewhere = _with_parents(place) | {_identity(os.stat(place / name)) for name in classes}
        for label, name in enumerate(classes):
            found = sorted(_files(root, os.path.join(inside, name), elsewhere, left_out))
            names += [name for name, _ in found]
            sizes += [size for _, size in found]
            labels += [label] * len(found)
    return FileImages(root, names, torch.tensor(labels, dtype=torch.int64), channels, sizes)


def images_below(folder: Path, left_out: LeftOut) -> list[str]:
    """Return the paths of all images in a folder and its subfolders, in order.

    Raises:
        AdjoinedError: a folder cannot be read.
    """
    with _walked(folder):
        names = sorted(name for name, _ in _files(folder, "", _with_parents(folder), left_out))
    return [os.path.join(folder, name) for name in names]


@contextmanager
def _walked(folder: Path) -> Iterator[None]:
    """Report what keeps a folder from being walked through in the block."""
    try:
        yield
    except OSError as error:
        raise AdjoinedError(f"cannot be read: {error.strerror}", where=error.filename or folder) from error
    except RecursionError as error:
        raise AdjoinedError("its folders are nested too deeply", where=folder) from error


def _files(
    root: Path, inside: str, elsewhere: Set[_Identity], left_out: LeftOut, seen: set[_Identity] | None = None
) -> Iterator[tuple[str, int]]:
    """Yield every image below a folder, and its size in bytes."""
    seen = set() if seen is None else seen
    for entry in _entries(root / inside):
        name = os.path.join(inside, entry.name)
        if _is_hidden(entry.name):
            left_out.add("hidden", name)
        elif _leads_to(entry.is_dir):
            identity = _identity(entry.stat())
            if identity in elsewhere or identity in seen:
                left_out.add(_ELSEWHERE, name)
            else:
                seen.add(identity)
                yield from _files(root, name, elsewhere, left_out, seen)
        elif not _leads_to(entry.is_file):
            left_out.add("broken links, pipes or devices", name)
        elif not _is_image(entry.name):
            left_out.add(os.path.splitext(entry.name)[1].lower() or "without an extension", name)
        else:
            yield name, entry.stat().st_size


def _entries(folder: Path) -> list[DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda each: each.name)
    except OSError as error:
        raise AdjoinedError(f"cannot be read: {error.strerror}", where=folder) from error


def _leads_to(kind: Callable[[], bool]) -> bool:
    """Ask an entry for its kind, following links; a broken link has no kind."""
    try:
        return kind()
    except OSError as error:
        if error.errno in _NOWHERE:
            return False
        raise


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name in _OF_THE_SYSTEM


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS and not name.startswith(".")


def _with_parents(folder: Path) -> set[_Identity]:
    return {_identity(os.stat(each)) for each in (folder, *folder.resolve().parents)}


def _identity(status: os.stat_result) -> _Identity:
    return status.st_dev, status.st_ino
