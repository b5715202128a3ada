"""export.json: the record of the files that `adjoined export` has written to a folder.

It lists which networks were exported to which targets; the paths of the files follow from these names. All are networks
of one run: files of two runs in one folder would look like one run's.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adjoined.atomic import one_at_a_time
from adjoined.errors import AdjoinedError
from adjoined.export.targets import TARGETS, Target
from adjoined.json_files import read_versioned, write_json
from adjoined.names import check_name
from adjoined.schema import conform

FORMAT = 1
NAME = "export.json"


@dataclass(frozen=True)
class RecordedDifference:
    """The result of comparing a file with PyTorch; see `adjoined.export.verify.Difference`."""

    images: int | None = None
    relative: float | None = None
    other_class: int | None = None


@dataclass(frozen=True)
class ExportedFile:
    """One file, as export.json records it."""

    network: str
    target: str
    int8: bool
    weights: str | None = None
    """SHA-256 of the network's weights."""
    takes: str | None = None
    largest_batch: int | None = None
    bytes: int | None = None
    difference: RecordedDifference = field(default_factory=RecordedDifference)
    top1: float | None = None

    @property
    def file(self) -> str:
        """The name of the file."""
        return file_name(self.network, TARGETS[self.target], int8=self.int8)


def file_name(network: str, target: Target, *, int8: bool) -> str:
    """Return the name of an exported file.

    Example:
        >>> file_name("small", TARGETS["onnx"], int8=True)
        'small.int8.onnx'
    """
    return f"{network}{'.int8' if int8 else ''}{target.suffix}"


def read_exports(folder: Path, weights: Mapping[str, str] | None = None) -> list[ExportedFile]:
    """Return the files listed in a folder's record; none if there is no record.

    Targets unknown to this version are left out.

    Args:
        folder: the folder.
        weights: network -> SHA-256 of its weights; files of other weights are left out. None: all files.

    Raises:
        AdjoinedError: the record is damaged, or of another program or version.
    """
    files = [conform(ExportedFile, each, where=folder / NAME) for each in _entries(folder)]
    return [each for each in files if weights is None or each.weights in (None, weights.get(each.network))]


def refuse_other_networks(folder: Path, weights: Mapping[str, str]) -> None:
    """Raise AdjoinedError if a folder has files of networks other than these, by their record.

    Args:
        folder: the folder for more files.
        weights: network -> SHA-256 of its weights, of all networks of the run.
    """
    own = [each.file for each in read_exports(folder, weights)]
    for each in read_exports(folder):
        if each.file not in own and (folder / each.file).exists():
            raise AdjoinedError(
                "the folder has files exported from other networks",
                where=folder / each.file,
                expected="files of this run, with the same weights",
                fix="Choose another --out, or delete these files.",
            )


def claim(folder: Path, entry: Mapping[str, Any], weights: Mapping[str, str] | None = None) -> None:
    """List a file just before it is written, unless it is listed: if this process is killed, it may be replaced.

    Args:
        folder: the folder.
        entry: what is known of the file.
        weights: as for `refuse_other_networks`; None: files of any networks may be in the folder.

    Raises:
        AdjoinedError: another process has meanwhile written files of other networks, or one of this name.
    """
    with one_at_a_time(folder):
        if weights is not None:
            refuse_other_networks(folder, weights)
        if entry["file"] not in {each["file"] for each in _entries(folder)}:
            refuse_unlisted(folder / entry["file"], TARGETS[entry["target"]])
            _add(folder, entry)


def refuse_unlisted(path: Path, target: Target) -> None:
    """Raise AdjoinedError if a file would be replaced that is not listed in the folder's record."""
    if path.name in {each.file for each in read_exports(path.parent)}:
        return
    for each in target.files(path):
        if os.path.lexists(each):
            raise AdjoinedError(
                "the file exists already, and export.json does not list it as an export",
                where=each,
                fix="Move or delete it, or choose another --out.",
            )


def record(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add a file to the record, replacing an older one of that name; entries of missing files are dropped.

    Raises:
        AdjoinedError: the record is damaged, or cannot be written.
    """
    with one_at_a_time(folder):  # two exports of a run, to two targets
        _add(folder, entry)


def _add(folder: Path, entry: Mapping[str, Any]) -> None:
    others = [each for each in _entries(folder) if each["file"] != entry["file"]]
    kept = [each for each in others if (folder / each["file"]).exists()]
    write_json(folder / NAME, {"format": "adjoined-export", "version": FORMAT, "files": [*kept, entry]})


def _entries(folder: Path) -> list[dict[str, Any]]:
    """Return the checked entries of the record, each under its file's name."""
    path = folder / NAME
    if not path.exists():
        return []
    fix = "Export again into another folder, or delete the file."
    content = read_versioned(path, "the record of exported files", format="adjoined-export", version=FORMAT, fix=fix)
    entries = []
    for each in conform(list[dict[str, Any]], content.get("files", []), where=path, fix=fix):
        found = conform(ExportedFile, each, where=path, fix=fix)
        numbers = (found.largest_batch, found.bytes, found.top1, *vars(found.difference).values())
        if any(number is not None and number < 0 for number in numbers):
            raise AdjoinedError("a value does not fit", where=path, expected="numbers of at least 0", fix=fix)
        check_name(found.network, path)
        if found.target in TARGETS:
            entries.append({**each, "file": found.file})
    return entries
