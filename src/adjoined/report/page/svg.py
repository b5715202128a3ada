"""A small SVG writer: elements with escaped text and attributes, and scales with round ticks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

from adjoined.printable import printable

_CORNERS = {
    1: ((0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)),
    2: ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    3: ((0, -1.1), (1.1, 0.9), (-1.1, 0.9)),
}
"""Shape of a mark -> its corners, in units of its radius."""


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """Return an element; attributes that are None are left out, `_` stands for `-`, `class_` for `class`.

    Example:
        >>> print(element("text", "a < b", x=1.0, text_anchor="end", class_="tick"))
        <text x="1" text-anchor="end" class="tick">a &lt; b</text>
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{tag}{written}>{Markup().join(map(_shown, children))}</{tag}>")


def _shown(text: str) -> Markup:
    return text if isinstance(text, Markup) else escape(printable(text))


def polyline(points: Iterable[tuple[float, float]], **attributes: object) -> Markup:
    """Return a line through points, in drawing units."""
    return element("polyline", points=_places(points), **attributes)


def mark(shape: int, x: float, y: float, size: float, title: str = "", **attributes: object) -> Markup:
    """Return a mark centred at (x, y): 0 a circle, 1 a diamond, 2 a square, 3 a triangle, then again from 0."""
    r = size / 2
    name = element("title", title) if title else Markup()
    if shape % 4 == 0:
        return element("circle", name, cx=x, cy=y, r=r, **attributes)
    corners = ((x + right * r, y + down * r) for right, down in _CORNERS[shape % 4])
    return element("polygon", name, points=_places(corners), **attributes)


def _places(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{_number(x)},{_number(y)}" for x, y in points)


@dataclass(frozen=True)
class Scale:
    """Maps values to positions in the drawing, along one axis."""

    low: float
    high: float
    start: float
    """Position of `low`."""
    end: float
    """Position of `high`."""
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the position of a value."""
        low, high, value = map(math.log, (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values within the scale.

        Example:
            >>> Scale(0, 47, 0, 100).ticks(), Scale(0.03, 40, 0, 100, log=True).ticks()
            ([0.0, 10.0, 20.0, 30.0, 40.0], [0.1, 1.0, 10.0])
        """
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten in [low, high], at most `most`."""
    if not high > low:
        return [low]
    power = math.floor(math.log10((high - low) / most))
    for step in (factor * 10.0**exponent for exponent in (power, power + 1) for factor in (1, 2, 5)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return [round(number * step, 12) for number in range(first, last + 1)]
    raise AssertionError("ten times the step always fits")


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return 1, 2 and 5 times powers of ten in [low, high] where they fit, else fewer of them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3)):
        ticks = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
        inside = [round(tick, 12) for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if 2 <= len(inside) <= most:
            return inside
    return linear_ticks(low, high, most)


def _number(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
