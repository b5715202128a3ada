"""Widen what the check finds wrong, until the small network computes what the masked base does.

The label flow and the trial follow what a model's code does with its channels. Code may depend on their number in a way
that neither sees. The check compares numbers, so it sees any such difference, but not where it comes from. So groups
are widened one by one: of a list of groups, the shortest beginning that has to be wide ends with one that is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adjoined.errors import AdjoinedError
from adjoined.slicing.flow.labels import Axis
from adjoined.slicing.model.modules import is_inside
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.request import Request
from adjoined.slicing.solve.solve import solve
from adjoined.slicing.solve.traces import Traces
from adjoined.slicing.verify.check import Checked, Checker, Differs

MOST_WIDENED = 20
"""The most groups that are found one by one, each by a few checks."""


def checked_plan(
    make: Callable[[], SlicePlan], traces: Traces, request: Request, checker: Checker
) -> tuple[SlicePlan, Checked]:
    """Return a plan that passes the check, with the result, after widening what has to be wide for that.

    Args:
        make: returns the plan of one small network, from these traces.
        traces: the model with its traces, which record the groups that stay wide.
        request: the settings of the plan; its alpha is ignored.
        checker: checks plans of this model.

    Raises:
        AdjoinedError: as for `solve`; or the networks differ even if nothing is narrowed.
    """
    while True:  # each time, at least one more group is wide
        plan = make()
        try:
            return plan, checker.check(plan)
        except Differs as found:  # `make` may measure milliseconds, so it is not called for every group
            _Widening(traces, request, plan.alpha, checker).run(found)


class _Widening:
    """The search for the groups that have to be wide at one alpha."""

    def __init__(self, traces: Traces, request: Request, alpha: float, checker: Checker) -> None:
        self._traces, self._request, self._alpha, self._checker = traces, request, alpha, checker
        self._failure: Differs  # of the widest network so far that is not right

    def run(self, found: Differs) -> None:
        """Widen groups until the small network is right; see `_widen`."""
        for left in reversed(range(MOST_WIDENED)):
            self._widen(found, one=left > 0)
            try:
                self._checker.check(solve(self._traces, self._request, self._alpha))
            except Differs as another:
                found = another
            else:
                return

    def _widen(self, failure: Differs, *, one: bool) -> None:
        """Find one group that has to be wide, or else enough of them, and record them in the traces.

        The groups of the module that differs are tried first.

        Raises:
            Differs: the network differs even if all of them are wide.
        """
        self._failure, module = failure, failure.module
        solve(self._traces, self._request, self._alpha)
        groups = [
            group for group in self._traces.latest[1].groups if group.why is None and group.kept < len(group.roots)
        ]
        groups.sort(key=lambda group: not any(is_inside(tensor, module) for tensor, _ in group.axes))
        candidates = [frozenset(group.axes) for group in groups]
        low, high = 0, 1
        while not self._passes(candidates[:high], last=high >= len(candidates)):
            low, high = high, min(2 * high, len(candidates))
        while one and high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._passes(candidates[:middle]) else (middle, high)
        text = f"needed for {self._failure.where} to agree with the masked base"
        found = candidates[high - 1 : high] if one else candidates[:high]
        self._traces.differing |= dict.fromkeys(frozenset[Axis]().union(*found), Reason(Kind.DIFFERS, text))

    def _passes(self, wide: Sequence[frozenset[Axis]], *, last: bool = False) -> bool:
        """Return whether the small network is right if these groups are wide, too; the last attempt raises Differs."""
        before = self._traces.differing
        also = dict.fromkeys(frozenset[Axis]().union(*wide), Reason(Kind.DIFFERS, "tried"))
        self._traces.differing = before | also
        try:
            self._checker.check(solve(self._traces, self._request, self._alpha))
        except Differs as found:
            if last:
                raise
            self._failure = found
            return False
        except AdjoinedError:  # a requested width has no effect then, which the next plan reports with the true reason
            return True
        finally:
            self._traces.differing = before
        return True
