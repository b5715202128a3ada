"""Which tensors of a run depend on the values of its input, and whether such values decide what runs next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

_READ = ("_local_scalar_dense", "is_nonzero", "equal")
"""Operators that hand a value to Python: item(), bool(), if, torch.equal."""


class Values:
    """Which tensors of a run depend on the values of its input, not only on its shape.

    Attributes:
        read_in: the first module whose Python code reads such a value; None if none does.
        decide: whether values decide sizes: Python code reads them, or an operator returns as many elements as it finds
            (masks, remaining boxes). Another network's output then has other sizes.
    """

    def __init__(self) -> None:
        self.read_in: str | None = None
        self.decide = False
        self._computed: Any = WeakIdKeyDictionary()

    def start(self, inputs: Any) -> None:
        """Begin with the tensors that the model is called with."""
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._computed[leaf] = True

    def computed(self, tensor: Tensor) -> bool:
        """Return whether the tensor's elements depend on the values of the input."""
        return tensor in self._computed

    def note(self, op: Any, name: str, given: Sequence[Tensor], results: Sequence[Tensor], module: str) -> bool:
        """Pass on to the results whether the operands depend on the input's values; return whether code reads them."""
        if name.endswith("_like") or not any(tensor in self._computed for tensor in given):
            return False
        if name in _READ:
            self.decide = True
            self.read_in = module if self.read_in is None else self.read_in
        elif name == "index":  # its tag says that its output shape is dynamic, but only masks make it so
            self.decide |= any(i.dtype in (torch.bool, torch.uint8) and self.computed(i) for i in given[1:])
        else:
            self.decide |= name == "nms" or torch.Tag.dynamic_output_shape in op.tags
        for tensor in results:
            self._computed[tensor] = True
        return name in _READ
