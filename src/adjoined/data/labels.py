"""Images with any number of labels each, listed in a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from adjoined.data.augmentation import photo_transform
from adjoined.data.folders import IMAGENET_MEAN, IMAGENET_STD
from adjoined.data.images import FileImages
from adjoined.data.source import Source
from adjoined.errors import AdjoinedError
from adjoined.files import read_utf8

FILE, LABELS, SPLIT = "file", "labels", "split"
"""Columns: the image, below the folder of the CSV file; its labels, unless each has a column; train or val, or none."""
LARGEST_TABLE = 1 << 28
"""Most images times labels; their table takes four times as many bytes."""
_BETWEEN = re.compile(r"[;,|\s]+")
_Row = tuple[int, dict[str, str]]


class LabelledFiles(FileImages):
    """Images in files with float labels, 0 or 1 (N, K)."""

    def identity(self) -> str:
        """Return a digest of the files' names and sizes, and of the labels."""
        return hashlib.sha256(super().identity().encode() + self.labels.numpy().tobytes()).hexdigest()


def open_labels(path: Path) -> Source:
    """Return the images listed in a CSV file with its labels.

    The column `file` has the path of an image below the folder of the CSV file. Either the column `labels` has the
    image's labels, separated by semicolons, commas, spaces or bars; or every further column is a label, with 1 where
    the image has it and 0 where not. With a column `split`, images marked `val` are validated on; otherwise a fraction
    is held out.

    Raises:
        AdjoinedError: the file or a column is missing, or a row is wrong; the error names the row.
    """
    header, rows = _read(path)
    columns = _label_columns(path, header)
    _check_rows(path, len(header), rows)
    given = [_present(path, number, row, columns) for number, row in rows]
    names = columns or sorted({label for labels in given for label in labels})
    if len(names) < 2:
        raise AdjoinedError("fewer than two labels", where=path, got=", ".join(names) or "none")
    places = {name: place for place, name in enumerate(names)}
    files, sizes = _files(path, rows)
    if len(rows) * len(names) > LARGEST_TABLE:
        raise AdjoinedError(
            "too many labels for this many images",
            where=path,
            expected=f"a product of at most {LARGEST_TABLE}",
            got=f"{len(names)} labels, {len(rows)} images",
        )
    labels = torch.zeros(len(rows), len(names))
    for row, present in enumerate(given):
        labels[row, [places[name] for name in present]] = 1.0
    images = LabelledFiles(path.parent, files, labels, 3, sizes)
    train, val = _split(path, rows, images)
    return Source(
        train=train,
        val=val,
        val_name=f"rows marked val in {path.name}" if val is not None else "held-out split",
        class_names=tuple(names),
        channels=3,
        size=None,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        vary=photo_transform,
        task="multilabel",
    )


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the names of the columns, and every row with its line number."""
    if not path.is_file():
        raise AdjoinedError("no such file", where=path.absolute(), expected="a CSV file: labels:FILE.csv")
    text = read_utf8(path, "the labels of images, as CSV")
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [_one_form(name) for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return header, [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise AdjoinedError(f"not CSV: {error}", where=f"{path}, row {reader.line_num + 1}") from error  # the next one


def _label_columns(path: Path, header: Sequence[str]) -> list[str]:
    """Return the names of the columns that are a label each; none if one column lists the labels."""
    columns = [name for name in header if name not in (FILE, LABELS, SPLIT)]
    got = ", ".join(header)[:200] or "nothing"
    if FILE not in header or (LABELS in header) == bool(columns):
        expected = f"{FILE}, and either {LABELS} or a column of 0 and 1 for each label; {SPLIT} is optional"
        raise AdjoinedError(
            "the columns are not those of a label file",
            where=path,
            expected=expected,
            got=got,
            fix="Separate the columns by commas." if len(header) == 1 else "",
        )
    if "" in header:
        raise AdjoinedError(f"column {header.index('') + 1} has no name", where=f"{path}, row 1", got=got)
    if len(set(header)) < len(header):
        raise AdjoinedError("two columns have the same name", where=f"{path}, row 1", got=got)
    return columns


def _check_rows(path: Path, columns: int, rows: Sequence[_Row]) -> None:
    for number, row in rows:
        if None in row or None in row.values():
            raise AdjoinedError("a wrong number of columns", where=f"{path}, row {number}", expected=columns)
    if not rows:
        raise AdjoinedError("no rows", where=path, expected="an image in each row")


def _one_form(label: str) -> str:
    """Return a label in one Unicode form: programs write é as one character or as two."""
    return unicodedata.normalize("NFC", label.strip())


def _present(path: Path, number: int, row: dict[str, str], columns: Sequence[str]) -> list[str]:
    """Return the labels of the image in a row."""
    if columns:
        return list(_marked(path, number, row, columns))
    text = _one_form(row[LABELS])
    if text.startswith("["):  # how pandas writes a list; brackets and quotes would become part of the labels
        raise AdjoinedError(
            "the labels are written as a list",
            where=f"{path}, row {number}",
            expected="labels separated by semicolons: red;round",
            got=text[:100],
        )
    return [label for label in _BETWEEN.split(text) if label]


def _marked(path: Path, number: int, row: dict[str, str], columns: Sequence[str]) -> Iterator[str]:
    for name in columns:
        if (mark := row[name].strip()) not in ("0", "1"):
            raise AdjoinedError(
                "a label is marked by 0 or 1",
                where=f"{path}, row {number}, column {name}",
                expected="0 or 1",
                got=mark[:100] or "nothing",
            )
        if mark == "1":
            yield name


def _files(path: Path, rows: Sequence[_Row]) -> tuple[list[str], list[int]]:
    sizes: list[int] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        name, where = os.path.normpath(row[FILE].strip()), f"{path}, row {number}"  # an image listed twice could leak
        got = row[FILE].strip()[:200] or "nothing"
        if os.path.isabs(name) or ".." in Path(row[FILE]).parts:
            raise AdjoinedError(
                "the image is not below the folder of the file", where=where, expected="a relative path", got=got
            )
        if not os.path.isfile(path.parent / name):  # Path.is_file raises for a name that is too long
            raise AdjoinedError("no such image", where=where, expected=f"a file in {path.parent.absolute()}", got=got)
        if name in seen:
            raise AdjoinedError(
                "the image is listed twice", where=where, expected="one row", got=f"row {seen[name]}, too"
            )
        seen[name] = number
        sizes.append((path.parent / name).stat().st_size)
    return list(seen), sizes


def _split(path: Path, rows: Sequence[_Row], images: FileImages) -> tuple[FileImages, FileImages | None]:
    if SPLIT not in rows[0][1]:
        return images, None
    for number, row in rows:
        if row[SPLIT].strip() not in ("train", "val"):
            got = row[SPLIT].strip()[:100] or "nothing"
            raise AdjoinedError("no such split", where=f"{path}, row {number}", expected="train or val", got=got)
    held_out = torch.tensor([row[SPLIT].strip() == "val" for _, row in rows])
    if held_out.all() or not held_out.any():
        raise AdjoinedError("one of train and val is empty", where=path, expected="rows of both")
    return images.subset(~held_out), images.subset(held_out)
