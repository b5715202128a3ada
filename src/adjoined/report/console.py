"""Printing: colour where somebody looks on, plain lines where a log is written."""

from __future__ import annotations

import sys
from typing import TextIO

from adjoined.report.table import Table


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
        for part in parts:
            console.print(part, markup=False)
        return
    print("\n\n".join(part if isinstance(part, str) else part.text() for part in parts), file=out, flush=True)
