"""Numbers formatted for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import isfinite

ABSENT = "–"
"""Shown for a figure that was not measured."""
DOUBT = " ?"
"""Marks a ratio of times that vary too much for it."""


def count(number: int | float | None) -> str:
    """Format a count with three or four significant digits.

    Example:
        >>> [count(n) for n in (0, 64, 1797, 25_557_032, 4_089_184_256)]
        ['0', '64', '1.80 k', '25.56 M', '4.09 G']
    """
    return _scaled(number, ("", " k", " M", " G", " T"))


def size(number: int | float | None) -> str:
    """Format a number of bytes in decimal units, as file managers and hubs do.

    Example:
        >>> size(102_440_112)
        '102.44 MB'
    """
    return _scaled(number, (" B", " kB", " MB", " GB", " TB"))


def percent(share: float | None) -> str:
    """Format a fraction in [0, 1] as a percentage.

    Example:
        >>> percent(0.98765)
        '98.77 %'
    """
    return ABSENT if share is None else f"{100 * share:.2f} %"


def milliseconds(number: float | None, decimals: int | None = None) -> str:
    """Format a time in milliseconds with three significant digits and at most four decimals, or with given decimals.

    Args:
        number: the time, ms.
        decimals: those of its row or column (`decimals_of`); None: those of this time alone.

    Example:
        >>> [milliseconds(t) for t in (0.00038, 0.02136, 0.1234, 3.456, 34.56, 345.6)]
        ['0.0004 ms', '0.0214 ms', '0.123 ms', '3.46 ms', '34.6 ms', '346 ms']
    """
    if number is None:
        return ABSENT
    return f"{number:.{decimals_of([number]) if decimals is None else decimals}f} ms"


def decimals_of(numbers: Iterable[float | None], most: int = 4) -> int:
    """Return the decimals that give each number of a column three significant digits, at most `most`.

    Example:
        >>> decimals_of([0.1234, 34.56, None])
        3
    """
    sizes = (abs(number) for number in numbers if number is not None)
    return max((sum(size < 10.0 ** (2 - place) for place in range(most)) for size in sizes if size), default=0)


def column(numbers: Sequence[float]) -> list[str]:
    """Format the numbers of a column with the same decimals: three significant digits for the smallest, at most six.

    Example:
        >>> column([2.451, 0.0231]), column([1234.5, 100])
        (['2.4510', '0.0231'], ['1,234', '100'])
    """
    decimals = decimals_of((number for number in numbers if isfinite(number)), most=6)
    return [f"{number:,.{decimals}f}" for number in numbers]


def rate(number: float) -> str:
    """Format a rate per second, always with two decimals.

    Example:
        >>> [rate(r) for r in (0.5, 16.43, 999.4, 13_498.6)]
        ['0.50', '16.43', '999.40', '13.50 k']
    """
    return f"{number:.2f}" if number < 999.995 else count(number)


def times(base: float | None, small: float | None) -> str:
    """Format the ratio base / small, always with one decimal.

    Example:
        >>> times(25.557, 1.866), times(3.2, 1.7)
        ('13.7x', '1.9x')
    """
    return ABSENT if base is None or not small else f"{base / small:.1f}x"


def points(base: float | None, small: float | None) -> str:
    """Format the difference of two fractions in percentage points.

    Example:
        >>> points(0.9876, 0.9801)
        '-0.75 points'
    """
    return ABSENT if base is None or small is None else f"{change(base, small):+.2f} points"


def change(base: float, small: float) -> float:
    """Return the difference of two fractions in percentage points, to two decimals, never -0.

    Example:
        >>> change(0.5, 0.49999)
        0.0
    """
    return round(100 * (small - base), 2) + 0.0


def _scaled(number: int | float | None, units: tuple[str, ...]) -> str:
    if number is None:
        return ABSENT
    scaled, step = float(number), 0
    # A value that would round up to 1000.00 takes the next unit.
    while abs(scaled) >= (999.995 if step else 1000) and step < len(units) - 1:
        scaled, step = scaled / 1000, step + 1
    return f"{scaled:.{2 if step else 0}f}{units[step]}"
