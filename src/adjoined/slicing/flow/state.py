"""The state of a labelled run: the contract between the rules and the run that applies them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.course import Course
from adjoined.slicing.flow.findings import Findings, Sum
from adjoined.slicing.flow.labels import (
    LABEL,
    FrozenTies,
    OtherNeighbours,
    OutOfStep,
    Slot,
    Ties,
    TooNarrow,
    distinct,
    in_order,
    lines,
    proportions,
    squeeze_equal,
    varying,
)
from adjoined.slicing.flow.sizes import (
    GROUPED,
    Mismatch,
    Site,
    Size,
    check_sizes,
    line_of_code,
    sizes_in,
    sizes_of,
)
from adjoined.slicing.plan.reasons import Kind, Reason

GroupChoice = Callable[[str, int, int], bool]
"""(module, groups, channels per group) of a grouped convolution -> True: slice inside the groups, False: whole ones."""

SPLITS = ("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes")

MOST_SLOTS = 8
"""A tensor has at most this many slots; most have fewer slots than dimensions."""


class State(Course):
    """The state of a labelled run.

    A rule gets it with each call of its operator. The rule reads the labels of the operands (`slots`, `vector`), ties
    labels (`tie`, `unite`, `collapse`, `tie_vectors`) or pins them to full width (`pin`), gives the results their
    labels (`carry`), and records what the small network has to repeat (`note_...`, `check_...`). The first run makes
    ties and records; the second, on the small network, compares its own with them. Both runs use the same rules.

    Attributes:
        unaligned: cuts after which the number of channels counts, not their identity.
        slices_inside: how grouped convolutions are narrowed.
        in_linear: whether the module that runs is a linear layer.
    """

    def __init__(
        self,
        ties: Ties | FrozenTies,
        findings: Findings,
        *,
        unaligned: Iterable[Site],
        is_kept: Callable[[int], bool] | None,
        slices_inside: GroupChoice,
    ) -> None:
        super().__init__(ties, findings, is_kept)
        self.unaligned, self.slices_inside = frozenset(unaligned), slices_inside
        self.in_linear = False

    def note_sizes(self, call: Call, read: list[Slot], written: list[list[Slot]]) -> None:
        """Record the sizes that code passed to an operator, with the channels that they count."""
        if not self.strict and call.name not in GROUPED and sizes_in(call.name, call.args):
            self.findings.sizes[self.call_site] = sizes_of(call.name, call.args, read, written)

    def note_groups(self, labels: Tensor) -> None:
        """Record the channel groups that are kept or dropped whole, with a label for each; code passes their number."""
        if not self.strict:
            self.findings.conv_groups[self.module] = labels
            self.findings.sizes[self.call_site] = [Size(labels.numel(), (tuple(labels.tolist()),))]

    def check_sizes(self, site: Site, asked: Sequence[int | None]) -> None:
        """Raise Mismatch if code asks for more or fewer channels than are left of those it asked for in the base."""
        sizes = self.findings.sizes.get(site)
        free = site in self.unaligned and site.operator not in SPLITS  # their sizes are the code's own
        if sizes is None or free or self.is_kept is None:
            return
        if site.operator == "view" and len(asked) != len(sizes):  # a different call, on the way to a failure
            return
        position = check_sizes(asked, sizes, self.is_kept, by_value=self.values.decide)
        if position is not None:
            size, value = sizes[position], asked[position]
            here = f"{self.here}{line_of_code(self._entry)}"
            raise Mismatch(site, position, value or 0, size.left(self.is_kept) or 0, size, here)

    def note(self, found: set[int], *slots: Slot | None) -> None:
        """Add labels to one of the sets of `findings`."""
        for slot in slots if not self.strict else ():
            if slot is not None:
                found.update(distinct(slot))

    def note_read(self, labels: Slot | None) -> None:
        """Record that the current product sums over these channels, so that later layers depend on them."""
        self.note(self.findings.read, labels)

    def note_padded(self, slot: Slot) -> None:
        """Record that the current operator pads these channels, by a number that code may have fixed."""
        if not self.strict:
            why = Reason(Kind.FIXED_PADDING, f"padded with a fixed number of channels, in {self.here}")
            self.findings.padded.update((label, why) for label in distinct(slot) if label not in self.findings.padded)

    def note_statistic(self, over: Iterable[Slot], results: Iterable[Tensor]) -> None:
        """Record that an operator's results hold statistics over these channels."""
        slots = {id(slot): slot for slot in over}
        for tensor in results if slots and not self.strict else ():
            self.statistics[tensor] = slots | self.statistics.get(tensor, {})

    def note_decided(self, given: Iterable[Tensor]) -> None:
        """Record that code reads values of these tensors, which may be statistics over channels."""
        slots = (slot for tensor in given for slot in self.statistics.get(tensor, {}).values())
        self.findings.decided.update(label for slot in slots for label in distinct(slot))

    def note_channels(self, *vectors: Slot | None) -> None:
        """Record that the current operator uses these labels as channels of its input, its weight, or its output."""
        self.note(self.findings.channels, *vectors)

    def note_sum(self, over: Tensor | None, left: Iterable[Slot], *, product: bool) -> None:
        """Record that the current operator sums over some labels and leaves others; both may be of one parameter."""
        left = list(left)
        if not self.strict and over is not None and left:
            self.findings.sums.append(Sum(over, left, product))

    def note_crossing(self) -> None:
        """Record that the current operator computes a statistic across channels."""
        if not self.strict:
            self.findings.crossing.setdefault(self.module, self.last_op)

    def note_pieces(self, cut: Site, dim: int, pieces: Sequence[Slot]) -> None:
        """Record which piece of a cut every label went into."""
        if not self.strict:
            for number, piece in enumerate(pieces):
                for label in distinct(piece):
                    self.findings.cuts[label].add((cut, dim, number))

    def check_cut(self, cut: Site, number: int, pieces: Sequence[Slot], whole: Slot | None = None) -> None:
        """Record which channels go into each piece of a cut; the small network must have the same ones there.

        `whole` is what was cut: channels that are dropped before the piece move those in it, even if none of it is.
        """
        if cut in self.unaligned:
            return
        for piece, slot in enumerate(pieces):
            if self.is_kept is None:
                self.findings.pieces[cut, number, piece] = slot
                continue
            labels = slot.reshape(-1).tolist()
            recorded = self._recorded(self.findings.pieces, cut, piece)
            if any(self._fits(labels, slot, before) for before in recorded):
                continue
            before = [label for each in recorded for label in distinct(each)]
            message = f"the channels cut off are not those of the base network, in {self.here}"
            self.refuse(message, [*before, *labels], [] if whole is None else distinct(whole))

    def _fits(self, labels: list[int], slot: Slot, before: Slot) -> bool:
        """Return whether a slot holds what the small network keeps of the slot `before`, in any order."""
        kept = [label for label in before.reshape(-1).tolist() if label == 0 or self.has(label)]
        return sorted(labels) == sorted(kept) or torch.equal(self._kept_of(before), squeeze_equal(slot))

    def _recorded(self, records: dict[Any, Slot], cut: Site, *piece: int) -> list[Slot]:
        """Return all slots that the first run recorded at an operator.

        Slots cannot be found by number: one with a single channel left no longer exists in the second run.
        """
        return [records[key] for number in range(MOST_SLOTS) if (key := (cut, number, *piece)) in records]

    def check_neighbours(self, number: int, slot: Slot) -> None:
        """Record the channels that the current operator sees side by side; the small network must have the first ones.

        After the last one it sees padding, where the masked base sees dropped channels at zero.
        """
        if self.is_kept is None:
            self.findings.pieces[self.call_site, number, 0] = slot
            return
        labels = slot.reshape(-1).tolist()
        recorded = [before.reshape(-1).tolist() for before in self._recorded(self.findings.pieces, self.call_site, 0)]
        if not any(labels == line[: len(labels)] for line in recorded) and self._any_narrowed(labels):
            concerned = [label for line in recorded for label in line]
            message = f"channels become neighbours that are not neighbours in the base network, in {self.here}"
            raise OtherNeighbours(message, concerned)

    def check_fold(self, cut: Site, number: int, folded: Slot) -> None:
        """Record how a view folds channels into rows; the small network must have the kept ones in the same rows."""
        if cut in self.unaligned:
            return
        if self.is_kept is None:
            self.findings.folded[cut, number] = folded
            return
        recorded = self._recorded(self.findings.folded, cut)
        if not recorded or any(self._same_rows(before, folded) for before in recorded):
            return
        labels = [label for each in (*recorded, folded) for label in distinct(each)]
        self.refuse(f"channels are folded into different rows in {self.here}", labels)

    def _same_rows(self, before: Slot, folded: Slot) -> bool:
        """Return whether a view folds what is kept into the same rows as before, in any order within each row."""
        if torch.equal(self._kept_of(before), squeeze_equal(folded)):
            return True
        rows = [d for d in varying(before) if before.shape[d] == folded.shape[d]]
        if before.shape == folded.shape or not rows:
            return False
        kept = [proportions(filter(self.has, line)) for line in lines(before, rows)]
        return kept == [proportions(filter(None, line)) for line in lines(folded, rows)]

    def _kept_of(self, slot: Slot) -> Slot:
        """Return the part of a slot that the small network has: lines with a kept label or none, in each dimension."""
        rest = slot
        for dim in varying(slot):
            kept = [not any(line) or any(map(self.has, line)) for line in lines(slot, [dim])]
            rest = rest.index_select(dim, torch.tensor(kept).nonzero().flatten())
        return squeeze_equal(rest)

    def spans(self, operand: int, slot: Slot) -> set[int]:
        """Return the dimensions along which a slot of the current operator's n-th operand varies in the base network.

        In the small network a dimension with one channel left does not vary, so the first run's record counts.
        """
        if self.is_kept is None:
            self.findings.operands[self.call_site, operand].append(slot)
            return set(varying(slot))
        return {dim for each in self._in_base(operand, slot) for dim in varying(each)} | set(varying(slot))

    def is_folded(self, operand: int, slot: Slot, dims: set[int]) -> bool:
        """Return whether a slot for which `spans` was asked varies along several dimensions at once in the base."""
        return any(dims <= set(varying(each)) for each in self._in_base(operand, slot))

    def _in_base(self, operand: int, slot: Slot) -> list[Slot]:
        labels = set(distinct(slot))
        recorded = self.findings.operands.get((self.call_site, operand), ())
        return [each for each in recorded if not labels.isdisjoint(each.flatten().tolist())]

    def has(self, label: int) -> bool:
        """Return whether a label is one of a channel that the small network has."""
        assert self.is_kept is not None
        return bool(label) and self.is_kept(label)

    def check_wide(self, slot: Slot) -> None:
        """Raise OutOfStep if the small network lacks channels of a slot whose labels the current operator rejects."""
        if self._any_narrowed(labels := distinct(slot)):
            raise OutOfStep(f"fewer channels than the code picks from in {self.here}", labels)

    def renew(self, cut: Site, piece: int, slot: Slot) -> Slot:
        """Give the channels after an unaligned cut fresh labels: from here on, only their number must agree."""
        if cut not in self.unaligned or slot.numel() <= 1:
            return slot
        key = (cut, piece)
        if self.is_kept is None:
            assert isinstance(self.ties, Ties)
            first, where = in_order(slot)
            labels = self.ties.new(f"{cut.module}#{cut.operator}{cut.number}", piece, len(first))
            self.findings.fresh[key] = labels
            return labels[where]
        expected = self.findings.fresh.get(key)
        whole = [] if expected is None else expected.tolist()
        kept = list(filter(self.has, whole))
        first, where = in_order(slot)
        if len(kept) != len(first):
            message = f"{len(first)} channels arrive where {len(kept)} are expected in {self.here}"
            raise TooNarrow(message, kept + distinct(slot), whole, len(first))
        return torch.tensor(kept, dtype=LABEL)[where]

    def attention_scale(self, query: Tensor) -> float | None:
        """Return the scale of an attention that sets none; None for torch's own, 1/√D for D features.

        A small network has a smaller D, unless heads are kept or dropped whole.
        """
        last, heads = query.ndim - 1, query.ndim - 3
        for slot in self.slots(query):
            by_head = heads >= 0 and heads in varying(slot)
            inside = not by_head or self.slices_inside(self.module, query.shape[heads], query.shape[last])
            if last in varying(slot) and inside:
                self.note_crossing()
        return None
