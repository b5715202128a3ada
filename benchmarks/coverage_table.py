"""The table of docs/coverage.md, from the records of coverage.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file, the newest of each model, in the order of the file; none without the file."""
    if not path.exists():
        return []
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return list({record["model"]: record for record in records}.values())


def write_table(folder: Path) -> None:
    """Write docs/coverage.md."""
    raise SystemExit("to come")
