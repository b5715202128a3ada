"""The state of a labelled run: the contract between the rules and the run that applies them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.call import Call
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
    pairs,
    proportions,
    squeeze_equal,
    varying,
)
from adjoined.slicing.flow.sizes import Mismatch, Site, check_sizes, family_of, line_of_code, sizes_in, sizes_of
from adjoined.slicing.flow.values import Values
from adjoined.slicing.plan.reasons import Kind, Reason

GroupChoice = Callable[[str, int, int], bool]
"""(module, groups, channels per group) of a grouped convolution -> True: slice inside the groups, False: whole ones."""

SLOTS = 8
"""A tensor has at most this many slots; most have fewer slots than dimensions."""


class State:
    """The state of a labelled run.

    A rule gets it with each call of its operator. It reads the labels of the operands (`slots`, `vector`), ties labels
    (`tie`, `unite`, `collapse`, `tie_vectors`) or pins them to full width (`pin`), gives the results their labels
    (`carry`), and records what the small network has to repeat (`note_...`, `check_...`). The first run makes ties and
    records; the second, on the small network, compares its own with them. Both runs use the same rules.

    Attributes:
        ties: `Ties` in the first run, which ties labels; `FrozenTies` in the second, which checks.
        findings: filled in the first run, read in the second.
        unaligned: cuts behind which the channels count, but not their identity.
        is_kept: label -> whether the small network has it; None in the first run.
        choose_groups: how grouped convolutions are narrowed.
        values: which tensors depend on the values of the input.
        in_linear: whether the module that runs is a linear layer.
        last_op: name of the operator that runs.
    """

    def __init__(
        self,
        ties: Ties | FrozenTies,
        findings: Findings,
        *,
        unaligned: Iterable[Site] = (),
        is_kept: Callable[[int], bool] | None = None,
        choose_groups: GroupChoice = lambda module, groups, size: False,
    ) -> None:
        self.ties, self.findings = ties, findings
        self.unaligned, self.is_kept, self.choose_groups = frozenset(unaligned), is_kept, choose_groups
        self.values = Values()
        self.in_linear = False
        self.last_op = ""
        self._modules = [""]  # that run, from the outside
        self._entry: CodeType | None = None  # the code that called the model
        self._train = False
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._within = ""  # the call of torch.einsum that runs
        self._slots: Any = WeakIdKeyDictionary()
        self._uniform: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()
        self._stored: set[int] = set()
        self._buffers: set[int] = set()
        self._last: list[Slot] = []

    # ---- where the run is --------------------------------------------------------------------------------------------

    @property
    def strict(self) -> bool:
        """Whether this is the second run, which checks the small network."""
        return self.is_kept is not None

    @property
    def module(self) -> str:
        """Name of the running module; "" for the model itself."""
        return self._modules[-1]

    @property
    def here(self) -> str:
        """The running module and operator, for messages."""
        return f"'{self.module}' ({self.last_op})" if self.module else f"the model's own forward ({self.last_op})"

    @property
    def cut(self) -> Site:
        """The key of the current operator: the same in both runs if the module's code takes the same path."""
        return self.site(family_of(self.last_op))

    def site(self, family: str, ahead: int = 0) -> Site:
        """Return the key of the latest operator of a family, or of the one that comes `ahead` calls later."""
        family = self._within + family
        return Site(self.module, family, self._count[self.module, family] + ahead, self._train)

    # ---- slots of tensors --------------------------------------------------------------------------------------------

    def slots(self, tensor: Any) -> list[Slot]:
        """Return the slots of a tensor; an empty list for a tensor without labels, and for None."""
        return self._slots.get(tensor, []) if isinstance(tensor, Tensor) else []

    def carry(self, tensor: Any, slots: Iterable[Slot]) -> None:
        """Give a tensor its slots."""
        if isinstance(tensor, Tensor):
            self._slots[tensor] = [slot for slot in slots if slot.numel() > 1]

    def name(self, tensor: Tensor, name: str) -> None:
        """Remember the name of a parameter or buffer, to record which operators read it."""
        self._names[tensor] = name
        memory = tensor.untyped_storage()._cdata
        self._stored.add(memory)
        if not isinstance(tensor, nn.Parameter):
            self._buffers.add(memory)

    def is_uniform(self, tensor: Tensor) -> bool:
        """Tell whether all elements are equal by construction (zeros, ones): such a tensor fits any width."""
        return tensor in self._uniform and tensor not in self._slots

    def is_stored(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a parameter or buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._stored

    def is_buffer(self, tensor: Tensor) -> bool:
        """Tell whether a tensor is a buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._buffers

    # ---- ties --------------------------------------------------------------------------------------------------------

    def tie(self, a: Slot, b: Slot) -> Slot:
        """Tie two slots that broadcast to each other; return their union, labels of `a` first."""
        alike = a.shape == b.shape
        if alike and torch.equal(a, b):
            return a
        self.ties.tie(a, b, self.here)
        if alike and a.is_contiguous() and bool(a.all()):
            return a  # what the lines below return, in half the time: a layer ties several vectors
        a, b = torch.broadcast_tensors(a, b)
        return torch.where(a == 0, b, a)

    def unite(self, slots: Iterable[Slot]) -> list[Slot]:
        """Tie the slots that vary along the same dimensions; return one for each set of dimensions."""
        united: list[Slot] = []
        for slot in slots:
            for i, other in enumerate(united):
                if set(varying(slot)) & set(varying(other)):
                    united[i] = self.tie(other, slot)
                    break
            else:
                united.append(slot)
        return united

    def tie_vectors(self, a: Tensor | None, b: Tensor | None, why: str) -> Tensor | None:
        """Tie two dimensions that must agree; where only one has labels, pin it to full width because of `why`."""
        if a is None or b is None:
            known = b if a is None else a
            if known is not None:
                self.pin(known, Reason(Kind.FIXED_WIDTH, why))
            return known
        if a.numel() != b.numel():
            if 1 in (a.numel(), b.numel()):
                return b if a.numel() == 1 else a
            raise OutOfStep(f"{a.numel()} channels meet {b.numel()} in {self.here}", distinct(a) + distinct(b))
        return self.tie(a, b)

    def tied_along(self, slot: Slot) -> set[int]:
        """Return the dimensions along which a slot changes from one set of tied channels to another."""
        if not varying(slot):
            return set()
        labels, places = torch.unique(slot, return_inverse=True)
        roots = torch.tensor([self.ties.find(label) for label in labels.tolist()])
        return set(varying(squeeze_equal(roots[places])))

    def pin(self, slot: Slot, reason: Reason) -> None:
        """Pin the channels of a slot to full width; the current position is added to the reason's text."""
        self.ties.pin(slot, replace(reason, text=f"{reason.text}, in {self.here}"))

    def collapse(self, slot: Slot, keep: Sequence[int]) -> Slot:
        """Tie all labels along the dimensions outside `keep`; return the slot that varies along `keep` only."""
        for d in varying(slot):
            if d not in keep:
                first = slot.narrow(d, 0, 1)
                first = torch.where(first == 0, slot.amax(d, keepdim=True), first)  # 0: not written
                self.ties.couple(first, slot, self.here)
                slot = first
        return slot

    def vector(self, slots: Iterable[Slot], dim: int) -> Tensor | None:
        """Return the labels along one dimension as a vector; None where it has none."""
        found: list[Tensor] = []
        for slot in self._without_left_out(slots):
            if slot.shape[dim] > 1:
                labels = self.collapse(slot, (dim,)).reshape(-1)
                if not any(torch.equal(labels, other) for other in found):
                    found.append(labels)
        return self._one_of(found) if found else None

    def untangle(self, slots: Sequence[Slot]) -> list[Slot]:
        """Return slots of one tensor of which no two vary along one dimension; what is left out keeps full width."""
        apart: list[Slot] = []
        for slot in self._without_left_out(slots):
            tangled = [other for other in apart if set(varying(slot)) & set(varying(other))]
            if tangled:
                apart = [other for other in apart if not any(other is each for each in tangled)]
                slot = self._one_of([*tangled, slot])
            apart.append(slot)
        return apart

    def _one_of(self, slots: Sequence[Slot]) -> Slot:
        """Return one of several slots along one dimension, where elements belong to two channels at once; pin the rest.

        It is one that is known as channels, rather than as positions that were flattened with them, and the longest.
        """
        if all(self._tied(slots[0], other) for other in slots[1:]):
            return slots[0]
        first = max(slots, key=lambda slot: (distinct(slot)[0] in self.findings.channels, len(distinct(slot))))
        for slot in slots:
            if slot is not first:
                self.pin(slot, Reason(Kind.TWO_AT_ONCE, "each element belongs to two channels at once"))
                if not self.strict:
                    self.findings.left_out[self.cut].update(distinct(slot))
        return first

    def _without_left_out(self, slots: Iterable[Slot]) -> Iterable[Slot]:
        """Leave out the slots that the first run left out: one of which a single channel is left is gone by now."""
        if not self.strict or self.cut not in self.findings.left_out:
            return slots
        out = self.findings.left_out[self.cut]
        return [slot for slot in slots if not out.issuperset(distinct(slot))]

    def _tied(self, a: Slot, b: Slot) -> bool:
        """Tell whether two slots are tied element by element."""
        return all(self.ties.find(x) == self.ties.find(y) for x, y in pairs(a, b))

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor carries labels."""
        return tensor in self._slots

    def last_labels(self) -> tuple[int, ...]:
        """Return the labels in what the last operator with labels returned."""
        return tuple(label for slot in self._last for label in distinct(slot))

    # ---- records of the first run, with which the second run is compared ---------------------------------------------

    def note_sizes(self, call: Call, read: list[Slot], written: list[list[Slot]]) -> None:
        """Record the sizes that code handed to an operator, with the channels that they count."""
        if not self.strict and sizes_in(call.name, call.args):
            self.findings.sizes[self.cut] = sizes_of(call.name, call.args, read, written)

    def check_sizes(self, site: Site, asked: Sequence[int | None]) -> None:
        """Raise Mismatch if code asks for more or fewer channels than are left of those that it first asked for."""
        sizes = self.findings.sizes.get(site)
        if sizes is None or site in self.unaligned or self.is_kept is None:
            return
        if site.operator == "view" and len(asked) != len(sizes):  # another call, made on the way to a failure
            return
        position = check_sizes(asked, sizes, self.is_kept, by_value=self.values.decide)
        if position is not None:
            size, value = sizes[position], asked[position]
            here = f"{self.here}{line_of_code(self._entry)}"
            raise Mismatch(site, position, value or 0, size.left(self.is_kept) or 0, size, here)

    def note_read(self, labels: Tensor | None) -> None:
        """Record that the current operator sums over these channels, so that later layers depend on them."""
        if labels is not None and not self.strict:
            self.findings.read.update(distinct(labels))

    def note_channels(self, *vectors: Tensor | None) -> None:
        """Record that the current operator uses these labels as channels of its input, its weight, or its output."""
        if not self.strict:
            for labels in vectors:
                if labels is not None:
                    self.findings.channels.update(distinct(labels))

    def note_sum(self, over: Tensor | None, left: Iterable[Slot], *, product: bool) -> None:
        """Record that the current operator sums over some labels and leaves others; both may be of one parameter."""
        left = list(left)
        if not self.strict and over is not None and left:
            self.findings.sums.append(Sum(over, left, product))

    def note_shares(self, slot: Slot) -> None:
        """Record that the current operator makes shares of a whole of these channels."""
        if not self.strict:
            self.findings.shares.update(distinct(slot))

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

    def check_cut(self, cut: Site, number: int, pieces: Sequence[Slot]) -> None:
        """Record which channels go into each piece of a cut; the small network must have the same ones there."""
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
            if self._any_narrowed([*before, *labels]):
                message = f"the channels cut off are not those of the base network, in {self.here}"
                raise OutOfStep(message, [*before, *labels])

    def _fits(self, labels: list[int], slot: Slot, before: Slot) -> bool:
        """Tell whether a slot holds what the small network keeps of the slot `before`, in any order."""
        kept = [label for label in before.reshape(-1).tolist() if label == 0 or self._has(label)]
        return sorted(labels) == sorted(kept) or torch.equal(self._kept_of(before), squeeze_equal(slot))

    def _recorded(self, records: dict[Any, Slot], cut: Site, *piece: int) -> list[Slot]:
        """Return all slots that the first run recorded at an operator.

        Slots are not found by their number: one of which a single channel is left is gone in the second run.
        """
        return [records[key] for number in range(SLOTS) if (key := (cut, number, *piece)) in records]

    def check_neighbours(self, number: int, slot: Slot) -> None:
        """Record the channels that the current operator sees side by side; the small network must have the first ones.

        Behind the last one it sees padding, where the masked base sees dropped channels at zero.
        """
        if self.is_kept is None:
            self.findings.pieces[self.cut, number, 0] = slot
            return
        labels = slot.reshape(-1).tolist()
        recorded = [before.reshape(-1).tolist() for before in self._recorded(self.findings.pieces, self.cut, 0)]
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
        if self._any_narrowed(labels):
            raise OutOfStep(f"channels are folded into different rows in {self.here}", labels)

    def _same_rows(self, before: Slot, folded: Slot) -> bool:
        """Tell whether a view folds what is kept into the same rows as before, in any order within each row."""
        if torch.equal(self._kept_of(before), squeeze_equal(folded)):
            return True
        rows = [d for d in varying(before) if before.shape[d] == folded.shape[d]]
        if before.shape == folded.shape or not rows:
            return False
        kept = [proportions(filter(self._has, line)) for line in lines(before, rows)]
        return kept == [proportions(filter(None, line)) for line in lines(folded, rows)]

    def _kept_of(self, slot: Slot) -> Slot:
        """Return the part of a slot that the small network has: along each dimension, lines with a kept or no label."""
        rest = slot
        for dim in varying(slot):
            kept = [not any(line) or any(map(self._has, line)) for line in lines(slot, [dim])]
            rest = rest.index_select(dim, torch.tensor(kept).nonzero().flatten())
        return squeeze_equal(rest)

    def spans(self, operand: int, slot: Slot) -> set[int]:
        """Return the dimensions along which a slot of the current operator's n-th operand varies in the base network.

        In the small network a dimension with one channel left no longer varies, so the first run's record counts.
        """
        if self.is_kept is None:
            self.findings.operands[self.cut, operand].append(slot)
            return set(varying(slot))
        return {dim for each in self._in_base(operand, slot) for dim in varying(each)} | set(varying(slot))

    def is_folded(self, operand: int, slot: Slot, dims: set[int]) -> bool:
        """Tell whether a slot for which `spans` was asked varies along several dimensions at once in the base."""
        return any(dims <= set(varying(each)) for each in self._in_base(operand, slot))

    def _in_base(self, operand: int, slot: Slot) -> list[Slot]:
        labels = set(distinct(slot))
        return [each for each in self.findings.operands.get((self.cut, operand), ()) if labels & set(distinct(each))]

    def _has(self, label: int) -> bool:
        """Tell whether a label is one of a channel that the small network has."""
        assert self.is_kept is not None
        return bool(label) and self.is_kept(label)

    def _any_narrowed(self, labels: Iterable[int]) -> bool:
        return isinstance(self.ties, FrozenTies) and self.ties.any_narrowed(labels)

    def renew(self, cut: Site, piece: int, slot: Slot) -> Slot:
        """Give the channels behind an unaligned cut fresh labels: from here on, only their number must agree."""
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
        kept = list(filter(self._has, whole))
        first, where = in_order(slot)
        if len(kept) != len(first):
            message = f"{len(first)} channels arrive where {len(kept)} are expected in {self.here}"
            raise TooNarrow(message, kept + distinct(slot), whole, len(first))
        return torch.tensor(kept, dtype=LABEL)[where]

    def attention_scale(self, query: Tensor) -> float | None:
        """Return the scale for an attention without one; None for torch's own, 1/√D of its D features.

        A small network has a smaller D, unless heads are kept or dropped whole.
        """
        last, heads = query.ndim - 1, query.ndim - 3
        for slot in self.slots(query):
            by_head = heads >= 0 and heads in varying(slot)
            inside = not by_head or self.choose_groups(self.module, query.shape[heads], query.shape[last])
            if last in varying(slot) and inside:
                self.note_crossing()
        return None
