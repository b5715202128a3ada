"""Find the alpha that makes a network a wanted number of times smaller."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.cost import last_linear
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.solve.request import Request
from adjoined.slicing.solve.solve import solve
from adjoined.slicing.solve.widths import AlphaTooLarge

STEPS = 12
"""Halvings of the range of alpha: its logarithm is found to a 4,000th part."""


def find_alpha(model: nn.Module, inputs: Inputs, request: Request, compress: float) -> SlicePlan:
    """Return the plan with the smallest alpha that makes the network at least `compress` times smaller.

    Args:
        model, inputs, request: as in `solve`; the request's alpha is ignored.
        compress: parameters of the base / parameters of the small network, both without the last linear layer.

    Raises:
        AdjoinedError: `compress` is below 1, or no alpha goes as far.
    """
    if isinstance(compress, bool) or not isinstance(compress, (int, float)) or not compress >= 1:
        raise AdjoinedError(
            "not a factor by which a network can be made smaller",
            where="compress",
            expected="a number of at least 1",
            got=compress,
            fix="Use 13.7 for 13.7 times fewer parameters without the last linear layer.",
        )

    def reached(plan: SlicePlan) -> float:
        base = sum(math.prod(plan.shapes[name]) for name in names)
        return base / sum(math.prod(plan.small_shape(name)) for name in names)

    widest = max(p.shape[0] for p in model.parameters() if p.ndim)
    low, high = 1.0, float(widest)
    best = None
    while best is None:
        try:
            best = solve(model, inputs, replace(request, alpha=high))
        except AlphaTooLarge:
            if high <= 1:
                raise
            high = max(1.0, high / 2)
    last = last_linear(model, inputs)
    names = [name for name, _ in model.named_parameters() if last is None or not name.startswith(f"{last}.")]
    if reached(best) < compress:
        raise AdjoinedError(
            "the network cannot be made so much smaller by narrowing",
            where=f"compress={compress:g}",
            expected=f"at most {reached(best):.4g} (alpha {high:g})",
            fix="Ask for less, keep fewer modules at full width, or lower round_to.",
        )
    for _ in range(STEPS):
        middle = math.sqrt(low * high)
        plan = solve(model, inputs, replace(request, alpha=middle))
        if reached(plan) >= compress:
            high, best = middle, plan
        else:
            low = middle
        if high / low < 1.001:
            break
    return best
