"""The figures of a network, and tables of base and small networks side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from adjoined.benchmark.turns import NOISY, Latency
from adjoined.kinds import NAMES, Measures
from adjoined.printable import counted
from adjoined.report import units
from adjoined.report.table import Table, side_by_side

if TYPE_CHECKING:
    from adjoined.slicing import Cost


@dataclass(frozen=True)
class Figures(Measures):
    """Sizes, quality and latency of one network; None means not measured."""

    name: str
    """"base", "small", or "small α=2" in a family."""
    parameters: int
    parameters_without_last: int
    """Parameters except those of the last linear layer, as the paper counts them."""
    macs: int
    """Multiply-accumulates for one sample."""
    file_bytes: int | None = None
    latency: Latency | None = None

    @classmethod
    def of(cls, name: str, cost: Cost, **others: Any) -> Figures:
        """Gather the measurements of one network; `others` are further fields."""
        return cls(name, cost.parameters, cost.parameters_without_last, cost.macs, **others)

    @property
    def median_ms(self) -> float | None:
        """Latency, ms."""
        return self.latency.median_ms if self.latency else None


Value = float | None
_LINES: tuple[tuple[str, Callable[[Figures], Value], Callable[[Value], str], Callable[[Value, Value], str]], ...] = (
    ("parameters", lambda f: f.parameters, units.count, units.times),
    ("parameters without the last linear", lambda f: f.parameters_without_last, units.count, units.times),
    ("MACs", lambda f: f.macs, units.count, units.times),
    ("file", lambda f: f.file_bytes, units.size, units.times),
    *((label, attrgetter(name), units.percent, units.points) for name, label in NAMES.items()),
)


def result_table(base: Figures, smalls: Sequence[Figures], *, title: str = "", notes: Sequence[str] = ()) -> Table:
    """Return base and small networks side by side, each small one with its ratio to the base.

    Sizes and times are compared by their ratio, accuracies by their difference in points. Figures that no network has
    are left out.

    Example:
        >>> base = Figures("base", 25_557_032, 23_508_032, 4_089_184_256)
        >>> print(result_table(base, [Figures("small", 1_993_576, 1_480_576, 278_086_656)]).text())
                                               base     small  base / small
        ----------------------------------  -------  --------  ------------
        parameters                          25.56 M    1.99 M         12.8x
        parameters without the last linear  23.51 M    1.48 M         15.9x
        MACs                                 4.09 G  278.09 M         14.7x
    """
    networks = (base, *smalls)
    lines = [(label, list(map(value, networks)), written, compared) for label, value, written, compared in _LINES]
    measured = {network.name: network.latency for network in networks if network.latency}
    notes = (*notes, *_latency_notes(measured))
    table = side_by_side([network.name for network in networks], lines, title=title, notes=notes)
    return replace(table, rows=(*table.rows, _latency_row(base, smalls))) if measured else table


def is_doubtful(base: Figures, small: Figures) -> bool:
    """Return whether the calls of two networks vary too much for a ratio of their latencies."""
    return any(each.latency is not None and each.latency.is_noisy for each in (base, small))


def _latency_row(base: Figures, smalls: Sequence[Figures]) -> tuple[str, ...]:
    decimals = units.decimals_of(each.median_ms for each in (base, *smalls))
    row = ["latency, batch 1", units.milliseconds(base.median_ms, decimals)]
    for small in smalls:
        ratio = units.times(base.median_ms, small.median_ms)
        doubt = units.DOUBT if ratio != units.ABSENT and is_doubtful(base, small) else ""
        row += [units.milliseconds(small.median_ms, decimals), ratio + doubt]
    return tuple(row)


def _latency_notes(times: Mapping[str, Latency]) -> tuple[str, ...]:
    """Say how latencies were measured, how far they spread, and which vary too much for their ratios."""
    if not times:
        return ()
    first = next(iter(times.values()))
    quartiles = [(each.lower_quartile_ms, each.upper_quartile_ms) for each in times.values()]
    decimals = units.decimals_of(bound for each in quartiles for bound in each)
    spread = ", ".join(
        f"{name} {low:.{decimals}f} to {high:.{decimals}f} ms"
        for name, (low, high) in zip(times, quartiles, strict=True)
    )
    how = (
        f"Latency: median of interleaved calls on {first.device} with {counted(first.threads, 'thread')}, in "
        f"eager PyTorch; quartiles: {spread}."
    )
    noisy = [name for name, each in times.items() if each.is_noisy]
    return (how, noise_note(noisy)) if len(times) > 1 and noisy else (how,)


def noise_note(names: Sequence[str]) -> str:
    """Return the note about ratios of latencies that vary too much."""
    return (
        f"The machine was busy: the inter-quartile range of {' and '.join(names)} is more than {100 * NOISY:.0f} % "
        "of the median, so ratios marked with ? are unreliable."
    )
