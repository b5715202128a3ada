"""From a model to a slice plan: trace, choose widths, try the small network, repair, until it runs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.flow.labels import FrozenTies, OutOfStep, along
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.trace import Trace, trace
from adjoined.slicing.model.cost import cost_of_run
from adjoined.slicing.model.inputs import tensor_leaves
from adjoined.slicing.model.misuse import another_path
from adjoined.slicing.model.modules import full_name, matching_modules, named_tensors, owner_of
from adjoined.slicing.plan.index import Index, take
from adjoined.slicing.plan.plan import ChannelGroup, DoesNotFit, SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.align import NoPlace, align
from adjoined.slicing.solve.failure import Failure
from adjoined.slicing.solve.groups import Group, Grouping
from adjoined.slicing.solve.repair import Repairs, Unaligned
from adjoined.slicing.solve.request import Request, requested_widths
from adjoined.slicing.solve.traces import Traces
from adjoined.slicing.solve.widths import (
    OtherWidths,
    assign_widths,
    check_effective,
    pin_kept,
    set_widths,
    slices_inside,
)

FAILURES = (Kind.FIXED_SIZE, Kind.DOES_NOT_RUN)
"""Why repairs keep channels wide."""

ROUNDS = 200
"""The most repairs of one trace; each corrects or widens something, so small models never get here."""


def solve(traces: Traces, request: Request, alpha: float) -> SlicePlan:
    """Return the plan of one small network.

    It always returns one: where no repair helps, the model stays as wide as it is, and the plan says why.

    Args:
        traces: the model, with its traces so far.
        request: the request, whose alpha is ignored.
        alpha: the factor that divides widths.

    Raises:
        AdjoinedError: the model does not run on the example input, or the request does not fit the model.
    """
    plan = _solve(traces, request, alpha)
    if not traces.misses_training(plan):
        return plan
    traces.follow_training()
    return _solve(traces, request, alpha)


def _solve(traces: Traces, request: Request, alpha: float) -> SlicePlan:
    model = traces.model
    kept_modules = matching_modules(model, request.keep)
    requested = requested_widths(model, request.widths or {})
    alphas = {owner_of(tensor): width.alpha for (tensor, _), width in requested.items()}

    def slice_inside(module: str, groups: int, size: int) -> bool:
        own = alphas.get(module, alpha)
        return module in traces.tied or slices_inside(groups, size, own, request.round_to)

    unaligned: frozenset[Site] = frozenset()
    may_unalign = True
    other = OtherWidths(request.round_to, alike=False)
    best: SlicePlan | None = None  # of those with other channels behind a cut, or with none that have a place
    while True:
        traced, grouping = traces.get(slice_inside, unaligned)
        if tied := grouping.tied_groups() - traces.tied:
            traces.tied |= tied
            continue
        pin_kept(grouping.groups, kept_modules)
        assign_widths(grouping.groups, requested)
        other.require(grouping.groups)
        repairs = Repairs(traced, grouping, may_unalign)
        cuts: set[Site] = set()
        try:
            plan = _settle(traced, grouping, repairs, request, alpha)
            if not unaligned:
                return _smaller(plan, best)
            best = best or plan
        except Unaligned as found:
            cuts = found.cuts
            plan = _without_repairs(traced, grouping, other, request, alpha)
        except OutOfStep as error:
            if not unaligned:
                return best or _at_full_width(traced, grouping, request, alpha, error.why)
            unaligned, may_unalign = frozenset(), False
            continue
        base = traced if not unaligned else traces.get(slice_inside)[0]
        placed = _in_place(traces, base, plan)
        if isinstance(placed, SlicePlan):
            best = placed
            if not unaligned or not any(g.why and g.why.kind in FAILURES for g in placed.groups):
                return placed
        elif other.propose(grouping.groups, placed.axes):
            continue
        if cuts:
            unaligned |= cuts
            other = OtherWidths(request.round_to, alike=True)
        else:  # where the code has numbers of its own, less may stay wide if no channel changes its place
            unaligned, may_unalign = frozenset(), False
            other = OtherWidths(request.round_to, alike=False)


def _smaller(plan: SlicePlan, other: SlicePlan | None) -> SlicePlan:
    """Return the plan with fewer parameters, the first one where both have as many."""
    if other is None or plan.cost is None or other.cost is None:
        return plan
    return other if other.cost.parameters < plan.cost.parameters else plan


def _without_repairs(
    traced: Trace, grouping: Grouping, other: OtherWidths, request: Request, alpha: float
) -> SlicePlan:
    """Return the plan before any repair: where channels are out of place, repairs correct what is right."""
    for group in grouping.groups:
        group.required = None
    other.require(grouping.groups)
    set_widths(grouping.groups, alpha, request.round_to)
    none = Repairs(traced, grouping, may_unalign=False)
    return _draft(traced, grouping, none, grouping.kept_labels(), request, alpha)


def _in_place(traces: Traces, base: Trace, plan: SlicePlan) -> SlicePlan | NoPlace:
    """Return the plan with the channels of the base that have the places of the small network's; see `align`."""
    try:
        narrow = trace(
            plan.apply(base.model),
            base.inputs,
            choose_groups=traces.again(base),
            in_train_mode=traces.in_train_mode,
        )
    except AdjoinedError:  # it does not run with these widths
        return NoPlace(frozenset())
    found = align(base, narrow)
    if isinstance(found, NoPlace):
        return found
    plan = replace(plan, tensors=found.tensors, unaligned=())
    small = plan.apply(base.model)
    ties = FrozenTies(base.ties.roots(), torch.tensor(found.narrowed, device="cpu"), base.ties.channels())
    findings = replace(base.findings, sizes={})  # which channels a size counts depends on their order
    flow = LabelFlow(ties, findings, is_kept=found.kept.__getitem__)
    try:
        _try(flow, small, base, plan)
    except Exception:  # whatever the model's own code raises on narrow tensors
        return NoPlace(frozenset())
    return replace(
        plan,
        base_cost=base.cost,
        cost=cost_of_run(small, base.finished, flow.flops // 2 // base.inputs.batch_size),
    )


def _at_full_width(traced: Trace, grouping: Grouping, request: Request, alpha: float, why: Reason) -> SlicePlan:
    """Return the plan that narrows nothing, because of the failure `why`.

    Raises:
        AdjoinedError: not even a copy of the model does what the model did.
    """
    grouping.reset()
    for group in grouping.groups:
        group.why = group.why or Reason(why.kind, f"no narrower network runs: {why}")
    try:
        return _settle(traced, grouping, Repairs(traced, grouping, may_unalign=False), request, alpha)
    except OutOfStep as error:
        raise AdjoinedError(
            f"the network does not run again even at full width: {error}",
            where=type(traced.model).__name__,
            fix="Its forward has to run the same operators for the same input shapes.",
        ) from error


def _settle(traced: Trace, grouping: Grouping, repairs: Repairs, request: Request, alpha: float) -> SlicePlan:
    """Repair the plan until the small network runs in every mode that was traced.

    Raises:
        Unaligned: the model has to be traced again, with channel identity given up somewhere.
        OutOfStep: no repair helped.
    """
    for _ in range(ROUNDS):
        set_widths(grouping.groups, alpha, request.round_to)
        is_kept = grouping.kept_labels()
        kept: list[bool] = is_kept.tolist()
        plan = _draft(traced, grouping, repairs, is_kept, request, alpha)
        try:
            small = plan.cut(traced.model)
        except DoesNotFit as error:  # a module that cannot be narrowed
            repairs.repair(Failure(error.cause, error.module, steps=0), kept.__getitem__)
            continue
        flow = LabelFlow(
            FrozenTies(grouping.roots, grouping.narrowed_labels()),
            traced.findings,
            unaligned=traced.unaligned,
            is_kept=kept.__getitem__,
        )
        try:
            _try(flow, small, traced, plan)
        except Exception as error:  # whatever the model's own code raises on narrow tensors
            _check_path(flow, traced)
            error.__traceback__ = error.__context__ = None  # it is kept, and would keep the small network
            repairs.repair(Failure(error, flow.module, flow.steps, flow.last_labels()), kept.__getitem__)
            del flow, small  # before the next ones are made
        else:
            _check_path(flow, traced)
            check_effective(grouping.groups, request.widths or {})
            return replace(
                plan,
                base_cost=traced.cost,
                cost=cost_of_run(small, traced.finished, flow.flops // 2 // traced.inputs.batch_size),
            )
    raise OutOfStep(f"{repairs.log[-1]} (unresolved after {ROUNDS} attempts)")


def _try(flow: LabelFlow, small: nn.Module, traced: Trace, plan: SlicePlan) -> None:
    """Run the small network under the labels that it keeps.

    Raises:
        OutOfStep: two groups meet, or the outputs have other shapes than the base network's.
    """
    seen: set[int] = set()
    for name, tensor in named_tensors(small).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        vectors = zip(traced.labels[name], plan.indices(name), strict=True)
        kept = [None if v is None else take(v, (index,)) for v, index in vectors]
        flow.carry(tensor, [along(v, d, tensor.ndim) for d, v in enumerate(kept) if v is not None])
    with torch.random.fork_rng(devices=[]):
        outputs = tensor_leaves(flow.run(small, traced.inputs))
        if traced.train_inputs is not None:
            outputs += tensor_leaves(flow.run(small, traced.train_inputs, train=True))
    shapes, expected = [out.shape for out in outputs], traced.output_shapes
    if traced.sizes_by_value or flow.values.decide:
        alike = [len(shape) for shape in shapes] == [len(shape) for shape in expected]
    else:
        alike = shapes == expected
    if not alike:
        raise OutOfStep(f"the outputs have the shapes {[tuple(s) for s in shapes]}")


def _check_path(flow: LabelFlow, traced: Trace) -> None:
    """Raise AdjoinedError if values sent the small network along another path than the base."""
    if flow.values.read_in is not None:
        for here, there in zip(flow.path, traced.path, strict=False):
            if here != there:
                raise another_path(traced.model, flow.values.read_in, [here, there])


def _sizes_by_input(traced: Trace, is_kept: Tensor) -> dict[str, Any]:
    """Return the sizes stored in norms without tensors, where they change, as in `SlicePlan.attributes`."""
    values: dict[str, Any] = {}
    for (module, name, element), labels in traced.findings.by_input.items():
        count = int((is_kept[labels] | (labels == 0)).sum())
        if count != labels.numel():
            key = full_name(module, name)
            if element is None:
                values[key] = count
            else:
                values.setdefault(key, list(getattr(traced.model.get_submodule(module), name)))[element] = count
    return values


def _draft(
    traced: Trace, grouping: Grouping, repairs: Repairs, is_kept: Tensor, request: Request, alpha: float
) -> SlicePlan:
    """Return the plan with the current widths of the groups and the current repairs."""
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
        attributes=_sizes_by_input(traced, is_kept) | repairs.corrections.values(lambda label: bool(is_kept[label])),
        groups=describe(grouping.groups),
        crossing=dict(traced.findings.crossing),
        unaligned=tuple(sorted({cut.module for cut in traced.unaligned})),
        unreached=dict(traced.unreached),
    )


def _why_not_narrowed(group: Group) -> Reason | None:
    """Return why a group that may be narrowed is not, in this plan; None where it is."""
    if group.kept < len(group.roots):
        return None
    if group.required is not None:
        return group.required.why
    if group.requested and group.requested[0].alpha == 1:
        return Reason(Kind.REQUESTED, f"widths={group.requested[0].pattern!r} asks for all of its channels")
    if len(group.roots) == 1:
        return Reason(Kind.TIED, "all its channels are tied together")
    return Reason(Kind.TOO_FEW, f"its {group.width} channels are too few to narrow at this alpha and rounding")


def describe(groups: Iterable[Group]) -> tuple[ChannelGroup, ...]:
    """Return the groups as the plan lists them; pieces of one layer that behave alike are added up."""
    found: dict[object, ChannelGroup] = {}
    for group in groups:
        if group.why is not None and group.why.kind in (Kind.NOT_CHANNELS, Kind.INSIDE_GROUPS):
            continue  # these cannot be chosen: kernel positions, and the channels inside a convolution's groups
        modules = tuple(dict.fromkeys(name.rpartition(".")[0] for name, _ in group.axes))
        why = group.why or _why_not_narrowed(group)
        described = ChannelGroup(group.name, modules, group.width, group.kept * group.bundle, why)
        key = (tuple(sorted(group.axes)), group.why)
        if (known := found.get(key)) is not None:
            described = replace(described, width=known.width + described.width, kept=known.kept + described.kept)
        found[key] = described
    return tuple(found.values())
