"""From a model to a slice plan: trace, choose widths, try the small network, repair, until it runs."""

from __future__ import annotations

from dataclasses import replace

import torch

from adjoined.errors import AdjoinedError
from adjoined.slicing.flow.labels import FrozenTies, OutOfStep
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.trace import Trace, trace
from adjoined.slicing.model.modules import matching_modules, owner_of
from adjoined.slicing.plan.plan import DoesNotFit, SlicePlan
from adjoined.slicing.plan.reasons import Kind, Reason
from adjoined.slicing.solve.align import NoPlace, align
from adjoined.slicing.solve.draft import draft
from adjoined.slicing.solve.groups import Grouping
from adjoined.slicing.solve.repair import Repairs, Unaligned
from adjoined.slicing.solve.request import Request, requested_widths
from adjoined.slicing.solve.traces import Traces
from adjoined.slicing.solve.trial import Failure, check_path, try_plan
from adjoined.slicing.solve.widths import (
    OtherWidths,
    assign_widths,
    check_effective,
    pin_differing,
    pin_kept,
    set_widths,
    slices_inside,
)

FAILURE_KINDS = (Kind.FIXED_SIZE, Kind.FIXED_PADDING, Kind.BY_WIDTH, Kind.DOES_NOT_RUN)
"""Why repairs keep channels wide."""

MOST_REPAIRS = 200
"""The most repairs of one trace; each corrects or widens something, so small models never get here."""


def solve(traces: Traces, request: Request, alpha: float) -> SlicePlan:
    """Return the plan of one small network: choose widths, and repair until it runs.

    It always returns one: if no repair helps, the model stays as wide as it is, and the plan says why.

    Most models need one round. If code shuffles channels and then splits them, the first channels of the small network
    may not be the first ones of the base. Then these ways are tried in turn:

    1. other channels of the base, which are in the places of the small network's (`_in_place`);
    2. other widths, near those requested, at which every channel has such a place (`OtherWidths`);
    3. giving up channel identity after these cuts, where only numbers of channels then have to agree (`unaligned`);
    4. keeping the groups concerned wide (`may_unalign` is false).

    Args:
        traces: the model, with its traces so far.
        request: the request, whose alpha is ignored.
        alpha: the factor that divides widths.

    Raises:
        AdjoinedError: the model does not run on the example input, or the request does not fit the model.
    """
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
    best: SlicePlan | None = None  # of the ways 1 to 3
    while True:
        traced, grouping = traces.get(slice_inside, unaligned)
        if tied := grouping.tied_groups() - traces.tied:
            traces.tied |= tied
            continue
        pin_kept(grouping.groups, kept_modules)
        pin_differing(grouping.groups, traces.differing)
        assign_widths(grouping.groups, requested)
        other.require(grouping.groups)
        repairs = Repairs(traced, grouping, may_unalign)
        cuts: set[Site] = set()
        try:
            plan = _repaired(traced, grouping, repairs, request, alpha)
            if tied := grouping.tied_groups() - traces.tied:  # code fixes their number
                traces.tied |= tied
                best = plan
                continue
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
            if not unaligned or not any(g.why and g.why.kind in FAILURE_KINDS for g in placed.groups):
                return placed
        elif other.propose(grouping.groups, placed.axes):
            continue
        if cuts:
            unaligned |= cuts
            other = OtherWidths(request.round_to, alike=True)
        else:  # if code has fixed numbers, less may stay wide if no channel changes its place
            unaligned, may_unalign = frozenset(), False
            other = OtherWidths(request.round_to, alike=False)


def _smaller(plan: SlicePlan, other: SlicePlan | None) -> SlicePlan:
    """Return the plan with fewer parameters, or the first one if they have equally many."""
    if other is None or plan.cost is None or other.cost is None:
        return plan
    return other if other.cost.parameters < plan.cost.parameters else plan


def _without_repairs(
    traced: Trace, grouping: Grouping, other: OtherWidths, request: Request, alpha: float
) -> SlicePlan:
    """Return the plan before any repair: if channels are out of place, repairs would correct what is right."""
    for group in grouping.groups:
        group.required = None
    other.require(grouping.groups)
    set_widths(grouping.groups, alpha, request.round_to)
    return draft(traced, grouping, request, alpha)


def _in_place(traces: Traces, base: Trace, plan: SlicePlan) -> SlicePlan | NoPlace:
    """Return the plan with the channels of the base that have the places of the small network's; see `align`."""
    try:
        narrow = trace(plan.apply(base.model), base.inputs, slices_inside=traces.choices_of(base))
    except AdjoinedError:  # it does not run with these widths
        return NoPlace(frozenset())
    found = align(base, narrow)
    if isinstance(found, NoPlace):
        return found
    plan = replace(plan, tensors=found.tensors, unaligned=())
    small = plan.apply(base.model)
    ties = FrozenTies(base.ties.roots(), torch.tensor(found.narrowed, device="cpu"), base.ties.channels())
    findings = replace(base.findings, sizes={})  # the channels that a size counts depend on their order
    flow = LabelFlow(ties, findings, is_kept=found.kept.__getitem__)
    try:
        return try_plan(plan, small, base, flow)
    except Exception:  # whatever the model's own code raises on narrow tensors
        return NoPlace(frozenset())


def _at_full_width(traced: Trace, grouping: Grouping, request: Request, alpha: float, why: Reason) -> SlicePlan:
    """Return the plan that narrows nothing, because of the failure `why`.

    Raises:
        AdjoinedError: not even a copy of the model does what the model did.
    """
    grouping.reset()
    for group in grouping.groups:
        group.why = group.why or Reason(why.kind, f"no narrower network runs: {why}")
    try:
        return _repaired(traced, grouping, Repairs(traced, grouping, may_unalign=False), request, alpha)
    except OutOfStep as error:
        raise AdjoinedError(
            f"the network fails when it runs again, even at full width: {error}",
            where=type(traced.model).__name__,
            fix="Its forward must run the same operators for the same input shapes.",
        ) from error


def _repaired(traced: Trace, grouping: Grouping, repairs: Repairs, request: Request, alpha: float) -> SlicePlan:
    """Repair the plan until the small network runs in every mode that was traced.

    Raises:
        Unaligned: the model has to be traced again, with channel identity given up somewhere.
        OutOfStep: no repair helped.
    """
    for _ in range(MOST_REPAIRS):
        set_widths(grouping.groups, alpha, request.round_to)
        is_kept = grouping.kept_labels().tolist().__getitem__
        plan = draft(traced, grouping, request, alpha, repairs.corrections.values(is_kept))
        try:
            small = plan.cut(traced.model)
        except DoesNotFit as error:  # a module that cannot be narrowed
            repairs.repair(Failure(error.cause, error.module, steps=0), is_kept)
            continue
        ties = FrozenTies(grouping.roots, grouping.narrowed_labels())
        flow = LabelFlow(ties, traced.findings, unaligned=traced.unaligned, is_kept=is_kept)
        try:
            plan = try_plan(plan, small, traced, flow)
        except Exception as error:  # whatever the model's own code raises on narrow tensors
            check_path(flow, traced)
            error.__traceback__ = error.__context__ = None  # it is kept, and would keep the small network
            repairs.repair(Failure(error, flow.module, flow.steps, flow.last_labels()), is_kept)
            del flow, small  # before new ones are made
        else:
            check_path(flow, traced)
            check_effective(grouping.groups, request.widths or {})
            return plan
    raise OutOfStep(f"{repairs.log[-1]} (unresolved after {MOST_REPAIRS} attempts)")
