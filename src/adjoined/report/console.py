"""Printing: colour where somebody looks on, plain lines where a log is written."""

from __future__ import annotations

import sys
from typing import TextIO

from adjoined.report.table import PLAIN_WIDTH, Table


def show(*parts: Table | str, file: TextIO | None = None) -> None:
    """Print tables and lines, an empty line between two parts.

    Args:
        parts: what to print, in order.
        file: where to; standard output by default. A terminal gets colour, everything else plain text.
    """
    out: TextIO = sys.stdout if file is None else file
    if out.isatty():
        from rich.console import Console

        console = Console(file=out, highlight=False)
        console.width = max(console.width, PLAIN_WIDTH)  # a narrow terminal wraps the lines; figures are never cut
        for number, part in enumerate(parts):
            console.print(*[""] * bool(number), part, sep="\n", markup=False)
        return
    print("\n\n".join(part if isinstance(part, str) else part.text() for part in parts), file=out, flush=True)
