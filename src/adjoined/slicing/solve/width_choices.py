"""The widths that can be chosen one by one: channel groups by the modules that write them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from torch import nn

from adjoined.slicing.model.modules import filters, owner_of
from adjoined.slicing.solve.groups import Group
from adjoined.slicing.solve.widths import kept_of

FACTORS = (1 / 2, 3 / 4, 1, 3 / 2, 2)
"""Widths to choose from, as multiples of the present one."""


@dataclass(frozen=True)
class WidthChoice:
    """Channels whose width can be chosen by itself.

    Attributes:
        modules: modules that write them; `widths` has to name all of these to set the width.
        shares: widths to choose from, ascending, as shares of the base's width; from half the present one to twice.
        present: the present width, one of `shares`.

    Example:
        >>> choice = WidthChoice(("layer1",), (Fraction(1, 8), Fraction(1, 4), Fraction(1, 2)), Fraction(1, 4))
        >>> choice.widths(choice.shares[-1])
        {'layer1': '1/2'}
    """

    modules: tuple[str, ...]
    shares: tuple[Fraction, ...]
    present: Fraction

    def widths(self, share: Fraction) -> dict[str, str]:
        """Return the entries of `widths` that ask for a share of these channels."""
        return dict.fromkeys(self.modules, f"{share.numerator}/{share.denominator}")


def width_choices(model: nn.Module, groups: Iterable[Group], round_to: int) -> list[WidthChoice]:
    """Return the widths that can be chosen one by one, in the order of the groups.

    Groups that one module writes together, such as the pieces of a split, are one choice.
    """
    dims = filters(model)
    owners = {owner_of(name) for name in dims}
    alone = {owner for owner in owners if not any(other.startswith(f"{owner}.") for other in owners)}
    written: list[tuple[set[str], list[Group]]] = []
    for group in groups:
        writers = {owner_of(name) for name, dim in group.axes if dims.get(name) == dim} & alone
        chosen_by_alpha = group.why is None and group.required is None and not group.requested
        if not writers or not chosen_by_alpha or not group.kept or len(group.roots) == 1:
            continue
        touching = [each for each in written if each[0] & writers]
        written = [each for each in written if each not in touching]
        written.append((writers.union(*(each[0] for each in touching)), [*(g for e in touching for g in e[1]), group]))
    found = []
    for writers, together in written:
        width, kept = sum(g.width for g in together), sum(g.kept * g.bundle for g in together)
        shares = tuple(Fraction(each, width) for each in _near(together, width, kept, round_to))
        if len(shares) > 1:
            found.append(WidthChoice(_one_each(together, writers, dims), shares, Fraction(kept, width)))
    return found


def _one_each(groups: Iterable[Group], writers: set[str], dims: dict[str, int]) -> tuple[str, ...]:
    """Return modules such that each group is written by at least one of them."""
    found: dict[str, None] = {}
    for group in groups:
        own = [owner_of(name) for name, dim in group.axes if dims.get(name) == dim and owner_of(name) in writers]
        if not any(each in found for each in own):
            found[own[0]] = None
    return tuple(found)


def _near(groups: Sequence[Group], width: int, kept: int, round_to: int) -> list[int]:
    """Return the numbers of channels to choose from, ascending."""

    def at(factor: float) -> int:
        alpha = max(1.0, width / (factor * kept))
        steps = [(g, math.lcm(round_to, g.step)) for g in groups]
        return sum(kept_of(len(g.roots), g.unit or g.bundle, alpha, step) * g.bundle for g, step in steps)

    return sorted({each for each in map(at, FACTORS) if kept <= 2 * each and each <= 2 * kept} | {kept})
