"""What a user can do about channels that stay at full width, by the reason that the plan gives."""

from __future__ import annotations

import re

ADVICE = (
    (r"^model output", ""),
    (r"^kept by keep|^widths=", ""),  # what the user has asked for
    (
        r"a size of \d+ is asked for",
        "Take that number from a tensor's shape or from an attribute of the module.",
    ),
    (r"fixed number of channels", "Take the number of channels to add from the tensors' shapes."),
    (r"fixed (width|number)", "Make the other tensor a parameter or buffer of a module, or make it after x.shape."),
    (r"^no rule for", "Write it with other operators, or add a rule for this one (CONTRIBUTING.md)."),
    (r"TorchScript", "Use the module as it was before it was scripted."),
    (r"not enough to be narrowed", "A smaller `round_to`, or a larger alpha, narrows them."),
    (r"tied to each other", "Its own structure ties them: a sum over them, or one norm over all, for example."),
    (r"two channels at once", "Its own structure ties them: the products of all pairs of channels, for example."),
    (
        r"by (their )?values|index|picked|order of",
        "Which channels are taken depends on numbers that no slice can follow.",
    ),
    (r"neighbours|along (a|the)|resamples", "Channels that are looked at side by side must stay side by side."),
    (r"is read by no layer", "Nothing reads them in this forward: another example input may reach them."),
)
"""Pattern of a reason -> advice, the first that fits."""

OTHERWISE = "No narrower form of it ran: tell us the model, or name the module in `keep` to say that this is meant."


def advice(reason: str) -> str:
    """Return what can be done about channels at full width, as a sentence; "" where nothing is to be done.

    Args:
        reason: `ChannelGroup.reason`.

    Example:
        >>> advice("no rule for the operator sort, in 'head' (sort)")
        'Write it with other operators, or add a rule for this one (CONTRIBUTING.md).'
        >>> advice("model output")
        ''
    """
    if not reason:
        return ""
    return next((what for pattern, what in ADVICE if re.search(pattern, reason)), OTHERWISE)
