"""One table in three formats: colour in a terminal, plain text in a log, Markdown in a file."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from adjoined.printable import markdown, printable

PLAIN_WIDTH = 100
"""Width of plain text, in characters."""
GAP = 2
"""Spaces between two columns."""
Line = tuple[str, Sequence[Any], Callable[[Any], str], Callable[[Any, Any], str]]
"""A row of `side_by_side`."""


@dataclass(frozen=True)
class Table:
    """Rows of text under column headings, with notes below.

    Args:
        columns: column headings; the first column is left-aligned, the others right-aligned.
        rows: one tuple of texts per row, as long as `columns`.
        title: line above the table.
        notes: lines below the table, wrapped if long.
        totals: number of total rows at the end, separated by a line.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    notes: tuple[str, ...] = ()
    totals: int = 0

    def __post_init__(self) -> None:
        """Make every text printable: the names of classes, files and layers are untrusted."""
        shown = {
            "columns": tuple(map(printable, self.columns)),
            "rows": tuple(tuple(map(printable, row)) for row in self.rows),
            "title": printable(self.title),
            "notes": tuple(map(printable, self.notes)),
        }
        for name, value in shown.items():
            object.__setattr__(self, name, value)

    def text(self, width: int = PLAIN_WIDTH) -> str:
        """Return plain text of at most `width` columns, without box-drawing characters.

        Where space is short, the first cell of a row is shortened in its middle; figures are never cut. Where they do
        not fit, the other columns follow in a second table with the same first column.

        Example:
            >>> print(Table(("", "base", "small"), (("parameters", "1.80 k", "130"),)).text())
                          base  small
            ----------  ------  -----
            parameters  1.80 k    130
        """
        parts = ["\n".join(self._plain(columns, width)) for columns in self._side_by_side(width)]
        notes = [line for note in self.notes for line in textwrap.wrap(note, width, subsequent_indent="  ")]
        return "\n".join([*textwrap.wrap(self.title, width), "\n\n".join(parts), *notes])

    def _plain(self, columns: Sequence[int], width: int) -> list[str]:
        """Return some of the columns as lines of plain text."""
        head, *rows = [tuple(row[i] for i in columns) for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        others = sum(widths[1:]) + GAP * (len(widths) - 1)
        widths[0] = min(widths[0], max(width - others, 8))
        rule = "  ".join("-" * w for w in widths)
        lines = [_line(row, widths) for row in rows]
        if self.totals:
            lines.insert(len(lines) - self.totals, rule)
        return [_line(head, widths), rule, *lines]

    def markdown(self) -> str:
        """Return a Markdown table, the title as a paragraph above it, the notes as paragraphs below."""
        rows = [_cells(self.columns), _cells([":--", *["--:"] * (len(self.columns) - 1)]), *map(_cells, self.rows)]
        parts = [markdown(self.title, keep="`_"), "\n".join(rows), *(markdown(note, keep="`_") for note in self.notes)]
        return "\n\n".join(part for part in parts if part) + "\n"

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        """Draw the table with rich (`rich.print(table)`)."""
        yield from self.drawn(options.max_width)

    def drawn(self, width: int) -> Iterator[Any]:
        """Yield what rich prints within a width: the title, the rows, and the notes.

        Where space is short, names in the first column are wrapped. Where figures do not fit, the other columns follow
        in a second table with the same first column.
        """
        from rich.text import Text

        yield from (Text(line, style="bold") for line in [self.title] if line)
        for number, columns in enumerate(self._side_by_side(width)):
            yield from [Text("")] * bool(number)
            yield self._drawn(columns)
        yield from (Text(note, style="dim") for note in self.notes)

    def _side_by_side(self, width: int) -> list[list[int]]:
        """Return the columns of each table, the first column in each of them, so that they fit into a width."""
        widths = [max(len(row[i]) for row in (self.columns, *self.rows)) for i in range(len(self.columns))]
        first = min(widths[0], width // 3)
        parts, used = [[0]], first
        for i, w in enumerate(widths[1:], start=1):
            used += GAP + w
            if used > width and len(parts[-1]) > 1:
                parts.append([0])
                used = first + GAP + w
            parts[-1].append(i)
        return parts

    def _drawn(self, columns: Sequence[int]) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, GAP - 1, 0, 0))
        for i in columns:
            fit: dict[str, Any] = {"justify": "right", "no_wrap": True} if i else {"overflow": "fold"}
            drawn.add_column(Text(self.columns[i]), **fit)
        for number, row in enumerate(self.rows):
            last_before_totals = self.totals > 0 and number == len(self.rows) - self.totals - 1
            drawn.add_row(*(Text(row[i]) for i in columns), end_section=last_before_totals)
        return drawn


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    first = _shortened(row[0], widths[0]).ljust(widths[0])
    return "  ".join([first, *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]).rstrip()


def _shortened(text: str, width: int) -> str:
    """Cut the middle out of a text that is too long: names differ at their ends."""
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return text[:head] + "…" + text[len(text) - (width - 1 - head) :]


def _cells(row: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(map(markdown, row)) + " |"


def side_by_side(names: Sequence[str], lines: Iterable[Line], *, title: str = "", notes: Sequence[str] = ()) -> Table:
    """Return base and small networks as columns, each small one with its comparison to the base.

    Lines of None alone are left out.

    Args:
        names: of the networks, the base first.
        lines: for each row its label, a value of each network, how it is written, and how (base, small) compare.
        title, notes: as for `Table`.

    Example:
        >>> times = ("time", (6, 2), "{} s".format, lambda base, small: f"{base / small:g}x")
        >>> side_by_side(["base", "small"], [times]).rows
        (('time', '6 s', '2 s', '3x'),)
    """
    columns = ["", names[0]]
    for name in names[1:]:
        columns += [name, f"{names[0]} / {name.partition(' ')[0]}"]
    rows = []
    for label, values, written, compared in lines:
        pairs = [(written(value), compared(values[0], value)) for value in values[1:]]
        if any(value is not None for value in values):
            rows.append((label, written(values[0]), *chain.from_iterable(pairs)))
    return Table(tuple(columns), tuple(rows), title, tuple(notes))
