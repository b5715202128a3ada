"""Tensors that code makes from numbers, such as positions: the small network has to make the same ones.

Code may count channels to make them: `torch.arange(x.shape[1] // 4)`. Along channels, labels decide what becomes of
them. Along other dimensions, they would pick other places, or weigh them differently. Factors of whole tensors, such as
1/√d, are not compared: they may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.settings import settings_of
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.uniform import CREATE, NOISE

Numbers = tuple[Any, ...]
"""The numbers passed to the operator that makes a tensor, or the tensor's elements."""

_MOST_ELEMENTS = 4096
"""Of a larger tensor from outside the run, only the shape is compared."""

_AT_PLACES = (
    "index", "index_put", "index_put_impl", "unsafe_index", "unsafe_index_put", "gather", "index_add", "index_copy",
    "index_fill", "index_reduce", "index_select", "scatter", "scatter_add", "scatter_reduce",
)  # fmt: skip
"""Operators that get places: in `indices`, an entry for each dimension, or in `index`, along the dimension `dim`."""


class Made:
    """Which tensors without labels differ from those that the base network's code made.

    Args:
        known: site of an operator's first call in a module -> the numbers of all its calls; the first run fills it.
        strict: whether this is the second run, which compares.
    """

    def __init__(self, known: dict[Site, set[Numbers]], *, strict: bool) -> None:
        self._known, self._strict = known, strict
        self._differs: Any = WeakIdKeyDictionary()

    def note(
        self, site: Site, args: dict[str, Any], op: Any, given: Sequence[Tensor], results: Sequence[Tensor]
    ) -> None:
        """Follow an operator whose operands `given` have no labels."""
        name = site.operator
        differs = {self.differs(tensor, site) for tensor in given}
        factor = torch.Tag.pointwise in op.tags and results and results[0].is_floating_point()
        if name not in CREATE and name not in NOISE and not factor:
            differs.add(self._is_new(site, _numbers(name, args, op, given)))
        for tensor in results:
            self._differs[tensor] = True in differs
            if True in differs and name.endswith("_") and tensor._base is not None:
                self._differs[tensor._base] = True

    def differs(self, tensor: Tensor, site: Site) -> bool:
        """Return whether a tensor without labels, read by the operator at `site`, differs from that of the base."""
        if tensor not in self._differs:  # no operator made it: a list of indices, a NumPy array
            self._differs[tensor] = self._is_new(site._replace(operator="from outside"), _elements(tensor))
        return self._differs[tensor]

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors for the same in both runs: inputs, and results of operators that labels or values decide."""
        for tensor in tensors:
            self._differs[tensor] = False

    def _is_new(self, site: Site, numbers: Numbers) -> bool:
        if not self._strict:
            self._known[site].add(numbers)
        return self._strict and numbers not in self._known[site]


def _numbers(name: str, args: dict[str, Any], op: Any, given: Sequence[Tensor]) -> Numbers:
    if name == "lift_fresh":  # torch.tensor
        return _elements(given[0])
    if given and torch.Tag.pointwise not in op.tags:
        return settings_of(name, args, ())
    return tuple(value for value in args.values() if isinstance(value, (int, float)))


def _elements(tensor: Tensor) -> Numbers:
    if tensor.numel() <= 1 or tensor.numel() > _MOST_ELEMENTS or tensor.is_meta:
        return tuple(tensor.shape)
    return (repr(tensor.tolist()),)  # text: a NaN equals no other


def along_channels(op: Any, args: dict[str, Any], tensor: Tensor, channels: set[int]) -> set[int]:
    """Return the dimensions of a tensor without labels that lie along channels of the other operands.

    Args:
        op: the operator.
        args: its arguments.
        tensor: one of its operands.
        channels: dimensions along which labels of the operands vary, counted from the last one, which is -1.
    """
    name, every = op._schema.name.split("::")[1].strip("_"), set(range(tensor.ndim))
    if torch.Tag.pointwise in op.tags or name == "masked_fill":
        return {d for d in every if d - tensor.ndim in channels}
    if name in _AT_PLACES:
        ndim = args["self"].ndim
        indices = enumerate(args["indices"]) if "indices" in args else [(args["dim"] % max(ndim, 1), tensor)]
        return every if all(d - ndim in channels for d, index in indices if index is tensor) else set()
    return set()
