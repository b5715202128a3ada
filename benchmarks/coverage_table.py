"""The tables of results/coverage/README.md, from the records of coverage.py."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adjoined.slicing import Kind

PAGE = Path(__file__).parent / "results" / "coverage" / "README.md"
BEGIN, END = "<!-- made by benchmarks/coverage.py --table -->", "<!-- end -->"

BOUNDS = {"alpha 2": 0.45, "alpha 4": 0.22}
"""A model counts as narrowed throughout if at most this share of its parameters is left; 1/α² is the ideal."""

STRICT = 1e-8
"""Largest relative error of a small network that is right."""

Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, the newest of each model, sorted by name; none without the file."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    newest = {record["model"]: record for record in records}
    return [newest[name] for name in sorted(newest)]


def write_table(folder: Path) -> None:
    """Write the tables into results/coverage/README.md between its two marks; the rest stays."""
    sets = {}
    for path in sorted(folder.glob("*.jsonl")):
        if not path.stem.endswith(("_rival", "_first")):
            rivals = {r["model"]: r for r in read_records(path.with_name(f"{path.stem}_rival.jsonl"))}
            sets[path.stem] = (read_records(path), rivals)
    lines = [BEGIN, "", *_summary(sets), ""]
    for name, (records, rivals) in sets.items():
        lines += [f"## {name}", "", *_table(records, rivals), "", *_notes(records), ""]
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    beside = PAGE.with_name(f".{PAGE.name}.part")
    beside.write_text(before + "\n".join(lines) + END + after, encoding="utf-8")
    beside.replace(PAGE)
    print(f"{PAGE}: {sum(len(records) for records, _ in sets.values())} models")


# ---- the summary ----------------------------------------------------------------------------------------------------


def _summary(sets: dict[str, tuple[list[Record], dict[str, Record]]]) -> list[str]:
    heads = ["works", "narrowed throughout", "wrong", "largest error", "median s", "worst s", "worst memory"]
    rows = [["", "models", "α", *heads], [":--", *["--:"] * 9]]
    for name, (records, rivals) in sets.items():
        for alpha in BOUNDS:
            found = [record.get(alpha, {"result": "failed"}) for record in records]
            rows.append([name, str(len(records)), alpha.removeprefix("alpha "), *_counts(found, BOUNDS[alpha])])
        for alpha in BOUNDS if rivals else ():
            found = [rival.get(alpha, {"result": "failed"}) for rival in rivals.values()]
            counts = _counts(found, BOUNDS[alpha], checked=False)
            rows.append([f"{name}, Torch-Pruning", str(len(found)), alpha.removeprefix("alpha "), *counts])
    return [f"| {' | '.join(row)} |" for row in rows]


def _counts(found: Sequence[Record], bound: float, *, checked: bool = True) -> list[str]:
    works = [each for each in found if each["result"] == "ok"]
    errors = [each["error_vs_masked"] for each in works if each.get("error_vs_masked") is not None]
    wrong = sum("does not compute" in each.get("error", "") for each in found) + sum(e > STRICT for e in errors)
    seconds = [each["seconds"] for each in found if "seconds" in each]
    memory = [each["memory"] for each in found if "memory" in each]
    return [
        _share(len(works), len(found)),
        _share(sum(each["left"] <= bound for each in works), len(found)),
        str(wrong) if checked else "not checked",
        f"{max(errors):.0e}" if errors else "",
        f"{statistics.median(seconds):.1f}" if seconds else "",
        f"{max(seconds):.1f}" if seconds else "",
        f"{max(memory):.1f}x ({sum(m < 3 for m in memory)} of {len(memory)} under 3x)" if memory else "",
    ]


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.0f} %)" if whole else "none"


# ---- the models -----------------------------------------------------------------------------------------------------


def _table(records: Iterable[Record], rivals: dict[str, Record]) -> list[str]:
    head = ["model", "parameters", "left, α = 2", "left, α = 4", "MACs left", "error", "wide groups", "seconds"]
    if rivals:
        head.append("Torch-Pruning: left, seconds")
    rows = [head, [":--", *["--:"] * 6, "--:", *([":--"] if rivals else [])]]
    for record in records:
        name = record["model"].partition("/")[2]
        two, four = (record.get(alpha, {}) for alpha in BOUNDS)
        row = [
            name,
            f"{record['parameters'] / 1e6:.2f} M" if "parameters" in record else "",
            *(_left(found, BOUNDS[alpha]) for alpha, found in zip(BOUNDS, (two, four), strict=True)),
            f"{_number(two, 'macs_left')} / {_number(four, 'macs_left')}",
            _error(two, four),
            str(sum(1 for group in four.get("wide", ()) if is_choice(group))) if "wide" in four else "",
            f"{_number(two, 'seconds', 1)} / {_number(four, 'seconds', 1)}",
        ]
        if rivals:
            row.append(_rival(rivals.get(record["model"], {})))
        rows.append(row)
    return [f"| {' | '.join(row)} |" for row in rows]


def _left(found: Record, bound: float) -> str:
    if found.get("result") != "ok":
        return f"failed ({found.get('error', '') if found.get('stage') == 'process' else found.get('stage', '')})"
    return f"{found['left']:.3f}" if found["left"] <= bound else f"**{found['left']:.3f}**"


def _number(found: Record, key: str, digits: int = 3) -> str:
    value = found.get(key)
    return "–" if value is None else f"{value:.{digits}f}"


def _error(*found: Record) -> str:
    errors = [each["error_vs_masked"] for each in found if each.get("error_vs_masked") is not None]
    if all(each.get("how") == "masked base" for each in found):
        return f"{max(errors, default=0):.0e}"
    return f"strict run, {max(errors):.0e} up to there" if errors else "strict run"


def _rival(record: Record) -> str:
    cells = []
    for alpha in BOUNDS:
        found = record.get(alpha)
        if found is None:
            cells.append("not run")
        elif found["result"] == "ok":
            cells.append(f"{found['left']:.3f}, {found['seconds']:.1f}")
        else:
            cells.append(found["result"] if found["result"] != "failed" else _short(found["error"]))
    return " / ".join(dict.fromkeys(cells))


def _short(error: str) -> str:
    return error.splitlines()[0][:60].replace("|", "/")


# ---- what stays wide, and why ---------------------------------------------------------------------------------------


def is_choice(group: Record) -> bool:
    """Return whether a better rule could have narrowed a group, as opposed to one that is too narrow already."""
    return group["kind"] not in (Kind.TOO_FEW, Kind.TIED, Kind.ONE_AT_A_TIME)


def _notes(records: Iterable[Record]) -> list[str]:
    lines = []
    for record in records:
        four = record.get("alpha 4", {})
        wide = [group for group in four.get("wide", ()) if is_choice(group)]
        over = any(record.get(alpha, {}).get("left", 0) > bound for alpha, bound in BOUNDS.items())
        notes = []
        if four.get("unaligned"):
            notes.append(f"channels lose their identity at {len(four['unaligned'])} channel shuffles")
        by_reason: dict[str, list[str]] = {}
        for group in wide:
            by_reason.setdefault(group["reason"], []).append(f"`{group['group']}` ({group['width']})")
        notes += [
            f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: {why}"
            for why, names in by_reason.items()
        ]
        if over and not wide:
            notes.append(
                "nothing but the outputs is at full width: its first and last layers, which shrink by 1/α, weigh much"
            )
        if notes:
            name = record["model"].partition("/")[2]
            lines += [f"- **{name}**: " + "; ".join(notes[:6]).replace("|", "/")]
    return ["At full width at α = 4, and why:", "", *lines] if lines else []
