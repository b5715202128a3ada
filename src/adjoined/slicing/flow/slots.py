"""The slots of a run's tensors: which labels they hold, how labels are tied, and where the run is."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from types import CodeType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import (
    FrozenTies,
    OutOfStep,
    Slot,
    Ties,
    along,
    distinct,
    pairs,
    squeeze_equal,
    varying,
)
from adjoined.slicing.flow.sizes import Site, family_of
from adjoined.slicing.flow.uniform import Uniform
from adjoined.slicing.plan.reasons import Kind, Reason


class Slots:
    """The slots of a run's tensors, and the ties of their labels.

    Attributes:
        ties: `Ties` in the first run, which ties labels; `FrozenTies` in the second, which checks.
        findings: filled in the first run, read in the second.
        is_kept: label -> whether the small network has it; None in the first run.
        last_op: name of the operator that runs.
        choices: index tensor -> slots of the channels among which it picks the largest or smallest.
        uniform: tensors whose elements are all equal.
        statistics: tensor -> slots of the channels whose statistics it holds, with no layer in between.
    """

    def __init__(self, ties: Ties | FrozenTies, findings: Findings, is_kept: Callable[[int], bool] | None) -> None:
        self.ties, self.findings, self.is_kept = ties, findings, is_kept
        self.last_op = ""
        self._modules = [""]  # those that run, outermost first
        self._entry: CodeType | None = None  # the code that called the model
        self._train = False
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._within = ""  # the call of torch.einsum that runs
        self._slots: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()
        self.uniform = Uniform()
        self.choices: Any = WeakIdKeyDictionary()
        self.statistics: Any = WeakIdKeyDictionary()
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
    def call_site(self) -> Site:
        """The key of the current operator: the same in both runs if the module's code takes the same path."""
        return self.site(family_of(self.last_op))

    def site(self, family: str, ahead: int = 0) -> Site:
        """Return the key of the latest operator of a family, or of the one `ahead` calls later."""
        family = self._within + family
        return Site(self.module, family, self._count[self.module, family] + ahead, self._train)

    @contextlib.contextmanager
    def counting_apart(self) -> Iterator[None]:
        """Count the operators of a call separately, because the tensors' shapes decide which ones it runs.

        The sizes that they get are torch's own and right for the shapes, so they are not checked.
        """
        self._count[self.module, "call"] += 1
        self._within = f"call {self._count[self.module, 'call']}: "
        try:
            yield
        finally:
            self._within = ""

    # ---- slots of tensors --------------------------------------------------------------------------------------------

    def slots(self, tensor: Any) -> list[Slot]:
        """Return the slots of a tensor; an empty list for a tensor without labels, and for None."""
        return self._slots.get(tensor, []) if isinstance(tensor, Tensor) else []

    def carry(self, tensor: Any, slots: Iterable[Slot]) -> None:
        """Give a tensor its slots."""
        if isinstance(tensor, Tensor):
            self._slots[tensor] = [slot for slot in slots if slot.numel() > 1]

    def carry_along(self, tensor: Tensor, dim: int, vector: Tensor | None, others: Iterable[Slot] = ()) -> None:
        """Give a tensor the labels along one dimension, None for no labels there, and its other slots."""
        self.carry(tensor, others if vector is None else [*others, along(vector, dim, tensor.ndim)])

    def name(self, tensor: Tensor, name: str) -> None:
        """Remember the name of a parameter or buffer, to record which operators read it."""
        self._names[tensor] = name
        memory = tensor.untyped_storage()._cdata
        if tensor.numel() > 1:  # otherwise the run may resize it and give it other labels
            self._stored.add(memory)
        if not isinstance(tensor, nn.Parameter):
            self._buffers.add(memory)

    def is_uniform(self, tensor: Tensor) -> bool:
        """Return whether all elements are equal by construction (zeros, ones): such a tensor fits any width."""
        return tensor in self.uniform and tensor not in self._slots

    def differs_along(self, tensor: Tensor) -> set[int]:
        """Return the dimensions along which the elements of a tensor without labels may differ."""
        dims = None if tensor in self._slots else self.uniform.differs_along(tensor)
        return set(range(tensor.ndim)) if dims is None else dims

    def of_fixed_input(self, weight_in: Tensor, x: Tensor, dim: int) -> Tensor:
        """Return what a weight reads along `dim` of a tensor without labels; 0 for zeros, which fit any width."""
        if self.is_uniform(x):
            return torch.zeros_like(weight_in)
        filled = self.uniform.filled(x, dim)
        return weight_in if filled is None else weight_in.masked_fill(filled, 0)

    def is_stored(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a parameter or buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._stored

    def is_buffer(self, tensor: Tensor) -> bool:
        """Return whether a tensor is a buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._buffers

    # ---- ties --------------------------------------------------------------------------------------------------------

    def tie(self, a: Slot, b: Slot) -> Slot:
        """Tie two slots that broadcast to each other; return their union, labels of `a` first."""
        alike = a.shape == b.shape
        if alike and torch.equal(a, b):
            return a
        self.ties.tie(a, b, self.here)
        if alike and a.is_contiguous() and bool(a.all()):
            return a  # the result of the lines below in half the time; a layer ties several vectors
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
        """Tie two dimensions that must agree; if only one has labels, pin it to full width because of `why`."""
        if a is None or b is None:
            self.pin(known := b if a is None else a, Reason(Kind.FIXED_WIDTH, why))
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
        return set(varying(squeeze_equal(self.ties.roots_of(slot))))

    def pin(self, slot: Slot | None, reason: Reason) -> None:
        """Pin the channels of a slot to full width; the current position is added to the reason's text."""
        if slot is not None:
            self.ties.pin(slot, replace(reason, text=f"{reason.text}, in {self.here}"))

    def pin_all(self, tensor: Any, reason: Reason) -> None:
        """Pin the channels of all slots of a tensor to full width."""
        for slot in self.slots(tensor):
            self.pin(slot, reason)

    def pin_others(self, slots: Iterable[Slot], fits: Callable[[Slot], bool], reason: Reason) -> list[Slot]:
        """Return the slots that fit, and pin the others to full width."""
        sorted_out = [(slot, fits(slot)) for slot in slots]
        for slot, fitting in sorted_out:
            if not fitting:
                self.pin(slot, reason)
        return [slot for slot, fitting in sorted_out if fitting]

    def outside(self, slots: Iterable[Slot], dims: Collection[int], reason: Reason) -> list[Slot]:
        """Tie labels along some dimensions, and return the slots along the others; pin slots that have no others."""
        kept = self.pin_others(slots, lambda slot: not set(varying(slot)).issubset(dims), reason)
        return [self.collapse(slot, [d for d in range(slot.ndim) if d not in dims]) for slot in kept]

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
        """Return the labels along one dimension as a vector; None if it has none."""
        found: list[Tensor] = []
        for slot in self._without_left_out(slots):
            if slot.shape[dim] > 1:
                labels = self.collapse(slot, (dim,)).reshape(-1)
                if not any(torch.equal(labels, other) for other in found):
                    found.append(labels)
        return self._one_of(found) if found else None

    def untangle(self, slots: Sequence[Slot]) -> list[Slot]:
        """Return slots of one tensor, no two of which vary along the same dimension; those left out keep full width."""
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

        Channels are preferred to positions that were flattened with them, then the longest slot.
        """
        if all(self._tied(slots[0], other) for other in slots[1:]):
            return slots[0]
        first = max(slots, key=lambda slot: (distinct(slot)[0] in self.findings.channels, len(distinct(slot))))
        for slot in slots:
            if slot is not first:
                self.pin(slot, Reason(Kind.TWO_AT_ONCE, "each element belongs to two channels at once"))
                if not self.strict:
                    self.findings.left_out[self.call_site].update(distinct(slot))
        return first

    def _without_left_out(self, slots: Iterable[Slot]) -> Iterable[Slot]:
        """Leave out the slots that the first run left out; a slot with a single channel left no longer exists."""
        if not self.strict or self.call_site not in self.findings.left_out:
            return slots
        out = self.findings.left_out[self.call_site]
        return [slot for slot in slots if not out.issuperset(distinct(slot))]

    def _tied(self, a: Slot, b: Slot) -> bool:
        """Return whether two slots are tied element by element."""
        return all(self.ties.find(x) == self.ties.find(y) for x, y in pairs(a, b))

    def knows(self, tensor: Tensor) -> bool:
        """Return whether a tensor carries labels."""
        return tensor in self._slots

    def last_labels(self) -> tuple[int, ...]:
        """Return the labels in what the last operator with labels returned."""
        return tuple(label for slot in self._last for label in distinct(slot))
