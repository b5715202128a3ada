"""The width of every group in the small network."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from adjoined.errors import AdjoinedError
from adjoined.slicing.flow.labels import Axis
from adjoined.slicing.model.modules import and_parents
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.groups import Group, RequiredWidth
from adjoined.slicing.solve.request import RequestedWidth, check_agree

NEARBY = 2
"""How many widths are tried on each side of the requested one."""

WITH_PLACES = Reason(Kind.FIXED_SIZE, "a width at which every channel has a place in the base")


class AlphaTooLarge(AdjoinedError):
    """Alpha exceeds the width of every layer that it narrows."""


def kept_of(channels: int, bundle: int, alpha: float, round_to: int) -> int:
    """Return how many of `channels` bundles of `bundle` channels each are kept.

    The first ⌈n/α⌉ bundles, rounded up until the number of channels is a multiple of `round_to`; at most all of them.

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
    """Return whether slicing inside the groups of a convolution keeps fewer channels than dropping whole groups.

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
    for group in groups if modules else ():
        for tensor, _ in group.axes:
            owner = next((each for each in and_parents(tensor) if each in modules), None)
            if owner is not None and group.why is None:
                group.why = Reason(Kind.KEPT, f"kept by keep={modules[owner]!r}")


def pin_differing(groups: Sequence[Group], differing: Mapping[Axis, Reason]) -> None:
    """Pin every group with one of these dimensions to full width."""
    for group in groups if differing else ():
        group.why = group.why or next((differing[axis] for axis in group.axes if axis in differing), None)


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


def widest_layer(groups: Sequence[Group]) -> tuple[str, int]:
    """Return the widest layer that alpha narrows, or would if the user did not keep it, and its number of channels.

    Its groups of channels may be several, as those of a grouped convolution. Without any layer, the number is 0.
    """
    channels = Counter[str]()
    for group in groups:
        if len(group.roots) > 1 and (group.why.kind is Kind.KEPT if group.why else not group.requested):
            for axis in [axis for axis in group.axes if axis.dim == 0] or group.axes:
                channels[axis.tensor] += len(group.roots) * group.axes[axis]
    (tensor, most), *_ = channels.most_common(1) or [("", 0)]
    return tensor.rpartition(".")[0], most


class OtherWidths:
    """Widths near those that alpha asks for, tried if channels of the small network have no place in the base.

    After channel shuffles, some widths have a place for every channel and others do not.

    Args:
        round_to: widths are multiples of this many channels.
        alike: whether all groups with the same number of channels get the same width, as when a shuffle mixes them.
    """

    def __init__(self, round_to: int, *, alike: bool) -> None:
        self._round_to, self._alike = round_to, alike
        self._axes: set[Axis] = set()
        self._tried: dict[int, Iterator[int]] = {}
        self._widths: dict[int, int] = {}

    def require(self, groups: Iterable[Group]) -> None:
        """Give the groups the widths to be tried."""
        for group in groups:
            width = self._widths.get(len(group.roots))
            chosen = self._alike or group.axes.keys() & self._axes
            if width is not None and chosen and group.why is None and not group.requested:
                group.required = RequiredWidth(width, WITH_PLACES)

    def propose(self, groups: Iterable[Group], axes: Set[Axis]) -> bool:
        """Choose other widths for the groups with these dimensions; return whether any were left to try."""
        self._axes |= axes
        changed: dict[int, int | None] = {}
        for group in groups:
            count = len(group.roots)
            if group.axes.keys() & axes and count not in changed:
                several = math.lcm(self._round_to, group.step)
                near = _near(group.kept, count, several // math.gcd(several, group.bundle))
                changed[count] = next(self._tried.setdefault(count, near), None)
        self._widths |= {count: width for count, width in changed.items() if width is not None}
        return any(changed.values())


def _near(kept: int, count: int, step: int) -> Iterator[int]:
    """Yield widths to try instead of `kept` of `count` channels: the nearest multiples of `step`, then whole ratios."""
    least = (kept - 1) // step * step
    for distance in range(0, NEARBY * step, step):
        yield from (width for width in (least + 2 * step + distance, least - distance) if 0 < width < count)
    ratio = -(-count // kept)
    whole = [count // each for each in (ratio, ratio + 1) if count % (each * step) == 0]
    yield from (width for width in whole if 0 < width < least - (NEARBY - 1) * step)


def set_widths(groups: Sequence[Group], alpha: float, round_to: int) -> None:
    """Set the number of roots that each group keeps.

    Raises:
        AlphaTooLarge: alpha exceeds the width of every layer, so that none has a whole channel left.
    """
    layer, channels = widest_layer(groups)
    if alpha > channels > 0:
        raise AlphaTooLarge(
            "alpha leaves less than one channel of every layer",
            where=f"alpha={alpha:g}",
            expected=f"at most {channels}, the channels of the widest layer '{layer}'",
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
