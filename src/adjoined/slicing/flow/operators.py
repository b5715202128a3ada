"""The table of operators: one record for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.state import State

Rule = Callable[[State, Call], None]
"""A rule labels the results of an operator's call."""

UNKNOWN = "unknown"
"""Key of the rule for operators without an entry."""


class Statistic(Enum):
    """What an operator may compute across channels; in the small network it is computed over the kept ones."""

    REDUCTION = auto()
    """One number over the dimensions `dim`."""
    ALONG = auto()
    """A number for each index along `dim`: softmax, running sums."""
    LAYER_NORM = auto()
    """Normalised over the last dimensions."""
    GROUP_NORM = auto()
    """Normalised over groups of channels."""
    BATCH_NORM = auto()
    """Normalised over all dimensions but one; for a weight that is standardised, these include channels."""
    SUM = auto()
    """A sum of products: dropped channels, which are zero, add nothing."""
    SCALE = auto()
    """A factor that depends on the number of features."""


@dataclass(frozen=True)
class Operator:
    """The record of an ATen operator.

    Attributes:
        rule: how it labels its results.
        statistic: what it may compute across channels; None for nothing, or for what the check does not understand.
        moves: whether it only moves elements of its operand to other positions.
    """

    rule: Rule
    statistic: Statistic | None = None
    moves: bool = False


OPERATORS: dict[str, Operator] = {}
"""Name without namespace and overload -> record; the modules of `rules` fill the table."""


def rule(*names: str, statistic: Statistic | None = None, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators, with the rest of their record.

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
    """Return whether the check computes an operator's statistics across channels over the kept ones."""
    return name in OPERATORS and OPERATORS[name].statistic is not None
