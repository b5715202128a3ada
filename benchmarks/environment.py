"""What the scripts share: writing figures together with the environment in which they were measured."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adjoined.benchmark.environment import environment
from adjoined.commands.streams import drop_output
from adjoined.json_files import write_json
from adjoined.training.output import unstoppable


@contextmanager
def measuring() -> Iterator[None]:
    """Keep a closed pipe (`| head -1`) from ending a measurement before its file is written; also a decorator."""
    with unstoppable():
        yield
    drop_output()


def write(figures: dict[str, Any], out: Path | None) -> None:
    """Write figures with the environment to a file if one is given, and print them as JSON."""
    content = environment() | figures
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, content)
    print(json.dumps(content, indent=1))
