"""The plan that follows from the groups' widths: what each tensor keeps, and why some groups stay wide."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.stored import replaced
from adjoined.slicing.plan.index import Index
from adjoined.slicing.plan.plan import ChannelGroup, SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.groups import Group, Grouping
from adjoined.slicing.solve.request import Request


def draft(
    traced: Trace, grouping: Grouping, request: Request, alpha: float, corrected: Mapping[str, Any] | None = None
) -> SlicePlan:
    """Return the plan with the current widths of the groups; it has not run yet, and has no cost.

    `corrected`: "module.attribute" -> value in the small network.
    """
    is_kept = grouping.kept_labels()
    tensors: dict[str, tuple[Index | None, ...]] = {}
    found = iter(Index.where_each(is_kept, grouping.ranges))
    for name, vectors in traced.labels.items():
        indices = tuple(None if vector is None else next(found) for vector in vectors)
        if any(index is not None for index in indices):
            tensors[name] = indices
    narrowed = {
        module: count
        for module, labels in traced.findings.conv_groups.items()
        if (count := int(is_kept[labels].sum())) != labels.numel()
    }
    return SlicePlan(
        alpha=alpha,
        round_to=request.round_to,
        keep=tuple(request.keep),
        widths=dict(request.widths or {}),
        tensors=tensors,
        shapes=dict(traced.shapes),
        conv_groups=narrowed,
        attributes=_sizes_by_input(traced, is_kept) | dict(corrected or {}),
        groups=_describe(grouping.groups),
        crossing=dict(traced.findings.crossing),
        unaligned=tuple(sorted({cut.module for cut in traced.unaligned})),
        unreached=dict(traced.unreached),
    )


def _sizes_by_input(traced: Trace, is_kept: Tensor) -> dict[str, Any]:
    """Return the sizes stored in norms without tensors, where they change, as in `SlicePlan.attributes`."""
    by_input = traced.findings.by_input
    left = {where: int((is_kept[labels] | (labels == 0)).sum()) for where, labels in by_input.items()}
    return replaced(traced.model, ((where, count) for where, count in left.items() if count != by_input[where].numel()))


def _describe(groups: Iterable[Group]) -> tuple[ChannelGroup, ...]:
    """Return the groups as the plan lists them; similar pieces of one layer are added up."""
    found: dict[object, ChannelGroup] = {}
    for group in groups:
        if group.why is not None and group.why.kind in (Kind.NOT_CHANNELS, Kind.INSIDE_GROUPS):
            continue  # these cannot be chosen: kernel positions, and the channels inside a convolution's groups
        modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes))
        why = group.whole or _why_not_narrowed(group)
        described = ChannelGroup(group.name, modules, group.width, group.kept * group.bundle, why)
        key = (tuple(sorted(group.axes)), group.why)
        if (known := found.get(key)) is not None:
            described = replace(described, width=known.width + described.width, kept=known.kept + described.kept)
        found[key] = described
    return tuple(found.values())


def _why_not_narrowed(group: Group) -> Reason | None:
    """Return why this plan does not narrow a group that may be narrowed; None if it does."""
    if group.kept < len(group.roots):
        return None
    if group.requested and group.requested[0].alpha == 1:
        return Reason(Kind.REQUESTED, f"widths={group.requested[0].pattern!r} asks for all of its channels")
    if group.width == 1:
        return Reason(Kind.ONE_AT_A_TIME, "code takes its channels one at a time")
    if len(group.roots) == 1:
        return Reason(Kind.TIED, "all its channels are tied together")
    return Reason(Kind.TOO_FEW, f"its {group.width} channels are too few to narrow at this alpha and rounding")
