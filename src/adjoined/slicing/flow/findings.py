"""What the first run of the label flow records besides the ties."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from adjoined.slicing.flow.labels import Slot
from adjoined.slicing.flow.sizes import Site, Size
from adjoined.slicing.plan.reasons import Reason


class Sum(NamedTuple):
    """A sum over labelled channels, or another reduction, whose result has other labelled channels."""

    over: Tensor
    """Labels that end there."""
    left: list[Tensor]
    """Labels that the result has, without those that stand for a batch of products."""
    product: bool
    """Whether it is a product with another tensor."""


@dataclass
class Findings:
    """What the first run records besides the ties, ordered by who reads it."""

    # ---- sizes that code has to ask for: compared by state.py, corrected by attributes.py ----------------------------

    sizes: dict[Site, list[Size]] = field(default_factory=dict)
    """Operator -> the sizes that the model's code passed to it, where it read labelled tensors."""
    by_input: dict[tuple[str, str, int | None], Tensor] = field(default_factory=dict)
    """(module, attribute, element) in which a norm without tensors stores a size of its input -> what it counts."""

    # ---- whole groups and heads, or parts of each: groups.py, draft.py -----------------------------------------------

    conv_groups: dict[str, Tensor] = field(default_factory=dict)
    """Grouped convolution whose groups are kept or dropped whole -> one label for each group."""
    whole_by_choice: set[str] = field(default_factory=set)
    """Those of `conv_groups` that could be sliced inside their groups instead."""
    sliced_inside: set[str] = field(default_factory=set)
    """Grouped convolutions that keep all groups and are sliced inside each."""
    whole_heads: dict[Site, list[int]] = field(default_factory=dict)
    """Product between tensors whose heads are kept or dropped whole -> a label for each head."""
    head_width: dict[Site, int] = field(default_factory=dict)
    """The same product -> features of each of its heads."""
    weighed: dict[Site, list[int]] = field(default_factory=dict)
    """Operator between the parts of a fold and a gate for each -> the labels of the gates."""
    mixed: dict[Site, tuple[int, int]] = field(default_factory=dict)
    """The same, where all parts stay and keep the same channels -> (operand with the gates, their dimension)."""

    # ---- cuts and folds: groups.py, align.py -------------------------------------------------------------------------

    cuts: dict[int, set[tuple[Site, int, int]]] = field(default_factory=lambda: defaultdict(set))
    """Label -> the pieces it went into, (cut, dimension, piece): channels of different pieces are not alike."""
    folds: list[tuple[Site, Slot]] = field(default_factory=list)
    """Views that fold a labelled dimension into several, with the slots that they returned."""
    blocks: list[tuple[Site, Slot]] = field(default_factory=list)
    """Grouped convolutions, with the channels that each reads: (groups, channels of each)."""
    fresh: dict[tuple[Site, int], Tensor] = field(default_factory=dict)
    """(cut, piece) -> fresh labels after a cut at which channel identity was given up."""

    # ---- what the second run compares with its own -------------------------------------------------------------------

    pieces: dict[tuple[Site, int, int], Slot] = field(default_factory=dict)
    """(cut, slot, piece) -> the labels that went into the piece."""
    folded: dict[tuple[Site, int], Slot] = field(default_factory=dict)
    """(cut, slot) -> labels after a view that folds channels into rows."""
    triangles: dict[Site, list[list[int]]] = field(default_factory=dict)
    """Upper or lower triangle -> labels of its rows and of its columns; 0 without labels."""
    operands: dict[tuple[Site, int], list[Slot]] = field(default_factory=lambda: defaultdict(list))
    """(operator, number of the operand) -> its slots, for products between tensors with heads."""
    left_out: dict[Site, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Operator -> labels that stay, because elements of its operands belong to them and to other channels at once."""

    steps: dict[Site, list[list[Slot]]] = field(default_factory=lambda: defaultdict(list))
    """Site of an operator's first call in a module -> slots of the operands of each of its calls there."""
    calls: set[Site] = field(default_factory=set)
    """All calls of operators: further ones, of a loop that runs more often, do not show that a run gets further."""

    # ---- channels, and what counts something else: not_channels.py, trace.py -----------------------------------------

    channels: set[int] = field(default_factory=set)
    """Labels that a convolution or a matrix product with a weight uses as channels."""
    read: set[int] = field(default_factory=set)
    """Labels of channels that some product sums over."""
    reduced: set[int] = field(default_factory=set)
    """Labels of channels that some operator reduces to a number, such as their mean or the largest."""
    decided: set[int] = field(default_factory=set)
    """Labels of channels whose statistic code reads, such as the confidence that decides an early exit."""
    padded: dict[int, Reason] = field(default_factory=dict)
    """Label that is padded along its own dimension -> why it stays wide, unless it may be narrowed."""
    kernels: list[list[tuple[int, Slot]]] = field(default_factory=list)
    """Kernels that the model computes: for each, (dimension along which a slot varies, slot)."""
    sums: list[Sum] = field(default_factory=list)
    """Sums over one of several labelled dimensions."""
    shares: set[int] = field(default_factory=set)
    """Labels over which a softmax is taken."""

    # ---- modules and parameters in use: unreached.py, the check; state kept outside: trace.py ----------------------

    left_outside: bool = False
    """Whether a run changed anything outside the modules, such as a global."""
    ran: set[str] = field(default_factory=set)
    """Modules that were called."""
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Parameter -> operators that read it directly."""
    crossing: dict[str, str] = field(default_factory=dict)
    """Module -> operator that computes a statistic across channels, in which dropped channels at zero would count."""
