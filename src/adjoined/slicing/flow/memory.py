"""Labels of memory that is written through views: `out[:, :c] = a` gives labels to a part of `out`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from adjoined.slicing.flow.labels import LABEL, Slot, squeeze_equal, varying


class _Block(NamedTuple):
    storage: Any
    """The memory itself, kept alive so that no other tensor gets its address."""
    itemsize: int
    layers: list[Tensor]
    """One label for every element of the memory; as many layers as its tensors have slots."""


class Memory:
    """The labels of memory that was written in parts; every view of it reads its labels here."""

    def __init__(self) -> None:
        self._blocks: dict[int, _Block] = {}

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def read(self, tensor: Tensor) -> list[Slot] | None:
        """Return the slots of a tensor; None if its memory was never written in parts."""
        block = self._blocks.get(tensor.untyped_storage()._cdata)
        if block is None or block.itemsize != tensor.itemsize:
            return None
        slots = (squeeze_equal(_part(layer, tensor)).clone() for layer in block.layers)  # layers will change
        return [slot for slot in slots if slot.numel() > 1]

    def write(self, view: Tensor, slots: Sequence[Slot], base_slots: Sequence[Slot]) -> None:
        """Store the slots of a view for the part of the memory that it covers.

        `base_slots` are those of the whole tensor behind the view before its first part was written.
        """
        storage = view.untyped_storage()
        block = self._blocks.get(storage._cdata)
        if block is None:
            block = self._blocks[storage._cdata] = _Block(storage, view.itemsize, [])
            if view._base is not None:
                self._put(block, view._base, base_slots)
        self._put(block, view, slots)

    def _put(self, block: _Block, tensor: Tensor, slots: Sequence[Slot]) -> None:
        while len(block.layers) < len(slots):
            block.layers.append(torch.zeros(block.storage.nbytes() // block.itemsize, dtype=LABEL))
        ordered = sorted(slots, key=varying)
        for number, layer in enumerate(block.layers):
            _part(layer, tensor).copy_(ordered[number] if number < len(ordered) else torch.zeros(()))


def _part(layer: Tensor, tensor: Tensor) -> Tensor:
    return layer.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
