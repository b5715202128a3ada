"""export.json: the record of the files that `adjoined export` has written to a folder.

It lists which networks were exported to which targets; the paths of the files follow from these names.
"""

from __future__ import annotations

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


def read_exports(folder: Path) -> list[ExportedFile]:
    """Return the files listed in a folder's record; none if there is no record.

    Targets unknown to this version are left out.

    Raises:
        AdjoinedError: the record is damaged, or of another program or version.
    """
    return [conform(ExportedFile, each, where=folder / NAME) for each in _entries(folder)]


def record(folder: Path, entry: Mapping[str, Any]) -> None:
    """Add a file to the record, replacing an older one of that name; entries of missing files are dropped.

    Raises:
        AdjoinedError: the record is damaged, or cannot be written.
    """
    with one_at_a_time(folder):  # two exports of a run, to two targets
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
