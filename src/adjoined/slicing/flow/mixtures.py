"""Mixtures: a learned table (codes, basis functions, bins) whose entries a softmax weights keeps all of them.

A softmax over channels is nothing special: attention over channels is narrowed with them, and a layer may read its
results as channels. But if they weight a sum over a tensor that does not depend on the input, they weight the entries
of a table. With fewer entries it would be a different table: the first half of the codes, or of the ages that a
regression by classes averages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, distinct, varying
from adjoined.slicing.flow.operators import OPERATORS
from adjoined.slicing.flow.slots import Slots
from adjoined.slicing.flow.values import Values
from adjoined.slicing.plan.reasons import Kind, Reason

ENTRIES = Reason(Kind.PLACES, "counts the entries of a table that a softmax weighs")

_SOFTMAX = ("_softmax", "_safe_softmax")
_ALIKE = ("clone", "detach", "alias", "_to_copy", "dropout", "native_dropout", "contiguous")
PRODUCTS = dict.fromkeys(("mm", "bmm", "addmm", "baddbmm"), (-1, -2)) | {"mv": (-1, -1), "convolution": (1, 1)}
"""Product -> the dimensions of its two factors that it sums over."""


class Shares:
    """Which tensors of a run hold shares: what a softmax returned, moved, scaled, or multiplied by a table."""

    def __init__(self, slots: Slots, values: Values) -> None:
        self._slots, self._values = slots, values
        self._labels_of: Any = WeakIdKeyDictionary()
        self._in_table: Any = WeakIdKeyDictionary()

    def note(self, call: Call, *, in_layer: bool) -> None:
        """Follow the shares through an operator, and pin the entries of a table that it weights by them."""
        if call.name in _SOFTMAX:
            x = call.tensors[0]
            over = [slot for slot in self._slots.slots(x) if call["dim"] % x.ndim in varying(slot)]
            return self._mark(call.outputs[:1], {label for slot in over for label in distinct(slot)}, in_table=False)
        given = call.tensors
        shared = [tensor for tensor in given if tensor in self._labels_of]
        if not shared:
            return None
        labels = set[int]().union(*(self._labels_of[tensor] for tensor in shared))
        in_table = any(tensor in self._in_table for tensor in shared)
        operator = OPERATORS.get(call.name)
        if call.name in _ALIKE or (operator is not None and operator.moves):
            self._mark(call.outputs, labels, in_table=in_table)
        elif call.name in PRODUCTS:
            # A layer that writes channels reads channels; one that writes a single number takes a mean.
            channels = 1 if call.name == "convolution" else -1
            if not (in_layer or call.name == "convolution") or call.out.shape[channels] == 1:
                self._weigh(given[-2:] if "add" in call.name else given[:2], PRODUCTS[call.name])
        elif call.name == "sum" and in_table:
            self._pin(shared[0], call["dim"] or range(shared[0].ndim))
        elif torch.Tag.pointwise in call.op.tags:
            others = [tensor for tensor in given if tensor not in self._labels_of]
            tied = [tensor for tensor in others if self._tied(labels, self._slots.slots(tensor))]
            if not any(self._values.computed(tensor) for tensor in tied):  # otherwise they weight channels
                self._mark(call.outputs, labels, in_table=in_table or bool(tied))
        return None

    def _mark(self, results: Iterable[Tensor], labels: set[int], *, in_table: bool) -> None:
        for tensor in results if labels else ():
            self._labels_of[tensor] = labels
            if in_table:
                self._in_table[tensor] = True

    def _weigh(self, factors: list[Tensor], inner: tuple[int, int]) -> None:
        for tensor, other, dim in zip(factors, reversed(factors), inner, strict=True):
            if tensor in self._labels_of and not self._values.computed(other):
                self._pin(tensor, [dim])

    def _pin(self, tensor: Tensor, dims: Iterable[int]) -> None:
        reduced = {dim % tensor.ndim for dim in dims}
        for slot in self._slots.slots(tensor):
            if reduced & set(varying(slot)) and self._tied(self._labels_of[tensor], [slot]):
                self._slots.pin(slot, ENTRIES)

    def _tied(self, labels: Iterable[int], slots: Iterable[Slot]) -> bool:
        """Return whether any of the labels is tied to one in the slots."""
        find = self._slots.ties.find
        return not {find(label) for label in labels}.isdisjoint(find(each) for slot in slots for each in distinct(slot))
