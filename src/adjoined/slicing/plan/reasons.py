"""Why channels stay at full width, and what a user can do about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Kinds of reasons. Code decides by the kind; the text of a reason is for people."""

    OUTPUT = "output"
    """The model returns these channels."""
    KEPT = "kept"
    """The user named them in `keep`."""
    REQUESTED = "requested"
    """The user asked for all of them in `widths`."""
    NOT_CHANNELS = "not channels"
    """No convolution and no matrix product uses them as channels, such as kernel positions."""
    PLACES = "places"
    """They count positions or whole kernels: a layer runs along them or sums over them, but they are not channels."""
    INSIDE_GROUPS = "inside groups"
    """Each group of a grouped convolution reads them, and whole groups are dropped instead."""
    TOO_FEW = "too few"
    """Alpha and rounding leave all of them."""
    TIED = "tied"
    """They are tied to each other, so they can only be kept together."""
    ONE_AT_A_TIME = "one at a time"
    """Code treats them one by one."""
    TWO_AT_ONCE = "two at once"
    """Each element belongs to two channels."""
    FIXED_WIDTH = "fixed width"
    """They meet a tensor whose width is fixed."""
    FIXED_PADDING = "fixed padding"
    """Code pads them with a fixed number of channels."""
    FIXED_SIZE = "fixed size"
    """Code asks an operator for a fixed number of channels."""
    BY_VALUE = "by value"
    """Values decide which of them are used."""
    BY_WIDTH = "by width"
    """For fewer of them, code does something else."""
    NEIGHBOURS = "neighbours"
    """An operator combines neighbouring channels."""
    NO_RULE = "no rule"
    """An operator has no rule, or none that fits these shapes."""
    TORCH_SCRIPT = "TorchScript"
    """They belong to a scripted module."""
    UNREAD = "unread"
    """No layer that ran reads them."""
    DIFFERS = "differs"
    """With fewer of them, the network differs from the masked base."""
    DOES_NOT_RUN = "does not run"
    """No narrower form of the network ran."""
    OTHER = "other"
    """Read from a plan of a newer version, which has more kinds."""


REMEDIES = {
    Kind.TOO_FEW: "A smaller `round_to` or a larger alpha narrows them.",
    Kind.TIED: "The model's structure ties them, for example by a sum or a norm over all of them.",
    Kind.ONE_AT_A_TIME: "Run one grouped convolution over all channels instead of a loop over single ones.",
    Kind.TWO_AT_ONCE: "The model's structure ties them, for example by products of all pairs of channels.",
    Kind.FIXED_WIDTH: "Make the other tensor a parameter or buffer; zeros and ones can take their size from x.",
    Kind.FIXED_PADDING: "Take the number from a tensor's shape or a module's attribute; to drop channels, use slices.",
    Kind.FIXED_SIZE: "Read that number from a tensor's shape, or from an attribute or the settings of the module.",
    Kind.BY_VALUE: "Nothing to do: values choose the channels, and slices cannot follow values.",
    Kind.BY_WIDTH: "Store that number in the module, or name the layer whose width it reads in `keep`.",
    Kind.NEIGHBOURS: "Nothing to do: the operator combines neighbouring channels, so all must stay.",
    Kind.NO_RULE: "Use other operators, or add a rule for this one (docs/extending.md).",
    Kind.TORCH_SCRIPT: "Replace it with the Python module; `load_state_dict` loads the scripted module's weights.",
    Kind.UNREAD: "No layer reads them in this forward pass; another example input may reach such a layer.",
    Kind.DIFFERS: "Code there may depend on the number of channels; if it does not, please report the model.",
    Kind.DOES_NOT_RUN: "No narrower network ran: report the model, or name the module in `keep` if this is intended.",
}
"""What a user can do about each kind; the other kinds need nothing."""


@dataclass(frozen=True)
class Reason:
    """Why a channel group stays at full width.

    Attributes:
        kind: for code to decide by.
        text: for people, with names and numbers.

    Example:
        >>> reason = Reason(Kind.NO_RULE, "no rule for the operator sort, in 'head' (sort)")
        >>> print(reason.remedy)
        Use other operators, or add a rule for this one (docs/extending.md).
    """

    kind: Kind
    text: str

    @property
    def remedy(self) -> str:
        """What a user can do about it, as a sentence; "" if nothing needs to be done."""
        return REMEDIES.get(self.kind, "")

    def __str__(self) -> str:
        return self.text

    def to_json(self) -> dict[str, str]:
        """Return kind and text."""
        return {"kind": self.kind.value, "text": self.text}

    @classmethod
    def from_json(cls, data: Mapping[str, str]) -> Reason:
        """Read what `to_json` returned."""
        kinds = {kind.value: kind for kind in Kind}  # a newer version may have others
        return cls(kinds.get(data["kind"], Kind.OTHER), data["text"])
