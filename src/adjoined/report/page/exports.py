"""What `adjoined export` has left in a run folder, as a table; a figure that the record does not have is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adjoined.report import units
from adjoined.report.table import Table

Entry = Mapping[str, Any]


def export_tables(found: Entry) -> list[Table]:
    """Return the exported files with what was found when they were compared with PyTorch.

    Args:
        found: export/export.json.
    """
    rows = []
    for entry in _entries(found, "files"):
        told = entry.get("difference")
        difference: Entry = told if isinstance(told, Mapping) else {}
        rows.append(
            (
                str(entry.get("file", "?")),
                units.size(_number(entry, "bytes")),
                str(entry.get("takes") or units.ABSENT),
                _small(_number(difference, "relative")),
                _of(_number(difference, "other_class"), _number(difference, "images")),
                units.percent(_number(entry, "top1")),
            )
        )
    if not rows:
        return []
    notes = (
        "Every file was run by its own runtime on validation images and compared with PyTorch: the largest difference "
        "of two logits in units of the largest logit, and the images whose likeliest class is another. Accuracy is "
        "measured of int8 files.",
    )
    columns = ("file", "size", "takes images", "difference", "other class", "top-1")
    return [Table(columns, tuple(rows), "Exported files", notes)]


def _small(number: float | None) -> str:
    return units.ABSENT if number is None else f"{number:.1e}"


def _of(number: float | None, whole: float | None) -> str:
    return units.ABSENT if number is None or whole is None else f"{number:.0f} of {whole:.0f}"


def _entries(found: Entry, name: str) -> Sequence[Entry]:
    entries = found.get(name)
    return [each for each in entries if isinstance(each, Mapping)] if isinstance(entries, list) else []


def _number(entry: Entry, name: str) -> float | None:
    value = entry.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
