"""Channel groups: sets of interchangeable channels, of which the small network keeps the first ones."""

from __future__ import annotations

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from adjoined.slicing.flow.labels import Axis, Slot, distinct, sets_of, squeeze_equal, varying
from adjoined.slicing.flow.not_channels import NOT_CHANNELS
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.modules import is_inside
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.request import RequestedWidth

Piece = tuple[Site, int, int]
"""(cut, dimension, number of the piece along it)."""


TOO_SHORT = 4
"""A dimension of up to this many elements is too short for a row of channels, such as a head."""


class RequiredWidth(NamedTuple):
    """The width that a group needs for the model's code to run, whatever alpha is."""

    roots: int
    """How many of its roots are kept."""
    why: Reason


@dataclass(eq=False)
class Group:
    """One channel group, whose width is being chosen.

    Attributes:
        roots: one root label for every channel (or bundle of channels that go together), in order.
        axes: dimension of a tensor with these channels -> how many of its indices belong to one root.
        why: why it stays at full width; None if it may be narrowed.
        kept: how many of the roots the small network has.
        required: the width that the model's code needs, if any.
        step: the number of channels kept is a multiple of this, because the model's code divides by it.
        unit: how many channels one root counts as when widths are rounded: those of all rows (heads).
        folds: views that fold these channels into rows.
        requested: the widths that `widths` asks for, which agree.
    """

    roots: array[int]
    axes: dict[Axis, int]
    why: Reason | None = None
    kept: int = 0
    required: RequiredWidth | None = None
    step: int = 1
    unit: int = 0
    folds: set[Site] = field(default_factory=set)
    requested: tuple[RequestedWidth, ...] = ()

    @property
    def whole(self) -> Reason | None:
        """Why it stays at full width, whatever alpha is; None if it may be narrowed."""
        if self.why is None and self.required is not None and self.required.roots == len(self.roots):
            return self.required.why
        return self.why

    @property
    def bundle(self) -> int:
        """Channels per root: more than 1 where a grouped convolution ties the channels of a group together."""
        return min(self.axes.values())

    @property
    def width(self) -> int:
        """Number of channels of the base network."""
        return len(self.roots) * self.bundle

    @property
    def name(self) -> str:
        """The first module that has these channels at its output; "" if only the model's own parameters have them."""
        modules = [tensor.rpartition(".")[0] for tensor, _ in self.axes]
        writers = [tensor.rpartition(".")[0] for tensor, dim in self.axes if dim == 0]
        return next((module for module in (*writers, *modules) if module), "")


class Grouping:
    """All channel groups of a trace, and the group of each label."""

    def __init__(self, trace: Trace) -> None:
        self._findings, self._labels = trace.findings, trace.labels
        self.roots = trace.ties.roots()
        self._table = torch.frombuffer(self.roots, dtype=torch.int64)
        vectors = [vector for each in trace.labels.values() for vector in each if vector is not None]
        ranges = [(int(vector[0]), int(vector[-1]) + 1) for vector in vectors]
        self.ranges = torch.tensor(ranges, dtype=torch.int64, device="cpu").view(-1, 2)
        reason_of = trace.ties.reasons()
        real = set(trace.labels)
        axis_of = trace.ties.axes
        self.pieces = _pieces(trace, self.roots)
        alike: dict[object, Group] = {}
        self._of_root: list[Group | None] = [None] * len(self.roots)
        for root, members in sets_of(self.roots):
            axes = Counter[Axis](axis_of[label] for label in members)
            signature = (tuple(sorted(axes.items())), frozenset(self.pieces.get(root, ())))
            if signature not in alike:
                # Fresh labels after an unaligned cut belong to no tensor, but even alone they are channels.
                in_tensors = {axis: count for axis, count in axes.items() if axis.tensor in real}
                alike[signature] = Group(array("q"), in_tensors or dict(axes))
                if sum(axes.values()) == 1 and in_tensors:
                    alike[signature].why = NOT_CHANNELS
            group = alike[signature]
            group.roots.append(root)
            self._of_root[root] = group
            group.why = group.why or reason_of(root)
        self.groups = list(alike.values())
        self._couple(trace)
        self._pinned = [group.why for group in self.groups]
        for site, labels in trace.findings.whole_heads.items():  # a table may hold one entry for each head
            for group in self.of_all(labels):
                group.unit = math.gcd(group.unit, trace.findings.head_width[site])

    def reset(self) -> None:
        """Undo all decisions made for one small network: widths, and groups that repairs pinned to full width."""
        for group, why in zip(self.groups, self._pinned, strict=True):
            group.why, group.kept, group.required, group.requested = why, 0, None, ()

    def _couple(self, trace: Trace) -> None:
        """Keep the same number of channels in each row (head) of a fold, so that code can divide by the rows.

        Code often computes the width of a row from another tensor: `x.shape[-1] // heads`. So every group near the
        fold, as wide as what was folded, keeps a multiple of the number of rows.
        """
        for cut, slot in trace.findings.folds:
            tied = squeeze_equal(self._table[slot])
            row_dims, last = _rows(slot)
            if not row_dims or tied.shape[last] == 1:
                continue  # neighbouring elements belong to one channel, as in a pixel shuffle
            sizes = [slot.shape[d] for d in row_dims]
            for group in self.of_all(distinct(tied)):
                group.unit = math.gcd(group.unit, sizes[-1])
                group.folds.add(cut)
            around = cut.module.rpartition(".")[0]
            for first in range(len(sizes)):
                rows = math.prod(sizes[first:])
                for group in self.groups:
                    if (
                        group.width == rows * slot.shape[last]
                        and group.bundle == 1
                        and any(is_inside(name, around) for name, _ in group.axes)
                    ):
                        group.step = math.lcm(group.step, rows)

    def of(self, label: int) -> Group:
        """Return the group of a label, which is not 0."""
        group = self._of_root[self.roots[label]]
        assert group is not None
        return group

    def of_all(self, labels: Iterable[int]) -> list[Group]:
        """Return the groups of several labels, each once."""
        return list(dict.fromkeys(map(self.of, labels)))

    def inside(self, module: str) -> list[Group]:
        """Return the groups of the tensors of a module and of the modules in it."""
        vectors = (v for tensor, each in self._labels.items() if is_inside(tensor, module) for v in each)
        return self.of_all(label for vector in vectors if vector is not None for label in vector.tolist())

    def tied_groups(self) -> set[str]:
        """Return the modules whose groups of channels (of a convolution, or heads) are all tied to each other.

        These groups cannot be dropped whole, but may be narrowed inside. They are tied by a sum over the groups, as in
        split attention, or by a table that all heads read. If gates weight the parts of a fold, the operator's site is
        returned, not its module.
        """
        of = self._findings.conv_groups
        choices = [(module, of[module].tolist()) for module in self._findings.whole_by_choice]
        choices += [(site.module, labels) for site, labels in self._findings.whole_heads.items()]
        stuck = {module for module, labels in choices if self._are_stuck(labels)}
        stuck |= {site.module for site, labels in self._findings.whole_heads.items() if self._are_fixed(labels)}
        # Groups that are dropped whole may be what ties the gates: they come first.
        return stuck or {f"{site}" for site, labels in self._findings.weighed.items() if self._are_stuck(labels)}

    def _are_fixed(self, labels: Iterable[int]) -> bool:
        """Return whether all these groups stay because code fixes their number, or computes a number for each."""
        groups = [self.of(label) for label in labels]
        sizes = all(group.whole is not None and group.whole.kind is Kind.FIXED_SIZE for group in groups)
        return sizes or all(group.why is not None and group.why.kind is Kind.FIXED_WIDTH for group in groups)

    def _are_stuck(self, labels: Iterable[int]) -> bool:
        """Return whether ties leave no group of channels to drop, or groups stay because others lie across them."""
        groups = [self.of(label) for label in labels]
        across = all(group.why is not None and group.why.kind is Kind.TWO_AT_ONCE for group in groups)
        roots = {self.roots[label] for label in labels}
        alone = len(roots) < len(groups) and all(len(group.roots) == 1 for group in groups)
        return across or len(roots) == 1 or alone

    def narrowed_labels(self) -> Tensor:
        """Return for every label whether its group is narrowed at present, by the groups' `kept` (bool vector)."""
        return self._having(group.roots for group in self.groups if group.kept < len(group.roots))

    def kept_labels(self) -> Tensor:
        """Return for every label whether the small network has it at present, by the groups' `kept` (bool vector)."""
        return self._having(group.roots[: group.kept] for group in self.groups)

    def _having(self, roots: Iterable[array[int]]) -> Tensor:
        """Return for every label whether its root is among these."""
        among = torch.zeros(len(self.roots), dtype=torch.bool, device="cpu")
        for each in roots:
            among[torch.frombuffer(each, dtype=torch.int64)] = True
        return among[self._table]


def _rows(slot: Slot) -> tuple[list[int], int]:
    """Return the dimensions of a fold that count rows (heads, shuffled groups), and the one that counts within a row.

    The latter is the last one, unless it is too short for a row, as in a shuffle that deals channels out in turn.
    """
    *rows, last = varying(slot)
    if rows and slot.shape[last] <= TOO_SHORT < min(slot.shape[d] for d in rows):
        return [*rows[1:], last], rows[0]
    return rows, last


def _pieces(trace: Trace, roots: array[int]) -> dict[int, set[Piece]]:
    """Return the pieces of cuts, and the rows of folds, that the channels of every set go into.

    Every row of a fold (heads, shuffled groups) has to keep the same number of channels. Rows that are tied to each
    other do so anyway.
    """
    found: dict[int, set[Piece]] = defaultdict(set)
    for label, pieces in trace.findings.cuts.items():
        found[roots[label]] |= pieces
    table = torch.frombuffer(roots, dtype=torch.int64)
    for cut, slot in trace.findings.folds:
        tied = squeeze_equal(table[slot])
        for dim in _rows(tied)[0] if varying(tied) else ():
            for row in range(tied.shape[dim]):
                piece = (cut, dim, row)  # one object that all sets share
                for root in distinct(tied.select(dim, row)):
                    found[root].add(piece)
    return dict(found)
