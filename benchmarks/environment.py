"""Write figures together with the environment in which they were measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adjoined.benchmark.environment import environment
from adjoined.json_files import write_json


def write(figures: dict[str, Any], out: Path | None) -> None:
    """Print figures with the environment as JSON, and write them to a file if one is given."""
    told = environment() | figures
    print(json.dumps(told, indent=1))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, told)
