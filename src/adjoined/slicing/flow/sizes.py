"""The sizes that a model's own code passes to an operator, such as the shape of a view, and the channels they count.

The first run records every such size with the labels of the channels that it counts. In the second run, on the small
network, the code has to ask for the number of these channels that are left. A module's attribute (`num_heads`,
`head_dim`) that still describes the base network is noticed here, at the operator that gets it.

Integers have three names in this package: a *size* is what code passes to an operator, an *attribute* is what a module
stores, and a *width* is how many channels a group has.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple

from torch import Tensor

from adjoined.slicing.flow.labels import OutOfStep, Slot, varying
from adjoined.slicing.plan.reasons import Kind

RESHAPES = ("view", "_unsafe_view", "reshape", "unflatten", "_reshape_alias", "_reshape_copy")
GROUPED = {"convolution": "groups", "native_group_norm": "group"}
"""Operator -> its argument that counts groups of channels, which its rule records where whole groups are dropped."""
LAYER_NORMS = ("native_layer_norm", "_fused_rms_norm", "rms_norm")


def family_of(name: str) -> str:
    """Return one name for all operators that reshape: torch chooses between them by strides, which may differ."""
    return "view" if name in RESHAPES else name


class Site(NamedTuple):
    """One call in a model's code: the n-th call of this operator within a module, in eval or train mode."""

    module: str
    operator: str
    number: int
    train: bool


class Size(NamedTuple):
    """A size that code passed to an operator of the base network."""

    value: int
    counted: tuple[tuple[int, ...], ...]
    """Labels of the channels that it counts: a vector for each slot with labels there; empty for a constant."""

    def left(self, is_kept: Callable[[int], bool]) -> int | None:
        """Return how many of its channels the small network keeps; if several slots label one, all must keep it."""
        if not self.counted:
            return self.value
        return sum(all(label == 0 or is_kept(label) for label in place) for place in zip(*self.counted, strict=True))


class Mismatch(OutOfStep):
    """Code asks an operator for a number of channels that the small network does not have."""

    kind = Kind.FIXED_SIZE

    def __init__(self, site: Site, position: int, asked: int, left: int, size: Size, here: str) -> None:
        labels = [label for vector in size.counted for label in vector]
        super().__init__(
            f"the code asks for a size of {asked} where {left} of {abs(size.value)} are left, in {here}", labels
        )
        self.site, self.position, self.asked, self.left, self.size = site, position, asked, left, size


@dataclass(frozen=True)
class Formula:
    """An attribute of the small network, computed from its widths: (plus - minus) * times / by, in kept channels."""

    plus: tuple[int, ...]
    minus: tuple[int, ...] = ()
    times: int = 1
    by: int = 1

    def value(self, is_kept: Callable[[int], bool]) -> int | None:
        """Return the value, or None if it is not a positive integer."""
        scaled = (count_left(self.plus, is_kept) - count_left(self.minus, is_kept)) * self.times
        return scaled // self.by if scaled > 0 and scaled % self.by == 0 else None


def count_left(labels: Sequence[int], is_kept: Callable[[int], bool]) -> int:
    """Return how many of these channels the small network keeps; label 0 stands for what is never dropped."""
    return sum(1 for label in labels if label == 0 or is_kept(label))


def sizes_in(name: str, args: dict[str, Any]) -> list[int | None]:
    """Return the sizes among an operator's arguments, always in the same order; None for those that ask for nothing.

    Example:
        >>> sizes_in("view", {"size": [1, -1, 8]}), sizes_in("slice", {"start": 0, "end": 16})
        ([1, None, 8], [None, 16])
    """
    if name in RESHAPES or name == "expand":
        target = args.get("size") or args.get("shape") or args.get("sizes") or ()
        return [int(size) if size != -1 else None for size in target]
    if name in ("split_with_sizes", "unsafe_split_with_sizes"):
        return [int(size) for size in args["split_sizes"]]
    if name in ("split", "unsafe_split"):
        return [int(args["split_size"])] if isinstance(args.get("split_size"), int) else []
    if name == "slice":
        return [_bound(args.get("start")), _bound(args.get("end"))]
    if name in LAYER_NORMS:
        return [int(size) for size in args.get("normalized_shape") or ()]
    if name in GROUPED:
        return [int(args[GROUPED[name]])]
    return []


def _bound(value: Any) -> int | None:
    """Return the bound of a slice; None at the start and the end of the dimension."""
    return None if value is None or value == 0 or value >= 1 << 40 else int(value)


def sizes_of(name: str, args: dict[str, Any], inputs: Sequence[Slot], outputs: Sequence[Sequence[Slot]]) -> list[Size]:
    """Return the sizes among an operator's arguments, with the channels of its inputs or outputs that they count."""
    values = sizes_in(name, args)
    if name in LAYER_NORMS:
        ndim = args["input"].ndim
        dims = range(ndim - len(values), ndim)
        return [_size(value, inputs, d) for value, d in zip(values, dims, strict=True)]
    if name == "slice":
        dim = (args.get("dim") or 0) % args["self"].ndim
        # What is before the bound, or after it if the bound counts from the end.
        parts = [slice(value) if (value or 0) > 0 else slice(value, None) for value in values]
        return [_size(value, inputs, dim, part) for value, part in zip(values, parts, strict=True)]
    if name in ("split_with_sizes", "unsafe_split_with_sizes", "split", "unsafe_split"):
        dim = (args.get("dim") or 0) % args["self"].ndim
        return [_size(value, slots, dim) for value, slots in zip(values, outputs, strict=False)]
    return [_size(value, outputs[0], d) for d, value in enumerate(values)]


def _size(value: int | None, slots: Sequence[Slot], dim: int, part: slice = slice(None)) -> Size:
    """Return a size with the channels that it counts: those in a part of a dimension."""
    if value is None:
        return Size(-1, ())
    lines = [_line(slot, dim)[part] for slot in slots if dim in varying(slot)]
    return Size(value, tuple(tuple(line.tolist()) for line in lines))


def _line(slot: Slot, dim: int) -> Tensor:
    """Return the labels along one dimension, at index 0 of all others."""
    return slot.movedim(dim, 0).reshape(slot.shape[dim], -1)[:, 0]


def check_sizes(
    asked: Sequence[int | None], sizes: Sequence[Size], is_kept: Callable[[int], bool], *, by_value: bool
) -> int | None:
    """Return the position of the first size that does not ask for the channels that are left; None if all do.

    If values decide sizes (`by_value`), a size from which nothing was dropped may count found objects instead.
    """
    for position, (value, size) in enumerate(zip(asked, sizes, strict=False)):
        if value is None or size.value == -1 or not size.counted:
            continue
        left = size.left(is_kept)
        if by_value and left == abs(size.value):
            continue
        if left is not None and abs(value) != left and value != (-1 if size.value < 0 else 1) * left:
            return position
    return None


def line_of_code(entry: CodeType | None) -> str:
    """Return the running line of the code called by `entry`, as ", FILE.py:LINE"; "" inside torch's own modules."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not entry:
        package = frame.f_globals.get("__name__", "")
        if package.partition(".")[0] != "torch" and not package.startswith("adjoined.slicing"):
            return f", {Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
