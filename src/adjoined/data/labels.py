"""Images with any number of labels each, listed in a CSV file."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from adjoined.data.images import FileImages
from adjoined.data.source import Source
from adjoined.errors import AdjoinedError
from adjoined.files import read_utf8
from adjoined.printable import counted

FILE, LABELS, SPLIT = "file", "labels", "split"
"""Columns: the image, below the folder of the CSV file; its labels, unless each has a column; train or val, or none."""
LARGEST_TABLE = 1 << 28
"""Most images times labels; their table takes four times as many bytes."""
LARGEST_FILE = 1 << 28
"""Largest CSV file, bytes: a column for each of 80 labels of 118,000 photos takes 21 MB."""
_SEPARATORS = {";": "semicolons", "|": "bars", ",": "commas"}
_SHOWN = 3
_Row = tuple[int, list[str]]  # its line and its cells


class LabelledFiles(FileImages):
    """Images in files, with labels in a CSV file.

    Args:
        table: the CSV file.
        names: paths of the images below its folder.
        labels: float, 0 or 1 (N, K).
        sizes: sizes of the images' files, bytes.
    """

    def __init__(self, table: Path, names: Sequence[str], labels: Tensor, sizes: Sequence[int]) -> None:
        super().__init__(table.parent, names, labels, 3, sizes)
        self.table = table

    def identity(self) -> str:
        """Return a digest of the files' names and sizes, and of the labels."""
        return hashlib.sha256(super().identity().encode() + self.labels.numpy().tobytes()).hexdigest()

    def check_targets(self) -> None:
        """Raise AdjoinedError if no image has a label: average precision would have no value."""
        count = len(self.labels)
        if count and not self.labels.any():
            names = ", ".join([*map(self.name, range(min(count, _SHOWN))), *["…"][: count > _SHOWN]])
            raise AdjoinedError(
                "none of these images has a label",
                where=self.table,
                expected="labels among the training images and among the validation images",
                got=f"{counted(count, 'image')} without any: {names}",
                fix="Add labels, or split the images differently.",
            )

    def unseen(self) -> list[int]:
        """Return the labels that no image has."""
        return (~self.labels.any(dim=0)).nonzero().flatten().tolist()


def open_labels(path: Path) -> Source:
    """Return the images listed in a CSV file with its labels.

    The column `file` has the path of an image below the folder of the CSV file. Either the column `labels` has the
    image's labels, separated by semicolons, bars or commas, or by spaces if the column has none of these; or every
    other column is a label, with 1 if the image has it and 0 if not. With a column `split`, images marked `val` are for
    validation; otherwise a fraction is held out.

    Raises:
        AdjoinedError: the file or a column is missing, or a row is wrong; the error names the row.
    """
    header, rows = _read(path)
    columns = _label_columns(path, header)
    _check_rows(path, len(header), rows)
    at = {name: place for place, name in enumerate(header)}
    separator = None if columns else _separator(path, [(number, row[at[LABELS]]) for number, row in rows])
    given = [_present(path, number, row, columns, at, separator) for number, row in rows]
    names = columns or sorted({label for labels in given for label in labels})
    if len(names) < 2:
        raise AdjoinedError("fewer than two labels", where=path, got=", ".join(names) or "none")
    places = {name: place for place, name in enumerate(names)}
    files, sizes = _files(path, [(number, row[at[FILE]].strip()) for number, row in rows])
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
    images = LabelledFiles(path, files, labels, sizes)
    parts = [(number, row[at[SPLIT]].strip()) for number, row in rows] if SPLIT in at else []
    train, val = _split(path, parts, images)
    return Source(
        train=train,
        val=val,
        val_name=f"rows marked val in {path.name}" if val is not None else Source.val_name,
        class_names=tuple(names),
        task="multilabel",
    )


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the names of the columns, and every row with its line number."""
    if not path.is_file():
        got = "a folder" if path.is_dir() else ""
        raise AdjoinedError(
            "no such file",
            where=path.absolute(),
            expected="a CSV file: labels:FILE.csv",
            got=got,
            fix="If it has moved, give its new location: --data labels:FILE.csv.",
        )
    text = read_utf8(path, "the labels of images, as CSV", largest=LARGEST_FILE)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[_Row] = []
    try:
        for row in reader:
            rows.append((reader.line_num, row))
    except csv.Error as error:
        after = rows[-1][0] if rows else 0
        raise AdjoinedError(f"not CSV: {error}", where=f"{path}, row {after + 1}") from error
    header = rows.pop(0)[1] if rows else []
    return [_one_form(name) for name in header], [(number, row) for number, row in rows if row]


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
        if len(row) != columns:
            raise AdjoinedError("a wrong number of columns", where=f"{path}, row {number}", expected=columns)
    if not rows:
        raise AdjoinedError("no rows", where=path, expected="an image in each row")


def _one_form(label: str) -> str:
    """Return a label in one Unicode form: programs write é as one character or as two."""
    return unicodedata.normalize("NFC", label.strip())


def _separator(path: Path, cells: Sequence[tuple[int, str]]) -> str | None:
    """Return the character that separates the labels of a column, None for spaces, from the line and text of each row.

    Labels may contain spaces, such as `fire truck`, where another character separates them.
    """
    used = {mark: number for number, text in reversed(cells) for mark in _SEPARATORS if mark in text}
    if len(used) > 1:
        raise AdjoinedError(
            "the labels are separated in different ways",
            where=path,
            expected=f"one of {', '.join(_SEPARATORS.values())}",
            got=", ".join(f"{_SEPARATORS[mark]} in row {number}" for mark, number in used.items()),
        )
    return next(iter(used), None)


def _present(
    path: Path, number: int, row: list[str], columns: Sequence[str], at: Mapping[str, int], separator: str | None
) -> list[str]:
    """Return the labels of the image in a row; `at` gives the place of each column."""
    if columns:
        return [name for name in columns if _is_marked(path, number, row[at[name]].strip(), name)]
    text = _one_form(row[at[LABELS]])
    if text.startswith("["):  # how pandas writes a list; brackets and quotes would become part of the labels
        raise AdjoinedError(
            "the labels are written as a list",
            where=f"{path}, row {number}",
            expected="labels separated by semicolons: red;round",
            got=text[:100],
        )
    return [label.strip() for label in text.split(separator) if label.strip()]


def _is_marked(path: Path, number: int, mark: str, name: str) -> bool:
    if mark not in ("0", "1"):
        raise AdjoinedError(
            "a label is neither 0 nor 1",
            where=f"{path}, row {number}, column {name}",
            expected="0 or 1",
            got=mark[:100] or "nothing",
        )
    return mark == "1"


def _files(path: Path, cells: Sequence[tuple[int, str]]) -> tuple[list[str], list[int]]:
    """Return the images and their sizes in bytes, from the line and the text of each."""
    sizes: list[int] = []
    seen: dict[str, int] = {}
    for number, text in cells:
        name, where = os.path.normpath(text), f"{path}, row {number}"  # an image listed twice could leak
        got = text[:200] or "nothing"
        if os.path.isabs(name) or ".." in Path(text).parts:
            raise AdjoinedError(
                "the image is outside the folder of the label file", where=where, expected="a relative path", got=got
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


def _split(path: Path, parts: Sequence[tuple[int, str]], images: FileImages) -> tuple[FileImages, FileImages | None]:
    """Return the images to train and to validate on, from the line and the part of each, if they are given."""
    if not parts:
        return images, None
    for number, part in parts:
        if part not in ("train", "val"):
            got = part[:100] or "nothing"
            raise AdjoinedError("no such split", where=f"{path}, row {number}", expected="train or val", got=got)
    held_out = torch.tensor([part == "val" for _, part in parts])
    if held_out.all() or not held_out.any():
        raise AdjoinedError("train or val is empty", where=path, expected="rows of both")
    return images.subset(~held_out), images.subset(held_out)
