"""Printing: colour in a terminal, plain lines in a log."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, TextIO

from adjoined.printable import printable
from adjoined.report.table import Table

if TYPE_CHECKING:
    from rich.console import Console


NARROWEST_TERMINAL = 40
"""Smallest assumed width of a terminal, in characters: names and figures have to fit."""


def show(*parts: Table | str, file: TextIO | None = None) -> None:
    """Print tables and lines, separated by empty lines.

    Args:
        parts: what to print, in order.
        file: standard output by default. A terminal gets colour, anything else plain text.
    """
    out: TextIO = sys.stdout if file is None else file
    if out.isatty():
        from rich.console import Console

        console = Console(file=out, highlight=False)
        console.width = max(console.width, NARROWEST_TERMINAL)
        for number, part in enumerate(parts):
            console.print("\n" * bool(number), end="")
            if isinstance(part, str):
                console.print(printable(part, lines=True), markup=False, emoji=False, soft_wrap=True)
                continue
            for piece in part.drawn(console.width):
                console.print(piece)
        return
    texts = [printable(part, lines=True) if isinstance(part, str) else part.text() for part in parts]
    print("\n\n".join(texts), file=out, flush=True)


def entries(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names, each with a text beside it: a line each, but wrapped beside the name in a terminal."""
    pairs = list(pairs)
    wide = max(len(name) for name, _ in pairs) + 2
    lines = [f"{name:{wide}}{text}" for name, text in pairs]
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns, NARROWEST_TERMINAL)
        beside = " " * min(wide, room // 2)
        lines = [textwrap.fill(line, room, subsequent_indent=beside, break_on_hyphens=False) for line in lines]
    return "\n".join(lines)


def say(console: Console, text: str) -> None:
    """Print a line that may hold untrusted names: no control characters, no markup, no wrapping."""
    console.print(printable(text, lines=True), markup=False, emoji=False, highlight=False, soft_wrap=True)
