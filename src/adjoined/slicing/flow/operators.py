"""The table of operators: in one record, all that is known of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.state import State

Rule = Callable[[State, Call], None]
"""What an operator does to labels."""

UNKNOWN = "unknown"
"""Key of the rule for operators that have none."""


class Statistic(Enum):
    """What an operator computes across channels, where it is called so; over the kept channels in the small network."""

    REDUCTION = auto()
    """One number over the dimensions `dim`."""
    ALONG = auto()
    """A number for each place along `dim`: softmax, running sums."""
    LAYER_NORM = auto()
    """Normalised over the last dimensions."""
    GROUP_NORM = auto()
    """Normalised over groups of channels."""
    BATCH_NORM = auto()
    """Normalised over all dimensions but the channels: of a weight that is standardised, also over channels."""
    SUM = auto()
    """A sum of products: dropped channels, which are zero, add nothing."""
    SCALE = auto()
    """A factor that depends on the number of features."""


@dataclass(frozen=True)
class Operator:
    """What is known of an ATen operator.

    Attributes:
        rule: what it does to labels.
        statistic: what it may compute across channels; None where that is nothing, or not understood by the check.
        moves: whether its results are elements of its operand in other places, nothing else.
    """

    rule: Rule
    statistic: Statistic | None = None
    moves: bool = False


OPERATORS: dict[str, Operator] = {}
"""Name without namespace and overload -> what is known of the operator; the modules of `rules` fill it."""


def rule(*names: str, statistic: Statistic | None = None, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators, with what else is known of them.

    Raises:
        ValueError: one of them has a rule already.
    """

    def register(function: Rule) -> Rule:
        for name in names:
            if name in OPERATORS:
                raise ValueError(f"two rules for the operator {name}")
            OPERATORS[name] = Operator(function, statistic, moves)
        return function

    return register


def understood(name: str) -> bool:
    """Tell whether the check computes an operator's statistics across channels over the kept ones."""
    return name in OPERATORS and OPERATORS[name].statistic is not None
