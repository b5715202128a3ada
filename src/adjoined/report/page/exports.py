"""The exported files of a run as a table; a figure missing from the record is a dash."""

from __future__ import annotations

from collections.abc import Sequence

from adjoined.export.record import ExportedFile
from adjoined.report import units
from adjoined.report.table import Table


def export_tables(files: Sequence[ExportedFile]) -> list[Table]:
    """Return the exported files and how they compared with PyTorch."""
    if not files:
        return []
    rows = tuple(
        (
            each.file,
            units.size(each.bytes),
            each.takes or units.ABSENT,
            units.ABSENT if each.difference.relative is None else f"{each.difference.relative:.1e}",
            _of(each.difference.other_class, each.difference.images),
            units.percent(each.top1),
        )
        for each in files
    )
    notes = (
        "A file takes images normalised as in training, as uint8 from 0 to 255, or as floats from 0 to 1 (unit).",
        "Every file was run in its own runtime on validation images and compared with PyTorch: the largest difference "
        "between logits relative to the largest logit, and how many images get another class. Accuracy is measured "
        "only for int8 files.",
    )
    columns = ("file", "size", "takes images", "difference", "other class", "top-1")
    return [Table(columns, rows, "Exported files", notes)]


def _of(number: int | None, whole: int | None) -> str:
    return units.ABSENT if number is None or whole is None else f"{number} of {whole}"
