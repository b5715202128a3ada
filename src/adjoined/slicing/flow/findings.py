"""What the first run of the label flow notes beside the ties."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from torch import Tensor

from adjoined.slicing.flow.labels import Slot
from adjoined.slicing.flow.sizes import Site, Size


@dataclass
class Findings:
    """What the first run notes beside the ties."""

    conv_groups: dict[str, Tensor] = field(default_factory=dict)
    """Module with whole groups dropped -> one label for each of its groups."""
    whole_by_choice: set[str] = field(default_factory=set)
    """Those of them that could be sliced inside their groups instead."""
    sliced_inside: set[str] = field(default_factory=set)
    """Grouped convolutions that keep all groups and are sliced inside each."""
    sizes: dict[Site, list[Size]] = field(default_factory=dict)
    """Operator -> the sizes that the model's code handed to it, where it read labelled tensors."""
    cuts: dict[int, set[tuple[Site, int, int]]] = field(default_factory=lambda: defaultdict(set))
    """Label -> the pieces (cut, dimension, piece) it went through: channels of different pieces are no substitutes."""
    folds: list[tuple[Site, Slot]] = field(default_factory=list)
    """What views have made of labelled dimensions that they fold into several."""
    fresh: dict[tuple[Site, int], Tensor] = field(default_factory=dict)
    """Labels given anew behind a cut where channel identity was given up."""
    pieces: dict[tuple[Site, int, int], Slot] = field(default_factory=dict)
    """(cut, slot, piece) -> the labels that went into the piece."""
    folded: dict[tuple[Site, int], Slot] = field(default_factory=dict)
    """(cut, slot) -> labels behind a view that folds channels into rows."""
    operands: dict[tuple[Site, int], list[Slot]] = field(default_factory=lambda: defaultdict(list))
    """(operator, number of the operand) -> its slots, of products between tensors with heads."""
    whole_heads: dict[Site, list[int]] = field(default_factory=dict)
    """Product between tensors with heads that keeps or drops whole heads -> a label for each head."""
    head_width: dict[Site, int] = field(default_factory=dict)
    """Features of each of these heads."""
    crossing: dict[str, str] = field(default_factory=dict)
    """Module -> operator that computes a statistic across channels: there the small network is no masked base."""
    read: set[int] = field(default_factory=set)
    """Labels of channels that some operator sums over."""
    channels: set[int] = field(default_factory=set)
    """Labels that a convolution or a matrix product with a weight has used as channels."""
    kernels: list[list[tuple[int, Slot]]] = field(default_factory=list)
    """Kernels that are computed, not stored by a convolution: for each, (dimension along which a slot varies, slot)."""
    readers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Parameter -> operators that read it directly."""
    ran: set[str] = field(default_factory=set)
    """Modules that were called."""
    by_input: dict[tuple[str, str, int | None], Tensor] = field(default_factory=dict)
    """(module, attribute, element) of a number that a norm without tensors keeps of its input -> what it counts."""
