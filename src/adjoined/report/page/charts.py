"""The page's charts: inline SVG in the page's colours, each with a description and a table of its figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from adjoined.report.page.svg import Scale, element, mark, polyline
from adjoined.report.table import Table

WIDTH, HEIGHT = 400, 250
LEFT, RIGHT, TOP, BOTTOM = 54, 20, 14, 40
MOST_MARKED = 30
"""A line with more points than this is marked only at its end."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Chart:
    """A chart, ready for the page."""

    title: str
    about: str
    """A description of the chart for those who cannot see it."""
    drawing: Markup
    """The contents of the <svg> element."""
    table: Table
    """The plotted figures."""
    note: str = ""
    """How to read the chart; shown below the title."""
    height: int = HEIGHT


@dataclass(frozen=True)
class Line:
    """A line of a chart."""

    name: str
    look: int
    """Colour and mark: 0 for the base network, 1 for the small one …; -1 for a neutral colour."""
    points: Sequence[tuple[float, float]]
    faint: bool = False
    sizes: Sequence[float] = ()
    """Diameter of the mark at each point; when given, the marks are emphasised, not the line."""


@dataclass(frozen=True)
class Mark:
    """A point of a chart."""

    name: str
    look: int
    """As for `Line`."""
    x: float
    y: float


@dataclass(frozen=True)
class Axis:
    """How values are scaled and formatted."""

    label: str
    write: Format
    log: bool = False
    low: float | None = None
    """Start of the axis; None: the lowest value."""
    high: float | None = None
    ticks: Sequence[float] | None = None
    least: float = 0.0
    """The narrowest range to show: a narrower one would exaggerate small differences."""
    bounds: tuple[float, float] | None = None
    """The range of possible values; the axis stays within it."""
    column: Callable[[Sequence[float]], Sequence[str]] | None = None
    """How a table writes a column of values; None: each by itself, as on the axis."""

    def cells(self, values: Sequence[float]) -> Sequence[str]:
        """Return the values as a column of the chart's table."""
        return [self.write(value) for value in values] if self.column is None else self.column(values)

    def scale(self, values: Sequence[float], start: float, end: float, spare: float = 0.0) -> Scale:
        """Return the scale for values; `spare` is the fraction left free at each end."""
        low, high = min(values), max(values)
        if self.log:
            ratio = (high / low) ** spare if high > low else 2.0
            low, high = low / ratio, high * ratio
        else:
            room = max((high - low) * spare or (abs(high) * 0.1 or 1.0) * (high == low), (self.least - high + low) / 2)
            low, high = low - room, high + room
        if self.bounds:
            low, high = max(low, self.bounds[0]), min(high, self.bounds[1])
        low = low if self.low is None else min(self.low, low) if self.log else self.low
        return Scale(low, high if self.high is None else self.high, start, end, self.log)


def lines(title: str, all_lines: Sequence[Line], x: Axis, y: Axis, *, note: str = "") -> Chart:
    """Draw lines over a common axis; a logarithmic axis omits values that it cannot show."""
    shown = [_showable(line, y) for line in all_lines]
    shown = [line for line in shown if line.points]
    xs = [point[0] for line in shown for point in line.points]
    ys = [point[1] for line in shown for point in line.points]
    across, up = x.scale(xs, LEFT, WIDTH - RIGHT), y.scale(ys, HEIGHT - BOTTOM, TOP, 0.04)
    parts = [_frame(across, up, x, y)]
    for line in sorted(shown, key=lambda each: not each.faint):
        places = [(across(a), up(b)) for a, b in line.points]
        drawn = [polyline(places, class_="line")] if len(places) > 1 else []
        for i in _marked(line):
            text = f"{line.name}, {x.label} {x.write(line.points[i][0])}: {y.write(line.points[i][1])}"
            drawn.append(mark(line.look, *places[i], line.sizes[i] if line.sizes else 6, text, class_="mark"))
        kind = " faint" if line.faint else " thin" if line.sizes else ""
        parts.append(element("g", *drawn, class_=look(line.look) + kind))
    about = "; ".join(
        f"{line.name} from {y.write(line.points[0][1])} to {y.write(line.points[-1][1])}" for line in shown
    )
    return Chart(title, f"{about}.", Markup().join(parts), _by_x(title, shown, x, y), note)


def marks(title: str, all_marks: Sequence[Mark], x: Axis, y: Axis) -> Chart:
    """Draw points, each with its name beside it, or above or below where another name is in the way."""
    across = x.scale([each.x for each in all_marks], LEFT, WIDTH - RIGHT, 0.07)
    up = y.scale([each.y for each in all_marks], HEIGHT - BOTTOM, TOP, 0.1)
    parts = [_frame(across, up, x, y)]
    taken: list[tuple[float, float, float]] = []  # left, right and baseline of each name
    for each in all_marks:
        left, top = across(each.x), up(each.y)
        point = mark(each.look, left, top, 11, f"{each.name}: {x.write(each.x)}, {y.write(each.y)}", class_="mark")
        wide = 7 * len(each.name)
        late = left > WIDTH - RIGHT - wide - 12
        begin, end = (left - 9 - wide, left - 9) if late else (left + 9, left + 9 + wide)
        near = [baseline for a, b, baseline in taken if a < end and begin < b]
        free = (top + shift for shift in (4, -9, 17, -22, 30) if all(abs(top + shift - each) >= 12 for each in near))
        baseline = next(free, top + 4)
        taken.append((begin, end, baseline))
        beside = {"x": end if late else begin, "y": baseline, "text_anchor": "end" if late else None}
        parts.append(element("g", point, element("text", each.name, **beside, class_="label"), class_=look(each.look)))
    about = "; ".join(f"{each.name} at {x.write(each.x)}: {y.write(each.y)}" for each in all_marks)
    names, xs, ys = zip(*((each.name, each.x, each.y) for each in all_marks), strict=True)
    rows = tuple(zip(names, x.cells(xs), y.cells(ys), strict=True))
    return Chart(title, f"{about}.", Markup().join(parts), Table(("network", x.label, y.label), rows, title))


def widths(title: str, names: Sequence[str], networks: Sequence[tuple[str, Sequence[int]]], *, note: str = "") -> Chart:
    """Draw the channels of every layer as steps, one line per network, on a logarithmic axis."""
    everything = [width for _, each in networks for width in each]
    axis = Axis("channels", "{:.0f}".format, log=True)
    x = Axis("layer", lambda place: names[min(int(place), len(names) - 1)])
    across = Scale(0, len(names), LEFT, WIDTH - RIGHT)
    up = axis.scale(everything, HEIGHT - BOTTOM, TOP, 0.06)
    powers = [2**power for power in range(24) if up.low <= 2**power <= up.high]
    while len(powers) > 7:
        powers = powers[::2]
    parts = [_rules(up, powers if len(powers) > 1 else up.ticks(), axis), *_blocks(names, across)]
    for name, each in networks:
        places = [(across(i + step), up(width)) for i, width in enumerate(each) for step in (0, 1)]
        parts.append(element("g", polyline(places, class_="line step"), class_=look(place(name))))
    parts.append(_corner(x.label))
    narrowed = sum(len({each[i] for _, each in networks}) > 1 for i in range(len(names)))
    about = f"{len(names)} layers, {narrowed} of them narrower in a small network than in the base network."
    rows = tuple((name, *(str(each[i]) for _, each in networks)) for i, name in enumerate(names))
    table = Table(("layer", *(name for name, _ in networks)), rows, title)
    return Chart(title, about, Markup().join(parts), table, note)


def place(network: str) -> int:
    """Return the number of a network's colour and mark: 0 for the base, 1 for the small network or its stand-in.

    Example:
        >>> [place(name) for name in ("base", "small", "small-2 (α=4)", "sparse")]
        [0, 1, 2, 1]
    """
    number = re.match(r"small-(\d+)", network)
    return 0 if network == "base" else int(number[1]) if number else 1


def look(number: int) -> str:
    """Return the class that colours a network; base and small have fixed colours."""
    return "other" if number < 0 else f"n{min(number, 6)}"


def _marked(line: Line) -> Sequence[int]:
    """Return the points of a line that are marked."""
    count = len(line.points)
    if count > 1 and (line.faint or line.look < 0):
        return ()
    return range(count) if count <= MOST_MARKED else (count - 1,)


def _showable(line: Line, y: Axis) -> Line:
    points = [point for point in line.points if point[1] == point[1] and (point[1] > 0 or not y.log)]
    return Line(line.name, line.look, points, line.faint, line.sizes if len(points) == len(line.points) else ())


def _frame(across: Scale, up: Scale, x: Axis, y: Axis) -> Markup:
    bottom = HEIGHT - BOTTOM
    ticks = x.ticks or across.ticks(6)
    below, free = [], 0.0
    for tick in ticks:
        place, half = across(tick), 3.4 * len(x.write(tick))
        if place - half >= free:  # leave out labels that would overlap
            below.append(element("text", x.write(tick), x=place, y=bottom + 17, text_anchor="middle"))
            free = place + half + 4
    stems = [element("line", x1=across(t), x2=across(t), y1=bottom, y2=bottom + 4, class_="axis") for t in ticks]
    return Markup().join([_rules(up, y.ticks or up.ticks(6), y), *stems, *below, _corner(x.label)])


def _rules(up: Scale, ticks: Sequence[float], y: Axis) -> Markup:
    """Draw the horizontal grid lines with their values at the left, and the base line."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    rules = [element("line", x1=LEFT, x2=right, y1=up(tick), y2=up(tick), class_="rule") for tick in ticks]
    values = [element("text", y.write(tick), x=LEFT - 7, y=up(tick) + 4, text_anchor="end") for tick in ticks]
    return Markup().join([*rules, *values, element("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis")])


def _corner(label: str) -> Markup:
    return element("text", label, x=WIDTH - RIGHT, y=HEIGHT - 5, text_anchor="end", class_="unit")


def _blocks(names: Sequence[str], across: Scale) -> list[Markup]:
    """Write the names of the network's parts below the layers, where there is room."""
    parts, free, before = [], float(LEFT), None
    for i, name in enumerate(names):
        block = name.partition(".")[0]
        if block == before:
            continue
        before, place = block, across(i)
        parts.append(element("line", x1=place, x2=place, y1=TOP, y2=HEIGHT - BOTTOM, class_="rule"))
        if place >= free and place + 7 * len(block) <= WIDTH:
            parts.append(element("text", block, x=place + 2, y=HEIGHT - BOTTOM + 17))
            free = place + 7.5 * len(block) + 6
    return parts


def _by_x(title: str, shown: Sequence[Line], x: Axis, y: Axis) -> Table:
    found: dict[float, dict[str, str]] = {}
    for line in shown:
        for (a, _), cell in zip(line.points, y.cells([b for _, b in line.points]), strict=True):
            found.setdefault(a, {})[line.name] = cell
    names, places = [line.name for line in shown], sorted(found)
    rows = tuple(
        (x_cell, *(found[a].get(name, "–") for name in names))
        for a, x_cell in zip(places, x.cells(places), strict=True)
    )
    return Table((x.label, *names), rows, title)
