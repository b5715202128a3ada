"""The figures of a network, and tables of base and small networks side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from adjoined.benchmark.turns import Latency
from adjoined.errors import AdjoinedError
from adjoined.kinds import NAMES, Measures
from adjoined.report import units
from adjoined.report.table import Table

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
    def of(
        cls,
        name: str,
        cost: Cost,
        *,
        file_bytes: int | None = None,
        latency: Latency | None = None,
        **measures: float | None,
    ) -> Figures:
        """Gather the measurements of one network."""
        sizes = (cost.parameters, cost.parameters_without_last, cost.macs)
        return cls(name, *sizes, file_bytes, latency, **measures)

    @property
    def median_ms(self) -> float | None:
        """Latency, ms."""
        return self.latency.median_ms if self.latency else None

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain data for JSON."""
        return asdict(self)


def figures_of(result: Mapping[str, Any], where: object) -> list[Figures]:
    """Return the figures that `result.json` holds, the base network first.

    Raises:
        AdjoinedError: an entry is missing or has no usable value.
    """
    from adjoined.schema import conform

    fix = "Delete the file: the figures will be measured again."
    kinds = list[dict[str, Any]]
    found = [
        conform(Figures, network.get("figures"), where=where, fix=fix)
        for network in conform(kinds, result.get("networks"), where=where, fix=fix)
    ]
    for each in found:
        for name, value in vars(each).items():
            if isinstance(value, int | float) and value < 0:
                raise AdjoinedError("a value does not fit", where=where, expected=f"{name} of at least 0", fix=fix)
    return found


Value = float | None
_LINES: tuple[tuple[str, Callable[[Figures], Value], Callable[[Value], str], Callable[[Value, Value], str]], ...] = (
    ("parameters", lambda f: f.parameters, units.count, units.times),
    ("parameters without the last linear", lambda f: f.parameters_without_last, units.count, units.times),
    ("MACs", lambda f: f.macs, units.count, units.times),
    ("file", lambda f: f.file_bytes, units.size, units.times),
    *((label, attrgetter(name), units.percent, units.points) for name, label in NAMES.items()),
    ("latency, batch 1", lambda f: f.median_ms, units.milliseconds, units.times),
)


def result_table(base: Figures, smalls: Sequence[Figures], *, title: str = "", notes: Sequence[str] = ()) -> Table:
    """Return base and small networks side by side, each small one with its ratio to the base.

    Sizes and times are compared by their ratio, accuracies by their difference in points. Figures that no network has
    are left out.

    Args:
        base: figures of the base network.
        smalls: figures of each small network.
        title: line above the table.
        notes: lines below the table, before the note about latency.

    Example:
        >>> base = Figures("base", 25_557_032, 23_508_032, 4_089_184_256)
        >>> print(result_table(base, [Figures("small", 1_993_576, 1_480_576, 278_086_656)]).text())
                                               base     small  base / small
        ----------------------------------  -------  --------  ------------
        parameters                          25.56 M    1.99 M         12.8x
        parameters without the last linear  23.51 M    1.48 M         15.9x
        MACs                                 4.09 G  278.09 M         14.7x
    """
    columns = ["", base.name]
    for small in smalls:
        columns += [small.name, "base / small" if len(smalls) == 1 else "ratio"]
    rows = []
    for label, value, written, compared in _LINES:
        values = [value(network) for network in (base, *smalls)]
        if all(number is None for number in values):
            continue
        row = [label, written(values[0])]
        for number in values[1:]:
            row += [written(number), compared(values[0], number)]
        rows.append(tuple(row))
    measured = [network for network in (base, *smalls) if network.latency]
    return Table(tuple(columns), tuple(rows), title, (*notes, *_latency_note(measured)))


def _latency_note(networks: Sequence[Figures]) -> tuple[str, ...]:
    if not networks:
        return ()
    first = networks[0].latency
    assert first is not None
    spread = ", ".join(
        f"{network.name} {network.latency.lower_quartile_ms:.3g} to {network.latency.upper_quartile_ms:.3g} ms"
        for network in networks
        if network.latency
    )
    return (
        f"Latency: median of interleaved calls on {first.device} with {units.threads(first.threads)}, in "
        f"eager PyTorch; quartiles: {spread}.",
    )
