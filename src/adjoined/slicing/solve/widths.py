"""The width of every group in the small network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from adjoined.errors import AdjoinedError
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.groups import Group
from adjoined.slicing.solve.request import RequestedWidth, check_agree


class AlphaTooLarge(AdjoinedError):
    """Alpha exceeds the width of every group that it narrows."""


def kept_of(channels: int, bundle: int, alpha: float, round_to: int) -> int:
    """Return how many of `channels` bundles of `bundle` channels each are kept.

    The first ⌈n/α⌉ bundles, rounded up until the number of channels is a multiple of `round_to`; never more than all.

    Example:
        >>> kept_of(64, 1, 4, 8), kept_of(20, 1, 4, 8), kept_of(20, 1, 4, 1), kept_of(6, 1, 4, 8)
        (16, 8, 5, 6)
        >>> kept_of(32, 4, 4, 8)  # 32 groups of 4 channels
        8
    """
    wanted = math.ceil(channels / alpha - 1e-9)
    step = round_to // math.gcd(round_to, bundle)
    return min(channels, max(1, math.ceil(wanted / step) * step))


def slices_inside(groups: int, size: int, alpha: float, round_to: int) -> bool:
    """Tell whether slicing inside the groups of a convolution keeps fewer channels than dropping whole groups.

    Example:
        >>> slices_inside(32, 4, 4, 8)  # 8 whole groups of 4 = 32 channels; inside: 1 -> 8, all 4 of 32 groups = 128
        False
        >>> slices_inside(2, 64, 4, 8)  # 1 whole group of 64; inside: 16 of each of 2 groups = 32 channels
        True
    """
    whole = kept_of(groups, size, alpha, round_to) * size
    inside = kept_of(size, 1, alpha, round_to) * groups
    return inside < whole


def pin_kept(groups: Sequence[Group], modules: dict[str, str]) -> None:
    """Pin every group with channels in one of these modules, or in a module inside one, to full width."""
    for group in groups:
        for tensor, _ in group.axes:
            owner = next((m for m in _ancestors(tensor) if m in modules), None)
            if owner is not None and group.why is None:
                group.why = Reason(Kind.KEPT, f"kept by keep={modules[owner]!r}")


def assign_widths(groups: Sequence[Group], requested: Mapping[tuple[str, int], RequestedWidth]) -> None:
    """Assign the requested widths to the groups.

    Raises:
        AdjoinedError: two patterns ask for different widths of one group.
    """
    for group in groups:
        group.requested = tuple(requested[axis] for axis in group.axes if axis in requested)
        for other in group.requested[1:]:
            if group.why is None:
                check_agree(group.requested[0], other, group.name)


def check_effective(groups: Sequence[Group], widths: Mapping[str, str]) -> None:
    """Raise AdjoinedError if a pattern has no effect because all groups that it names stay at full width."""
    for pattern, text in widths.items():
        named = [group for group in groups if any(width.pattern == pattern for width in group.requested)]
        if all(group.why or len(group.roots) == 1 for group in named):
            why = next((f"'{group.name}': {group.why}" for group in named if group.why), "")
            raise AdjoinedError(
                "the width has no effect: all these channels stay at full width",
                where=f"widths[{pattern!r}]",
                got=repr(text),
                expected="modules whose channels can be dropped one by one" + (f" ({why})" if why else ""),
                fix="`adjoined plan` shows which groups can be narrowed, and why others cannot.",
            )


def widest_choice(groups: Sequence[Group]) -> Group | None:
    """Return the widest of the groups that alpha narrows, or would if the user did not keep them; None without any."""
    choices = (g for g in groups if (g.why.kind is Kind.KEPT if g.why else not g.requested))
    return max(choices, key=lambda g: g.width, default=None)


def set_widths(groups: Sequence[Group], alpha: float, round_to: int) -> None:
    """Set the number of roots that each group keeps.

    Raises:
        AlphaTooLarge: alpha exceeds the width of every group, so that no layer has a whole channel left.
    """
    widest = widest_choice(groups)
    if widest is not None and alpha > widest.width:
        name = next(iter(widest.axes))[0].rpartition(".")[0]
        raise AlphaTooLarge(
            "alpha leaves less than one channel of every layer",
            where=f"alpha={alpha:g}",
            expected=f"at most {widest.width}, the channels of the widest layer '{name}'",
            fix="Use a smaller alpha.",
        )
    for group in groups:
        count = len(group.roots)
        own = group.requested[0].alpha if group.requested else alpha
        if group.why is not None:
            group.kept = count
        elif group.required is not None:
            group.kept = group.required.roots
        else:
            group.kept = kept_of(count, group.unit or group.bundle, own, math.lcm(round_to, group.step))


def _ancestors(tensor: str) -> list[str]:
    parts = tensor.split(".")
    return [".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1)]
