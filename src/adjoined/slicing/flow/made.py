"""Tensors that code makes from numbers, such as positions: the small network has to make the same ones.

Code may count channels to make them: `torch.arange(x.shape[1] // 4)`. Along channels, labels decide what becomes of
them. Along other dimensions, they would pick other places, or weigh them differently. Factors that code computes from a
width, such as 1/√d, may differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.settings import SHAPED, places_of, settings_of
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.uniform import CREATE, NOISE

Numbers = tuple[Any, ...]
"""The numbers passed to the operator that makes a tensor, or the tensor's elements."""

_MOST_ELEMENTS = 4096
"""Of a larger tensor that no operator of the run made, only the shape is compared."""

_AT_PLACES = (
    "index", "index_put", "index_put_impl", "unsafe_index", "unsafe_index_put", "gather", "index_add", "index_copy",
    "index_fill", "index_reduce", "index_select", "scatter", "scatter_add", "scatter_reduce",
)  # fmt: skip
"""Operators that get places: in `indices`, an entry for each dimension, or in `index`, along the dimension `dim`."""


class Difference(IntEnum):
    """How a tensor differs from that of the base network's code."""

    NONE = 0
    FACTORS = 1
    """One number, or as many as a range has, but others, such as multiples of a width: the small network's factors."""
    PLACES = 2


class Made:
    """Which tensors without labels differ from those that the base network's code made.

    Args:
        known: site of an operator's first call in a module -> the numbers of all its calls; the first run fills it.
        strict: whether this is the second run, which compares.
    """

    def __init__(self, known: dict[Site, set[Numbers]], *, strict: bool) -> None:
        self._known, self._strict = known, strict
        self._differences: Any = WeakIdKeyDictionary()

    def note(
        self,
        site: Site,
        args: dict[str, Any],
        op: Any,
        given: Sequence[Tensor],
        results: Sequence[Tensor],
        *,
        computed: bool,
    ) -> None:
        """Follow an operator whose operands `given` have no labels; `computed`: they depend on the input's values."""
        name, pointwise = site.operator, torch.Tag.pointwise in op.tags
        factors = pointwise and bool(results) and results[0].is_floating_point()
        found = max((self._difference(tensor, site) for tensor in given), default=Difference.NONE)
        if name == "arange":
            found = self._of_range(site, _numbers(name, args, op, given), results[0].numel())
        elif name in ("full", "new_full"):
            if self._is_new(site, (args["fill_value"],)):
                found = max(found, Difference.FACTORS)
        elif found and pointwise and not factors:  # a comparison
            found = Difference.PLACES
        elif not factors and name not in CREATE and name not in NOISE:
            numbers = _numbers(name, args, op, given)
            if computed and name in SHAPED and name != "repeat":  # copies may be for channels
                numbers += (places_of(results, ()),)
            found = Difference.PLACES if self._is_new(site, numbers) else found
        for tensor in results:
            self._differences[tensor] = found
            if found and name.endswith("_") and tensor._base is not None:
                self._differences[tensor._base] = found

    def differs(self, tensor: Tensor, site: Site, op: Any) -> bool:
        """Return whether a tensor without labels makes an operator, called at `site`, do something else."""
        found = self._difference(tensor, site)
        factors = torch.Tag.pointwise in op.tags and tensor.dtype != torch.bool
        return found > (Difference.FACTORS if factors else Difference.NONE)

    def _of_range(self, site: Site, numbers: Numbers, count: int) -> Difference:
        other_count = self._is_new(site._replace(operator="length of arange"), (count,))
        others = self._is_new(site, numbers)
        return Difference.PLACES if other_count else Difference.FACTORS if others else Difference.NONE

    def _difference(self, tensor: Tensor, site: Site) -> Difference:
        if tensor not in self._differences:  # not made by an operator: torch.tensor, a list of indices, NumPy
            self._differences[tensor] = self._of_elements(site._replace(operator="from outside"), tensor)
        return self._differences[tensor]

    def _of_elements(self, site: Site, tensor: Tensor) -> Difference:
        if not self._is_new(site, _elements(tensor)):
            return Difference.NONE
        return Difference.FACTORS if tensor.numel() == 1 else Difference.PLACES

    def take(self, tensors: Iterable[Tensor]) -> None:
        """Take tensors for the same in both runs: inputs, and results of operators that labels or values decide."""
        for tensor in tensors:
            self._differences[tensor] = Difference.NONE

    def _is_new(self, site: Site, numbers: Numbers) -> bool:
        if not self._strict:
            self._known[site].add(numbers)
        return self._strict and numbers not in self._known[site]


def _numbers(name: str, args: dict[str, Any], op: Any, given: Sequence[Tensor]) -> Numbers:
    if given and torch.Tag.pointwise not in op.tags:
        return settings_of(name, args, ())
    return tuple(value for value in args.values() if isinstance(value, (int, float)))


def _elements(tensor: Tensor) -> Numbers:
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
    if not plain or tensor.numel() > _MOST_ELEMENTS:
        return tuple(tensor.shape)
    return (repr(tensor.tolist()),)  # text: a NaN equals no other


def picks_places(args: dict[str, Any], tensor: Tensor) -> bool:
    """Return whether an operator gets a tensor as places, so that it matters even where all elements are equal."""
    return args.get("index") is tensor or any(each is tensor for each in args.get("indices") or ())


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
