"""Printing: colour in a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, TextIO

from adjoined.printable import printable
from adjoined.report.table import PLAIN_WIDTH, Table

if TYPE_CHECKING:
    from rich.console import Console


def show(*parts: Table | str, file: TextIO | None = None) -> None:
    """Print tables and lines, separated by empty lines.

    Args:
        parts: what to print, in order.
        file: standard output by default. A terminal gets colour, anything else plain text.
    """
    out: TextIO = sys.stdout if file is None else file
    if out.isatty():
        from rich.console import Console
        from rich.text import Text

        console = Console(file=out, highlight=False)
        narrow, wide = console.width, max(console.width, PLAIN_WIDTH)
        for number, part in enumerate(parts):
            console.print("\n" * bool(number), end="")
            if isinstance(part, str):
                console.print(printable(part, lines=True), markup=False, emoji=False, soft_wrap=True)
                continue
            for piece in part.drawn():
                console.width = narrow if isinstance(piece, Text) else wide  # figures are never cut
                console.print(piece)
            console.width = narrow
        return
    texts = [printable(part, lines=True) if isinstance(part, str) else part.text() for part in parts]
    print("\n\n".join(texts), file=out, flush=True)


def say(console: Console, text: str) -> None:
    """Print a line that may hold untrusted names: no control characters, no markup, no wrapping."""
    console.print(printable(text, lines=True), markup=False, emoji=False, highlight=False, soft_wrap=True)
