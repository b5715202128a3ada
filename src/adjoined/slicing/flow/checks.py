"""What the first run notes at an operator, and the second run on the small network compares with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import (
    LABEL,
    FrozenTies,
    OtherNeighbours,
    OutOfStep,
    Slot,
    Ties,
    TooNarrow,
    compress,
    distinct,
    varying,
)
from adjoined.slicing.flow.sizes import RESHAPES, Mismatch, Site, check_sizes, line_of_code, sizes_in, sizes_of
from adjoined.slicing.flow.values import Values

if TYPE_CHECKING:
    from adjoined.slicing.flow.rules import Call


SLOTS = 8
"""At most so many slots has a tensor: one for each dimension, mostly fewer."""


class Checks:
    """The part of the label flow that notes and compares: sizes, cuts, folds."""

    ties: Ties | FrozenTies
    findings: Findings
    unaligned: frozenset[Site]
    is_kept: Callable[[int], bool] | None
    values: Values
    stack: list[str]
    last_op: str
    run: Any
    _count: dict[tuple[str, str], int]
    _train: bool

    @property
    def strict(self) -> bool:
        """Whether this is the second run, which checks the small network."""
        return self.is_kept is not None

    @property
    def module(self) -> str:
        """Name of the module that runs now; "" for the model itself."""
        return self.stack[-1]

    @property
    def here(self) -> str:
        """Where the run is, for messages."""
        return f"'{self.module}' ({self.last_op})" if self.module else f"the model's own forward ({self.last_op})"

    def note_sizes(self, call: Call, read: list[Slot], written: list[list[Slot]]) -> None:
        """Note the sizes that code handed to an operator, with the channels that they count."""
        if not self.strict and sizes_in(call.name, call.args):
            self.findings.sizes[self.cut] = sizes_of(call.name, call.args, read, written)

    def check_sizes(self, site: Site, asked: Sequence[int | None]) -> None:
        """In the small network, code must ask for as many channels as are left of those that it asked for."""
        sizes = self.findings.sizes.get(site)
        if sizes is None or site in self.unaligned or self.is_kept is None:
            return
        position = check_sizes(asked, sizes, self.is_kept, by_value=self.values.decide)
        if position is not None:
            size, value = sizes[position], asked[position]
            here = f"{self.here}{line_of_code(self.run)}"
            raise Mismatch(site, position, value or 0, size.left(self.is_kept) or 0, size, here)

    def note_read(self, labels: Tensor | None) -> None:
        """Note that the current operator sums over these channels: they matter to what comes behind it."""
        if labels is not None and not self.strict:
            self.findings.read.update(distinct(labels))

    def note_channels(self, *vectors: Tensor | None) -> None:
        """Note that the current operator uses these labels as channels of its input, its weight, or its output."""
        if not self.strict:
            for labels in vectors:
                if labels is not None:
                    self.findings.channels.update(distinct(labels))

    def note_crossing(self) -> None:
        """Note that the current operator computes a statistic across channels."""
        if not self.strict:
            self.findings.crossing.setdefault(self.module, self.last_op)

    @property
    def cut(self) -> Site:
        """The key of the current operator: equal in both runs, as long as the module's code runs the same way."""
        return self.site(family_of(self.last_op))

    def site(self, family: str, ahead: int = 0) -> Site:
        """Return the key of the latest operator of a family, or of one that is still ahead."""
        return Site(self.module, family, self._count[self.module, family] + ahead, self._train)

    def note_pieces(self, cut: Site, dim: int, pieces: Sequence[Slot]) -> None:
        """Note which piece of a cut every label went into."""
        if not self.strict:
            for number, piece in enumerate(pieces):
                for label in distinct(piece):
                    self.findings.cuts[label].add((cut, dim, number))

    def check_cut(self, cut: Site, number: int, pieces: Sequence[Slot]) -> None:
        """Remember which channels go into which piece of a cut; in the small network it must be the same ones."""
        if cut in self.unaligned:
            return
        for piece, slot in enumerate(pieces):
            if self.is_kept is None:
                self.findings.pieces[cut, number, piece] = slot
                continue
            labels = slot.reshape(-1).tolist()
            earlier = self._earlier(self.findings.pieces, cut, piece)
            if any(self._fits(labels, slot, before) for before in earlier):
                continue
            before = [label for each in earlier for label in distinct(each)]
            if self._any_narrowed([*before, *labels]):
                message = f"other channels than in the base network are cut off in {self.here}"
                raise OutOfStep(message, [*before, *labels])

    def _fits(self, labels: list[int], slot: Slot, before: Slot) -> bool:
        """Tell whether a slot holds what is kept of an earlier one."""
        assert self.is_kept is not None
        kept = [label for label in before.reshape(-1).tolist() if label == 0 or self.is_kept(label)]
        return labels == kept or torch.equal(self._kept_of(before), compress(slot))

    def _earlier(self, noted: dict[Any, Slot], cut: Site, *piece: int) -> list[Slot]:
        """Return all slots that the first run has noted at an operator: a slot of which one channel is left is gone in
        the second run, so their numbers differ."""
        return [noted[key] for number in range(SLOTS) if (key := (cut, number, *piece)) in noted]

    def check_neighbours(self, number: int, slot: Slot) -> None:
        """Remember the channels that the current operator sees side by side; the small network must have the first.

        Beyond the last one it then sees padding where the base network with its dropped channels at zero sees zeros.
        """
        if self.is_kept is None:
            self.findings.pieces[self.cut, number, 0] = slot
            return
        labels = slot.reshape(-1).tolist()
        lines = [earlier.reshape(-1).tolist() for earlier in self._earlier(self.findings.pieces, self.cut, 0)]
        if not any(labels == line[: len(labels)] for line in lines) and self._any_narrowed(labels):
            concerned = [label for line in lines for label in line]
            message = f"other channels become neighbours than in the base network, in {self.here}"
            raise OtherNeighbours(message, concerned)

    def check_fold(self, cut: Site, number: int, folded: Slot) -> None:
        """Remember how a view folds channels into rows; in the small network the kept ones must be in the same rows."""
        if cut in self.unaligned:
            return
        if self.is_kept is None:
            self.findings.folded[cut, number] = folded
            return
        earlier = self._earlier(self.findings.folded, cut)
        if not earlier or any(torch.equal(self._kept_of(before), compress(folded)) for before in earlier):
            return
        labels = [label for each in (*earlier, folded) for label in distinct(each)]
        if self._any_narrowed(labels):
            raise OutOfStep(f"channels are folded into other rows in {self.here}", labels)

    def _kept_of(self, slot: Slot) -> Slot:
        """Return what the small network has of a slot: along each dimension, what holds a kept label or none at all."""
        assert self.is_kept is not None
        rest = slot
        for dim in varying(slot):
            lines = slot.movedim(dim, 0).reshape(slot.shape[dim], -1).tolist()
            kept = [not any(line) or any(label and self.is_kept(label) for label in line) for line in lines]
            rest = rest.index_select(dim, torch.tensor(kept).nonzero().flatten())
        return compress(rest)

    def spans(self, operand: int, slot: Slot) -> set[int]:
        """Return the dimensions along which the current operator's operand of this number has labels in this slot.

        In the small network a dimension of one channel does not vary any more; it is the base network that counts.
        """
        if self.is_kept is None:
            self.findings.operands[self.cut, operand].append(slot)
            return set(varying(slot))
        labels = set(distinct(slot))
        found = [each for each in self.findings.operands.get((self.cut, operand), ()) if labels & set(distinct(each))]
        return {dim for each in found for dim in varying(each)} | set(varying(slot))

    def _any_narrowed(self, labels: Iterable[int]) -> bool:
        return isinstance(self.ties, FrozenTies) and self.ties.any_narrowed(labels)

    def renew(self, cut: Site, piece: int, slot: Slot) -> Slot:
        """Give the channels behind an unaligned cut fresh labels: their number must agree from here on, no more."""
        if cut not in self.unaligned or slot.numel() <= 1:
            return slot
        key = (cut, piece)
        if self.is_kept is None:
            assert isinstance(self.ties, Ties)
            labels = self.ties.new(f"{cut.module}#{cut.operator}{cut.number}", piece, slot.numel())
            self.findings.fresh[key] = labels
            return labels.view(slot.shape)
        expected = self.findings.fresh.get(key)
        kept = [] if expected is None else [label for label in expected.tolist() if self.is_kept(label)]
        if len(kept) != slot.numel():
            message = f"{slot.numel()} channels arrive where {len(kept)} are expected in {self.here}"
            labels = [] if expected is None else expected.tolist()
            raise TooNarrow(message, kept + distinct(slot), labels, slot.numel())
        return torch.tensor(kept, dtype=LABEL).view(slot.shape)


def family_of(name: str) -> str:
    """Return what an operator counts as: torch chooses between the ways to reshape by strides, which may differ."""
    return "view" if name in RESHAPES else name
