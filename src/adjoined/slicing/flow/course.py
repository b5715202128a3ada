"""Whether the small network's code takes the course of the base's: the same operators and numbers.

Code may read a number of channels and do something else for fewer: branch, loop less often, shift less far, read other
places. The channels that it counts then stay at full width.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import FrozenTies, OtherCourse, OutOfStep, Slot, Ties, distinct, varying
from adjoined.slicing.flow.made import Made, along_channels, picks_places
from adjoined.slicing.flow.settings import SHAPED, places_of, settings_of
from adjoined.slicing.flow.sizes import Site, family_of
from adjoined.slicing.flow.slots import Slots
from adjoined.slicing.flow.values import Values


class Course(Slots):
    """The slots of a run, and the comparison of what its code does with what the base network's did.

    Attributes:
        values: which tensors depend on the values of the input.
        made: which tensors without labels differ from those that the base network's code makes.
        unread: parameter or buffer that the base network does not read -> its name; for the second run.
    """

    def __init__(self, ties: Ties | FrozenTies, findings: Findings, is_kept: Callable[[int], bool] | None) -> None:
        super().__init__(ties, findings, is_kept)
        self.values = Values()
        self.made = Made(findings.made, strict=is_kept is not None)
        self.unread: Any = WeakIdKeyDictionary()
        self._ran = Counter[Site]()
        self._recent: deque[list[Slot]] = deque(maxlen=64)  # the operands of the latest operators

    def note_step(self, labelled: Iterable[Tensor]) -> None:
        """Record that the current operator runs in this module; the small network must not run others.

        Code may branch on numbers of channels: many or few, equal or not.
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
        for site, known in self.findings.settings.items() if self.strict else ():
            left_out = site.operator == "slice" and site.train == self._train and not self._ran[site]
            if left_out and any(numbers for _, numbers in known):  # torch leaves out those that cut off nothing
                self._refuse_step(site, "no slice", *known.values())

    def _sets_in(self, slots: Iterable[Slot]) -> frozenset[int]:
        """Return the roots of the sets of labels in some slots."""
        return frozenset(self.ties.find(label) for slot in slots for label in distinct(slot))

    def check_settings(self, name: str, args: dict[str, Any], labelled: Sequence[Tensor]) -> None:
        """Record the numbers that code passes to an operator and that count no channels; they must be the same.

        Operators are found by their name and module, not by number: a loop over channels has fewer to go through.
        """
        site = Site(self.module, name, 1, self._train)
        if name == "slice":  # `note_step` leaves out what only moves channels
            self._ran[site] += 1
        if not self.strict:
            slots = self.slots(labelled[0])
            channels = frozenset(d for slot in slots for d in varying(slot))
            self.findings.settings[site].setdefault((channels, settings_of(name, args, channels)), slots)
        elif (known := self.findings.settings.get(site)) and not any(
            settings_of(name, args, channels) == before for channels, before in known
        ):
            self._refuse_course(f"passes other numbers, in {self.here}", *self._labels_of_activations(labelled))

    def check_places(self, call: Call) -> None:
        """Record the sizes along dimensions without channels that code gives to results; they must be the same.

        Those of kernels, which code may repeat for each channel, show where they meet the channels.
        """
        if call.name not in SHAPED or self.values.decide or not any(map(self.values.computed, call.tensors)):
            return
        site = Site(self.module, family_of(call.name), 1, self._train)
        if not self.strict:
            channels = frozenset(d for out in call.outputs for slot in self.slots(out) for d in varying(slot))
            if call.name == "repeat":  # along these dimensions all elements are equal, perhaps one for each channel
                sizes = [1] * (call.out.ndim - call["self"].ndim) + list(call["self"].shape)
                channels |= {d for d, size in enumerate(sizes) if size == 1}
            self.findings.places[site].add((channels, places_of(call.outputs, channels)))
            return
        known = self.findings.places.get(site)
        if known and not any(places_of(call.outputs, channels) == before for channels, before in known):
            self._refuse_course(f"asks for other sizes, in {self.here}", *self._labels_of_activations(call.tensors))

    def check_made(self, op: Any, args: dict[str, Any], given: Sequence[Tensor]) -> None:
        """Raise OutOfStep if code made an operand differently, along other dimensions than those of channels."""
        site = Site(self.module, self.last_op, 1, self._train)
        for tensor in given:
            if tensor in self._slots or not self.made.differs(tensor, site, op) or self.values.decide:
                continue
            slots = [slot for each in given for slot in self.slots(each)]
            channels = {d - slot.ndim for slot in slots for d in varying(slot)}
            dims = set(range(tensor.ndim)) if picks_places(args, tensor) else self.differs_along(tensor)
            if dims - along_channels(op, args, tensor, channels):
                self._refuse_course(f"makes a different tensor, in {self.here}", *self._labels_of_activations(given))

    def check_read(self, tensor: Tensor) -> None:
        """Raise OutOfStep if the small network reads a parameter or buffer that the base network does not."""
        if tensor in self.unread:
            self._refuse_course(f"reads '{self.unread[tensor]}'")

    def _refuse_step(self, step: Site, what: str, *calls: Iterable[Slot]) -> None:
        if not self.values.decide:
            where = f"'{step.module}'" if step.module else "the model's own forward"
            self._refuse_course(f"runs {what} in {where}", *map(_labels_of, calls))

    def _refuse_course(self, what: str, *concerned: Iterable[int]) -> None:
        self.refuse(f"for fewer channels, the code {what}", *concerned, error=OtherCourse)

    def refuse(self, message: str, *concerned: Iterable[int], error: type[OutOfStep] = OutOfStep) -> None:
        """Raise an error with the first labels of which some are narrowed, or else with those of an earlier operator.

        Code may read the width of one channel group and treat another one differently, which is at full width.
        """
        if isinstance(self.ties, FrozenTies) and self.ties.narrows:
            before = (_labels_of(slots) for slots in reversed(self._recent))
            raise error(message, next(filter(self._any_narrowed, (*concerned, *before)), ()))

    def _labels_of_activations(self, tensors: Iterable[Tensor]) -> Iterator[list[int]]:
        """Yield the labels of each activation: code reads their widths, even where it then changes a weight."""
        return (_labels_of(self.slots(tensor)) for tensor in tensors if self.values.computed(tensor))

    def _any_narrowed(self, labels: Iterable[int]) -> bool:
        return isinstance(self.ties, FrozenTies) and self.ties.any_narrowed(labels)


def _labels_of(slots: Iterable[Slot]) -> list[int]:
    return [label for slot in slots for label in distinct(slot)]
