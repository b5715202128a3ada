"""Find the alpha of the largest small network that is small enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.solve.budget import Limit
from adjoined.slicing.solve.request import Request
from adjoined.slicing.solve.solve import solve
from adjoined.slicing.solve.traces import Traces
from adjoined.slicing.solve.widths import widest_layer

Latency = Callable[[nn.Module], float]
"""The small network as a plain module in eval mode -> milliseconds for the example input."""

INDISTINCT = 1.02
"""Alphas closer than this ratio are not measured separately."""


def find_alpha(traces: Traces, request: Request, latency: Latency | None = None) -> SlicePlan:
    """Return the plan of the largest small network within `compress` or `budget`.

    Widths change at finitely many alphas, which are bisected on one trace. So the result is exact for parameters, bytes
    and MACs: the next larger network does not fit. Milliseconds are measured on a few candidates.

    The alpha of the request is ignored; `latency` measures a candidate, for a budget in milliseconds.

    Raises:
        AdjoinedError: the smallest network is too large (the message says how large it is), the budget is in
            milliseconds and `latency` is missing, or as in `solve`.
    """
    limits = request.limits
    timed = next((limit for limit in limits if limit.quantity == "ms"), None)
    if timed is not None and latency is None:
        raise AdjoinedError(
            "a budget in milliseconds needs a function that measures them",
            where=f"budget={timed.text!r}",
            fix="`adjoined plan` and `adjoined train` measure them. In Python, give `adjoin`, `make_plan` or "
            "`search_widths` a `latency`, a function of the small network that returns milliseconds.",
        )
    search = _Search(traces, request)
    whole = search.plan(0)
    if request.compress is not None:
        assert whole.base_cost is not None
        most = whole.base_cost.parameters_without_last / request.compress
        limits = (Limit("parameters without the last layer", most, f"{request.compress:g}"),)
    found = search.counted([limit for limit in limits if limit is not timed])
    if timed is not None and latency is not None:
        found = search.measured(timed, latency, found)
    return search.plan(found)


@dataclass
class _Search:
    """The plans of one model at the alphas where some width changes."""

    traces: Traces
    request: Request
    alphas: list[float] = field(default_factory=lambda: [1.0])
    _plans: dict[float, SlicePlan] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find the alphas, from the groups of the network at full width."""
        self.plan(0)
        _, widest = widest_layer(self.traces.latest[1].groups)
        top = max(float(widest), 1.0)
        steps = {n / k for n in self.traces.counts() for k in range(1, n + 1)}
        self.alphas = sorted({1.0, top, *(alpha for alpha in steps if alpha < top)})

    def plan(self, number: int) -> SlicePlan:
        """Return the plan at the alpha of this number."""
        alpha = self.alphas[number]
        if alpha not in self._plans:
            self._plans[alpha] = solve(self.traces, self.request, alpha)
        return self._plans[alpha]

    def counted(self, limits: list[Limit]) -> int:
        """Return the number of the smallest alpha with which all limits hold.

        Raises:
            AdjoinedError: there is none.
        """

        def fits(number: int) -> bool:
            cost = self.plan(number).cost
            return cost is not None and all(limit.of(cost) <= limit.most for limit in limits)

        if fits(0):
            return 0
        low, high = 0, len(self.alphas) - 1
        if not fits(high):
            raise self._over(limits)
        while high - low > 1:
            middle = self._between(low, high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def measured(self, limit: Limit, latency: Latency, first: int) -> int:
        """Return the number of the smallest alpha, from the first on, with which the network is fast enough.

        Raises:
            AdjoinedError: there is none.
        """
        found: dict[int, float] = {}

        def fits(number: int) -> bool:
            found[number] = latency(self.plan(number).cut(self.traces.model).eval())
            return found[number] <= limit.most

        low, high, last = first, first, len(self.alphas) - 1
        while not fits(high):
            if high == last:
                text = f"{min(found.values()):.3g} ms (alpha {self.alphas[min(found, key=lambda n: found[n])]:g})"
                raise AdjoinedError(
                    "no small network of this model is fast enough",
                    where=f"budget={limit.text!r}",
                    expected=f"at least {text}",
                    fix=self._advice(),
                )
            low, high = high, self._nearest(2 * self.alphas[high])
        while high - low > 1 and self.alphas[high] / self.alphas[low] > INDISTINCT:
            middle = self._between(low, high)
            low, high = (low, middle) if fits(middle) else (middle, high)
        return high

    def _nearest(self, alpha: float) -> int:
        """Return the number of the first alpha that is at least this large, or else of the last one."""
        return next((number for number, each in enumerate(self.alphas) if each >= alpha), len(self.alphas) - 1)

    def _between(self, low: int, high: int) -> int:
        """Return the number of the alpha closest to the geometric mean of two that are not neighbours."""
        return min(max(self._nearest(math.sqrt(self.alphas[low] * self.alphas[high])), low + 1), high - 1)

    def _advice(self) -> str:
        widths = "ask for smaller widths, " if self.request.widths else ""
        return f"Keep fewer modules at full width, {widths}or lower round_to."

    def _over(self, limits: list[Limit]) -> AdjoinedError:
        """Return the error for limits that no small network meets, with the nearest reachable ones."""
        plan = self.plan(len(self.alphas) - 1)
        assert plan.cost is not None
        assert plan.base_cost is not None
        fix = self._advice()
        if self.request.compress is not None:
            reached = plan.base_cost.parameters_without_last / plan.cost.parameters_without_last
            return AdjoinedError(
                "narrowing cannot make the network that much smaller",
                where=f"compress={self.request.compress:g}",
                expected=f"at most {reached:.4g} (alpha {plan.alpha:g})",
                fix=fix,
            )
        over = [limit for limit in limits if limit.of(plan.cost) > limit.most]
        least = ", ".join(f"{limit.of(plan.cost)} {limit.quantity}" for limit in over)
        return AdjoinedError(
            "no small network of this model fits",
            where=f"budget={', '.join(limit.text for limit in over)!r}",
            expected=f"at least {least} (alpha {plan.alpha:g})",
            fix=fix,
        )
