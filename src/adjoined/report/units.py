"""Numbers formatted for people."""

from __future__ import annotations

from collections.abc import Iterable

ABSENT = "–"
"""Shown for a figure that was not measured."""


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

    Example:
        >>> [milliseconds(t) for t in (0.00038, 0.02136, 0.1234, 3.456, 34.56, 345.6)]
        ['0.0004 ms', '0.0214 ms', '0.123 ms', '3.46 ms', '34.6 ms', '346 ms']
    """
    if number is None:
        return ABSENT
    return f"{number:.{decimals_of([number]) if decimals is None else decimals}f} ms"


def decimals_of(numbers: Iterable[float]) -> int:
    """Return the decimals that give each time in a column three significant digits, at most four.

    Example:
        >>> decimals_of([0.1234, 34.56])
        3
    """
    return max((sum(number < bound for bound in (100, 10, 1, 0.1)) for number in numbers), default=0)


def rate(number: float) -> str:
    """Format a rate per second.

    Example:
        >>> [rate(r) for r in (0.5, 16.43, 999.4, 13_498.6)]
        ['0.5', '16.43', '999.4', '13.50 k']
    """
    return f"{number:.4g}" if number < 999.95 else count(number)


def threads(number: int) -> str:
    """Format a number of threads.

    Example:
        >>> threads(1), threads(2)
        ('1 thread', '2 threads')
    """
    return f"{number} thread" if number == 1 else f"{number} threads"


def times(base: float | None, small: float | None) -> str:
    """Format the ratio base / small.

    Example:
        >>> times(25.557, 1.866)
        '13.7x'
    """
    if base is None or not small:
        return ABSENT
    ratio = base / small
    return f"{ratio:.{1 if ratio >= 3 else 2}f}x"


def points(base: float | None, small: float | None) -> str:
    """Format the difference of two fractions in percentage points.

    Example:
        >>> points(0.9876, 0.9801)
        '-0.75 points'
    """
    return ABSENT if base is None or small is None else f"{100 * (small - base):+.2f} points"


def _scaled(number: int | float | None, units: tuple[str, ...]) -> str:
    if number is None:
        return ABSENT
    scaled, step = float(number), 0
    # A value that would round up to 1000.00 takes the next unit.
    while abs(scaled) >= (999.995 if step else 1000) and step < len(units) - 1:
        scaled, step = scaled / 1000, step + 1
    return f"{scaled:.{2 if step else 0}f}{units[step]}"
