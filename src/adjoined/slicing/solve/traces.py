"""The traces of one model, shared by everything derived from them: plans, costs, the order of channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from adjoined.slicing.flow.labels import Axis
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.state import GroupChoice
from adjoined.slicing.flow.trace import Trace, trace
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.misuse import check_weights
from adjoined.slicing.model.wrapped import unwrap
from adjoined.slicing.plan.reasons import Reason
from adjoined.slicing.solve.groups import Grouping

MOST_TRACES = 3
"""Traces kept for one model: they are large, and more than one is rarely needed."""


@dataclass
class _Known:
    """A trace, with the choices that it depends on."""

    trace: Trace
    grouping: Grouping
    choices: dict[tuple[str, int, int], bool]
    unaligned: frozenset[Site]


class Traces:
    """A model's traces: one, unless different small networks narrow its grouped convolutions in different ways.

    Args:
        model: any module with convolutions.
        example_input: an input of the model, as for `make_plan`.

    Attributes:
        model: the model without wrappers; it is neither run nor changed.
        inputs: the example input.
        tied: modules whose groups are tied to each other, so that none can be dropped whole.
        differing: dimensions of tensors that stay at full width, because narrower networks differ from the masked base.

    Raises:
        AdjoinedError: `model` is not a model, or has no weights to narrow.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self.model = unwrap(model)
        check_weights(self.model)
        self.inputs = Inputs.of(example_input)
        self.tied: set[str] = set()
        self.differing: dict[Axis, Reason] = {}
        self._known: list[_Known] = []

    def get(self, choose: GroupChoice, unaligned: frozenset[Site] = frozenset()) -> tuple[Trace, Grouping]:
        """Return the trace with these choices, and its groups before any width is chosen.

        Args:
            choose: how grouped convolutions are narrowed; its answers depend on its arguments alone.
            unaligned: cuts after which channel identity is given up.

        Raises:
            AdjoinedError: the model does not run on the example input.
        """
        for number, known in enumerate(self._known):
            same = all(choose(*question) == answer for question, answer in known.choices.items())
            if same and known.unaligned == unaligned:
                self._known.append(self._known.pop(number))  # the latest comes last
                known.grouping.reset()
                return known.trace, known.grouping
        choices: dict[tuple[str, int, int], bool] = {}

        def recording(*question: str | int) -> bool:
            return choices.setdefault(question, choose(*question))  # pyright: ignore[reportArgumentType]

        del self._known[: -MOST_TRACES + 1]
        traced = trace(self.model, self.inputs, slices_inside=recording, unaligned=unaligned)
        self._known.append(_Known(traced, Grouping(traced), choices, unaligned))
        return traced, self._known[-1].grouping

    def choices_of(self, traced: Trace) -> GroupChoice:
        """Return a choice for narrower networks: each grouped convolution as in this trace, whatever its sizes."""
        known = next(each for each in self._known if each.trace is traced)
        answers = {module: answer for (module, *_), answer in known.choices.items()}
        return lambda module, groups, size: answers.get(module, False)

    @property
    def latest(self) -> tuple[Trace, Grouping]:
        """The trace returned last; a new one if there is none."""
        if not self._known:
            self.get(lambda *_: False)
        return self._known[-1].trace, self._known[-1].grouping

    def counts(self) -> set[int]:
        """Return all numbers of channels, or of bundles of channels, that alpha divides in the traces so far."""
        found: set[int] = set()
        for known in self._known:
            found |= {len(group.roots) for group in known.grouping.groups}
            found |= {number for _, *numbers in known.choices for number in numbers}
        return found
