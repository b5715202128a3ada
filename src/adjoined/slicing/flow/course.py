"""Whether the small network's code runs the same operators as the base's.

Code may read a number of channels and branch on it, or loop less often. The channels that it counts then stay at full
width. Other numbers that it computes from widths, and other tensors that it takes, are left to the check.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable

from torch import Tensor

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import FrozenTies, OtherCourse, OutOfStep, Slot, Ties, distinct
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.slots import Slots
from adjoined.slicing.flow.values import Values


class Course(Slots):
    """The slots of a run, and the comparison of its operators with those of the base network.

    Attributes:
        values: which tensors depend on the values of the input.
    """

    def __init__(self, ties: Ties | FrozenTies, findings: Findings, is_kept: Callable[[int], bool] | None) -> None:
        super().__init__(ties, findings, is_kept)
        self.values = Values()
        self._ran = Counter[Site]()
        self._recent: deque[list[Slot]] = deque(maxlen=64)  # the operands of the latest operators

    def note_step(self, labelled: Iterable[Tensor]) -> None:
        """Record that the current operator runs in this module; the small network must not run others.

        Operators are found by their name and module, not by number: a loop over channels has fewer to go through.
        """
        step = Site(self.module, self.last_op, 1, self._train)
        self._ran[step] += 1
        slots = [slot for tensor in labelled for slot in self.slots(tensor)]
        self._recent.append(slots)
        if not self.strict:
            self.findings.steps[step].append(slots)
        elif slots and step not in self.findings.steps:
            self._refuse_step(step, step.operator)

    def check_steps(self) -> None:
        """Raise OutOfStep if an operator of the base network did not run in the small network, or not as often.

        Loops over channels have fewer to go through. In other loops, each step works on the same channels.
        """
        before: list[list[Slot]] = []
        for step, calls in self.findings.steps.items() if self.strict else ():
            if step.train == self._train:
                self._recent.extend(before[-1:])
                if not (count := self._ran[step]):
                    self._refuse_step(step, f"no {step.operator}", *calls)
                elif count != len(calls) and not self._train and len({self._sets_in(slots) for slots in calls}) == 1:
                    self._refuse_step(step, f"{step.operator} {count} times, not {len(calls)} times,", *calls)
            before.append(calls[-1])

    def _sets_in(self, slots: Iterable[Slot]) -> frozenset[int]:
        """Return the roots of the sets of labels in some slots."""
        return frozenset(map(self.ties.find, _labels_of(slots)))

    def _refuse_step(self, step: Site, what: str, *calls: Iterable[Slot]) -> None:
        if not self.values.decide:
            where = f"'{step.module}'" if step.module else "the model's own forward"
            message = f"for fewer channels, the code runs {what} in {where}"
            self.refuse(message, *map(_labels_of, calls), error=OtherCourse)

    def refuse(self, message: str, *concerned: Iterable[int], error: type[OutOfStep] = OutOfStep) -> None:
        """Raise an error with the first labels of which some are narrowed, or else with those of an earlier operator.

        Code may read the width of one channel group and treat another one differently, which is at full width.
        """
        if isinstance(self.ties, FrozenTies) and self.ties.narrows:
            before = (_labels_of(slots) for slots in reversed(self._recent))
            raise error(message, next(filter(self._any_narrowed, (*concerned, *before)), ()))

    def _any_narrowed(self, labels: Iterable[int]) -> bool:
        return isinstance(self.ties, FrozenTies) and self.ties.any_narrowed(labels)


def _labels_of(slots: Iterable[Slot]) -> list[int]:
    return [label for slot in slots for label in distinct(slot)]
