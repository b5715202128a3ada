"""The numbers that the small network's code passes to operators, such as 1/√d."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import Ties
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.verify.liven import repeatable

NumberedCall = tuple[Any, int]
"""An operator, and which of its calls that get numbers."""

RANGE = torch.ops.aten.arange.start_step
_MAKERS = (RANGE, torch.ops.aten.full.default, torch.ops.aten.full_like.default, torch.ops.aten.new_full.default)
"""Operators that make a tensor of numbers."""


class Numbers(LabelFlow):
    """One run of the small network that records the numbers that its code passes to operators.

    Attributes:
        of: operator -> for each of its calls that gets numbers, position of the argument -> the number.
    """

    innermost = staticmethod(repeatable)

    def __init__(self) -> None:
        super().__init__(Ties(), Findings())
        self.of: dict[Any, list[dict[int, Any]]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if numbers := numbers_in(func, args):
            self.of[func].append(numbers)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def leave_out(self, calls: Iterable[NumberedCall]) -> None:
        """Forget the numbers of these calls."""
        for func, number in calls:
            self.of[func][number] = {}


def numbers_in(func: Any, args: Sequence[Any]) -> dict[int, Any]:
    """Return the numbers among an elementwise operator's arguments, or those that a new tensor is made of."""
    if func is torch.ops.aten.lift_fresh.default:
        one = args[0].numel() == 1 and (args[0].ndim == 0 or args[0].is_floating_point())  # others may be indices
        return {0: args[0]} if one else {}
    numbers = torch.Tag.pointwise in func.tags or func in _MAKERS
    return {n: value for n, value in enumerate(args) if numbers and type(value) in (int, float, complex)}
