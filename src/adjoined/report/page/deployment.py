"""What benchmark and export have left in a run folder, as tables; a figure that a file does not have is a dash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adjoined.report import units
from adjoined.report.table import Table

Entry = Mapping[str, Any]


def benchmark_tables(found: Entry) -> list[Table]:
    """Return the times of base and small networks in every runtime, the speed-ups, and what was not measured.

    Args:
        found: benchmark.json.
    """
    tables = []
    rows = [
        (
            _name(row),
            units.milliseconds(_number(row, "median_ms")),
            f"{units.milliseconds(_number(row, 'lower_quartile_ms'))} to "
            f"{units.milliseconds(_number(row, 'upper_quartile_ms'))}",
            units.count(_number(row, "images_per_second")),
            units.size(_number(row, "file_bytes")),
        )
        for row in _entries(found, "rows")
    ]
    if rows:
        columns = ("network and runtime", "median", "quartiles", "images/s", "file")
        tables.append(Table(columns, tuple(rows), "Time of one call", _environment(found)))
    rows = [
        (
            _name(row),
            units.times(_number(row, "speedup"), 1.0),
            f"{units.times(_number(row, 'lower_quartile'), 1.0)} to {units.times(_number(row, 'upper_quartile'), 1.0)}",
            units.times(_number(row, "mac_ratio"), 1.0),
            str(row.get("against", units.ABSENT)),
        )
        for row in _entries(found, "speedups")
    ]
    if rows:
        notes = tuple(str(each) for each in found.get("explanations") or () if isinstance(each, str))
        columns = ("network and runtime", "speed-up", "quartiles", "MAC ratio", "against base in")
        tables.append(Table(columns, tuple(rows), "Times faster than the base network", notes))
    rows = [
        (f"{row.get('runtime', '?')}, {row.get('device', '?')}", str(row.get("why", units.ABSENT)))
        for row in _entries(found, "missing")
    ]
    if rows:
        tables.append(Table(("runtime", "why"), tuple(rows), "Not measured"))
    return tables


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


def _name(row: Entry) -> str:
    told = [row.get("network"), row.get("runtime"), row.get("precision"), row.get("device")]
    batch = row.get("batch_size")
    return ", ".join([*(str(each) for each in told if each), *([f"batch {batch}"] if batch else [])])


def _environment(found: Entry) -> tuple[str, ...]:
    told = found.get("environment")
    if not isinstance(told, Mapping):
        return ()
    flat = _flat(told)
    return (f"Measured with {', '.join(f'{name} {_text(value)}' for name, value in flat.items() if value)}.",)


def _flat(entry: Entry, start: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in entry.items():
        found |= _flat(value, f"{start}{name}.") if isinstance(value, Mapping) else {f"{start}{name}": value}
    return found


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
