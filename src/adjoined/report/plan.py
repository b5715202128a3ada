"""The plan table: how every layer is narrowed, with equal layers in one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from adjoined.report import units
from adjoined.report.table import Table

if TYPE_CHECKING:
    from torch import nn

    from adjoined.slicing import Cost, Reason, SlicePlan

TOO_FEW = "too few"
"""The kind of groups that stay at full width only because of rounding."""
TOLERATED_DEVIATION = 0.1
"""How far the fraction of channels kept may be from 1/alpha."""
MOST_ROWS = 20
"""The number of rows that the short table aims for: with totals and notes, it fits one screen."""


@dataclass(frozen=True)
class Layer:
    """One module, without its children, in the base network and in each small one."""

    name: str
    widths: tuple[int, ...]
    """Output channels: base, then each small network."""
    parameters: tuple[int, ...]
    macs: tuple[int, ...]
    """MACs for one sample: base, then each small network."""


def layers(networks: Sequence[nn.Module], costs: Sequence[Mapping[str, Cost]]) -> list[Layer]:
    """Return the modules that have parameters or do arithmetic themselves, not counting their children."""
    found = []
    for name, module in networks[0].named_modules():
        children = [f"{name}.{child}" if name else child for child, _ in module.named_children()]
        parameters, macs = (
            tuple(getattr(cost[name], what) - sum(getattr(cost[child], what) for child in children) for cost in costs)
            for what in ("parameters", "macs")
        )
        if any(parameters) or any(macs):
            widths = tuple(_width(network.get_submodule(name)) for network in networks)
            found.append(Layer(name or "(the model itself)", widths, parameters, macs))
    return found


def plan_table(
    all_layers: Sequence[Layer], plans: Sequence[SlicePlan], *, title: str = "", full: bool = False
) -> Table:
    """Return the plan as a table: layers, channels, parameters and MACs of each network, and why layers stay wide.

    With `full`, there is a row per leaf module instead of one per group of equal blocks.
    """
    rows = [LayerRow((layer.name,), (layer,)) for layer in all_layers] if full else _short(all_layers)
    # A line has room for four columns of figures; a family shows parameters there, and MACs only in the totals.
    family = len(plans) > 1
    heads = [f"α={plan.alpha:.3g}" for plan in plans] if family else ["small"]
    columns = ("layers", "channels", "parameters", *heads, *(() if family else ("MACs", *heads)))
    cells = []
    for row in rows:
        figures = row.total("parameters") + (() if family else row.total("macs"))
        cells.append((row.label, row.channels, *map(units.count, figures)))
    equal = [plan.alpha for plan in plans if not plan.tensors]
    whole = tuple(f"At α={alpha:.3g} the small network is as large as the base." for alpha in equal)
    return Table(columns, tuple(cells), title, whole + _why_full(plans[0]) + _why_unordered(plans[0]))


def alpha_table(
    base: Cost, plans: Sequence[SlicePlan], times: Sequence[float] | None = None, *, measured: str = ""
) -> Table:
    """Return what small networks of several alphas cost, next to the base network.

    `times` are the milliseconds of the base network and of every small one, if they were measured.
    """
    rows = []
    for name, cost in (("base", base), *((f"α={plan.alpha:g}", plan.cost) for plan in plans)):
        assert cost is not None
        sizes = (units.size(cost.bytes), units.size(cost.parameters))
        rows.append((name, units.count(cost.parameters), units.count(cost.macs), *sizes))
    columns = ("other alphas", "parameters", "MACs", "float32", "int8")
    notes = [*_why_wider(plans)]
    if times is not None:
        decimals = units.decimals_of(times)
        rows = [(*row, units.milliseconds(each, decimals)) for row, each in zip(rows, times, strict=True)]
        columns = (*columns, "time")
        notes.append(f"Time: median of calls with one image, {measured}.")
    return Table(columns, tuple(rows), notes=tuple(notes))


def _why_wider(plans: Sequence[SlicePlan]) -> tuple[str, ...]:
    """Say how far rounding keeps small networks from their alphas; nothing if it does not."""
    found = []
    for plan in plans:
        chosen = [group for group in plan.groups if group.why is None or group.why.kind == TOO_FEW]
        width, kept = sum(group.width for group in chosen), sum(group.kept for group in chosen)
        if plan.alpha * kept > (1 + TOLERATED_DEVIATION) * width:
            found.append(f"1/{width / kept:.3g} at α={plan.alpha:g}")
    if not found or plans[0].round_to == 1:
        return ()
    reached = ", ".join(found)
    return (
        f"Widths in multiples of {plans[0].round_to} keep more channels than 1/α: {reached}. "
        "`--round-to 1` keeps exactly that share.",
    )


@dataclass(frozen=True)
class LayerRow:
    """Layers that share a row: leaf modules of one block, or of several equal blocks."""

    names: Sequence[str]
    members: Sequence[Layer]

    @property
    def label(self) -> str:
        """`layer3.1-5` for equal siblings, `conv1, bn1` for a layer and its norm."""
        first, last = self.names[0], self.names[-1]
        if len(self.names) == 1:
            return first
        parent, _, index = first.rpartition(".")
        final = last.rpartition(".")[2]
        if self.equal:
            return f"{first}-{final}" if index.isdigit() and final.isdigit() else f"{first} to {final}"
        return ", ".join([first, *(name.removeprefix(f"{parent}.") for name in self.names[1:])])

    @property
    def equal(self) -> bool:
        """Whether the names belong to equal blocks."""
        return len(self.names) > 1 and len(self.members) % len(self.names) == 0 and self._alike()

    def _alike(self) -> bool:
        size = len(self.members) // len(self.names)
        blocks = [self.members[i : i + size] for i in range(0, len(self.members), size)]
        return len({_signature(name, block) for name, block in zip(self.names, blocks, strict=True)}) == 1

    @property
    def channels(self) -> str:
        """The distinct widths in the row, base → small, at most three of them."""
        different = list(dict.fromkeys(layer.widths for layer in self.members))
        shown = [_arrow(widths) for widths in different[:3]]
        return ", ".join(shown + (["…"] if len(different) > 3 else []))

    def total(self, what: str) -> tuple[int, ...]:
        """Sum parameters or MACs over the row, for each network."""
        return tuple(map(sum, zip(*(getattr(layer, what) for layer in self.members), strict=True)))


def _short(all_layers: Sequence[Layer]) -> list[LayerRow]:
    """Cut the module tree as deep as the rows allow, keeping runs of equal blocks together."""
    rows = _cut(all_layers, 1)
    deepest = max((layer.name.count(".") + 1 for layer in all_layers), default=1)
    for depth in range(2, deepest + 1):
        deeper = [part for row in rows for part in ([row] if len(row.names) > 1 else _cut(row.members, depth))]
        if len(deeper) > MOST_ROWS:
            break
        rows = deeper
    return rows


def _cut(all_layers: Sequence[Layer], depth: int) -> list[LayerRow]:
    def block(layer: Layer) -> str:
        return ".".join(layer.name.split(".")[:depth])

    rows: list[LayerRow] = []
    for name, members in groupby(all_layers, key=block):
        row = LayerRow((name,), tuple(members))
        if rows and (_is_norm_of(row, rows[-1]) or _repeats(row, rows[-1])):
            row = LayerRow((*rows[-1].names, name), (*rows[-1].members, *row.members))
            rows.pop()
        rows.append(row)
    return rows


def _is_norm_of(row: LayerRow, before: LayerRow) -> bool:
    """Whether the row is a leaf without MACs (a norm) that follows a leaf of the same parent."""
    leaf, *more = row.members
    *_, ahead = before.members
    return (
        not more
        and tuple(row.names) == (leaf.name,)
        and not any(leaf.macs)
        and ahead.name in before.names
        and leaf.name.rpartition(".")[0] == ahead.name.rpartition(".")[0]
    )


def _repeats(row: LayerRow, before: LayerRow) -> bool:
    """Whether the row is another block like the ones before."""
    if len(before.names) > 1 and not before.equal:
        return False
    size = len(before.members) // len(before.names)
    name, ahead = row.names[0], before.names[-1]
    return (
        name.rpartition(".")[0] == ahead.rpartition(".")[0]
        and len(row.members) > 1
        and _signature(name, row.members) == _signature(ahead, before.members[-size:])
    )


def _signature(block: str, members: Sequence[Layer]) -> tuple[object, ...]:
    return tuple((layer.name.removeprefix(block), layer.widths, layer.parameters, layer.macs) for layer in members)


def _width(module: nn.Module) -> int:
    for attribute in ("out_channels", "out_features", "num_features", "num_channels"):
        if isinstance(width := getattr(module, attribute, None), int):
            return width
    return next((parameter.shape[0] for parameter in module.parameters() if parameter.ndim), 0)


def _arrow(widths: tuple[int, ...]) -> str:
    base, smalls = widths[0], widths[1:]
    return f"{base}" if set(smalls) == {base} else f"{base}→{'/'.join(map(str, smalls))}"


def _why_full(plan: SlicePlan) -> tuple[str, ...]:
    by_reason: dict[Reason, list[str]] = {}
    for group in plan.groups:
        if group.why is not None and group.width > 1:
            by_reason.setdefault(group.why, []).append(f"{group.name} ({group.width})")
    return tuple(
        f"At full width, {reason}: {_some(names)}. {reason.remedy}".rstrip() for reason, names in by_reason.items()
    )


def _why_unordered(plan: SlicePlan) -> tuple[str, ...]:
    by_reason: dict[str, list[str]] = {}
    for name, reason in plan.unordered.items():
        by_reason.setdefault(reason, []).append(name)
    return tuple(f"Not reordered, {reason}: {_some(names)}." for reason, names in by_reason.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
