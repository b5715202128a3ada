"""Reorder the channels of every group, so that the first ones, which the small network keeps, matter most.

A channel group is reordered by permuting every tensor dimension with its channels in the same way. If that is a
symmetry of the network, the base computes the same function. Before anything is changed, a copy is reordered in float64
and with random weights; if its outputs change, the groups that cause it keep their order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from adjoined.slicing.flow.labels import Axis
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.model.modules import named_tensors, owner_of
from adjoined.slicing.order.importance import Importance, check_order
from adjoined.slicing.order.symmetry import Gathers, Probe, permute
from adjoined.slicing.plan.index import Index, take
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.solve.groups import Grouping
from adjoined.slicing.solve.traces import Traces

NO_SYMMETRY = "in another order the base network would compute something else"


def reorder_channels(traces: Traces, plans: Sequence[SlicePlan], order: str) -> list[SlicePlan]:
    """Reorder the channels of the model of `traces` in place; see `adjoined.slicing.reorder`.

    Raises:
        AdjoinedError: no such order, no batch norm for "bn", a plan of another model, or the model does not run.
    """
    ordering = _ordering(traces, plans, order)
    permute(named_tensors(traces.model), ordering.gathers())
    return [replace(plan, order=order, unordered=ordering.unordered) for plan in plans]


def select_channels(traces: Traces, plan: SlicePlan, order: str) -> SlicePlan:
    """Return the plan that keeps what it would keep after a reordering; see `adjoined.slicing.select`.

    Raises:
        AdjoinedError: as for `reorder_channels`.
    """
    ordering = _ordering(traces, [plan], order)
    tensors = dict(plan.tensors)
    for name, gathers in ordering.gathers().items():
        pairs = zip(plan.indices(name), gathers, strict=True)
        tensors[name] = tuple(index if new is None else _taken(new, index) for index, new in pairs)
    return replace(plan, tensors=tensors, unordered=ordering.unordered)


def _taken(order: Tensor, index: Index | None) -> Index:
    return Index.of((order if index is None else take(order, (index,))).tolist())


def _ordering(traces: Traces, plans: Sequence[SlicePlan], order: str) -> _Ordering:
    check_order(order)
    model = traces.model
    for plan in plans:
        plan.check_fits(model)
    probe = Probe(model, traces.inputs)
    importance = Importance(model if order == "taylor" else probe.model, order)  # copies have no gradients
    traced, grouping = traces.get(lambda *question: _slices_inside(plans[0], *question))
    ordering = _Ordering(traced, grouping, plans, importance)
    ordering.check_memory(named_tensors(model))
    ordering.check_outputs(probe)
    return ordering


class _Ordering:
    """The new order of every group that gets one, and why the others do not.

    Attributes:
        sources: number of a group -> root label -> root label of the channel that moves to its positions.
        unordered: name of a group that keeps its order -> reason.
    """

    def __init__(self, traced: Trace, grouping: Grouping, plans: Sequence[SlicePlan], importance: Importance) -> None:
        self._traced, self._grouping = traced, grouping
        self.sources: dict[int, dict[int, int]] = {}
        self.unordered: dict[str, str] = {}
        self._where: dict[Axis, dict[int, list[int]]] = {}
        depths = _depths(traced, grouping, plans)
        for number, group in enumerate(grouping.groups):
            found = [depths[root] for root in group.roots]
            if all(depth == {len(plans)} for depth in found):
                continue  # at full width in every network
            scores = importance.of(group, traced.labels, grouping.roots)
            if group.why is not None:
                self._leave([number], group.why.text)
            elif any(len(depth) > 1 for depth in found):
                self._leave([number], "the small network keeps only parts of its channels")
            elif not scores:
                self._leave([number], "no weights show which of them matter most")
            else:
                positions = sorted(range(len(found)), key=lambda i: -max(found[i]))
                best = sorted(range(len(found)), key=lambda i: -scores[i])
                pairs = ((group.roots[to], group.roots[source]) for to, source in zip(positions, best, strict=True))
                self.sources[number] = {to: source for to, source in pairs if to != source}

    def gathers(self, numbers: Iterable[int] | None = None) -> Gathers:
        """Return the new order of all tensors, with all groups reordered or only some."""
        found: dict[Axis, list[int]] = {}
        for number in self.sources if numbers is None else numbers:
            for axis in self._grouping.groups[number].axes:
                where = self._positions(axis)
                index = found.setdefault(axis, list(range(sum(map(len, where.values())))))
                for to, source in self.sources[number].items():
                    for i, j in zip(where[to], where[source], strict=True):
                        index[i] = j
        gathers: dict[str, list[Tensor | None]] = {}
        for (tensor, dim), index in found.items():
            of_tensor = gathers.setdefault(tensor, [None] * len(self._traced.labels[tensor]))
            of_tensor[dim] = torch.tensor(index, device="cpu")
        return gathers

    def check_memory(self, tensors: Mapping[str, Tensor]) -> None:
        """Leave groups alone whose memory several tensors share, or whose tensors would need several orders."""
        names: dict[int, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            names[id(tensor)].append(name)
        overlapping = _overlapping({of_one[0]: tensors[of_one[0]] for of_one in names.values()})
        self._leave(self._in(overlapping), "several tensors share their memory")
        gathers, torn = self.gathers(), set[str]()
        for of_one in names.values():  # on the meta device, the trace labels tied tensors separately
            separate = {id(self._traced.labels[name]): name for name in of_one}.values()
            if any(not _equal(gathers.get(name), gathers.get(of_one[0])) for name in separate):
                torn |= set(of_one)
        self._leave(self._in(torn), "a weight shared by several layers would need several orders")

    def check_outputs(self, probe: Probe) -> None:
        """Leave groups alone whose reordering changes the outputs."""
        if self.sources:
            probe.start(self._traced.train_inputs)
        while self.sources and not probe.same(self.gathers()):
            self._leave(self._culprits(list(self.sources), probe) or list(self.sources), NO_SYMMETRY)

    def _culprits(self, numbers: list[int], probe: Probe) -> list[int]:
        """Return those of some groups whose reordering changes the outputs by itself, by bisection."""
        if probe.same(self.gathers(numbers)):
            return []
        if len(numbers) == 1:
            return numbers
        half = len(numbers) // 2
        return self._culprits(numbers[:half], probe) + self._culprits(numbers[half:], probe)

    def _in(self, names: set[str]) -> list[int]:
        """Return the groups that have channels in these tensors."""
        return [n for n in self.sources if any(t in names for t, _ in self._grouping.groups[n].axes)]

    def _leave(self, numbers: Iterable[int], reason: str) -> None:
        for number in list(numbers):
            self.sources.pop(number, None)
            self.unordered.setdefault(self._grouping.groups[number].name, reason)

    def _positions(self, axis: Axis) -> dict[int, list[int]]:
        """Return root -> the indices of its channels along one dimension of a tensor, ascending."""
        if axis not in self._where:
            vector = self._traced.labels[axis.tensor][axis.dim]
            where: dict[int, list[int]] = defaultdict(list)
            for index, label in enumerate([] if vector is None else vector.tolist()):
                where[self._grouping.roots[label]].append(index)
            self._where[axis] = where
        return self._where[axis]


def _depths(traced: Trace, grouping: Grouping, plans: Sequence[SlicePlan]) -> dict[int, set[int]]:
    """Return for every root how many small networks keep its channels: one number, unless they keep some of them."""
    found: dict[int, set[int]] = defaultdict(set)
    for name, vectors in traced.labels.items():
        kept = [plan.indices(name) for plan in plans]
        for dim, vector in enumerate(vectors):
            if vector is not None:
                depth = torch.zeros(vector.numel(), dtype=torch.long, device="cpu")
                for indices in kept:
                    index = indices[dim]
                    depth[slice(None) if index is None else index.tolist()] += 1
                for label, count in zip(vector.tolist(), depth.tolist(), strict=True):
                    found[grouping.roots[label]].add(count)
    return found


def _slices_inside(plan: SlicePlan, module: str, groups: int, size: int) -> bool:
    """Return whether the plan narrows a grouped convolution inside its groups instead of dropping whole groups."""
    weights = [indices for name, indices in plan.tensors.items() if owner_of(name) == module and len(indices) > 2]
    return any(indices[1] is not None for indices in weights)


def _equal(a: Sequence[Tensor | None] | None, b: Sequence[Tensor | None] | None) -> bool:
    if a is None or b is None:
        return a is b
    return all(x is y or (x is not None and y is not None and torch.equal(x, y)) for x, y in zip(a, b, strict=True))


def _overlapping(tensors: Mapping[str, Tensor]) -> set[str]:
    """Return the names of tensors whose memory overlaps with that of another."""
    spans = []
    for name, tensor in tensors.items():
        if tensor.numel():
            extent = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
            start = tensor.data_ptr()
            spans.append((start, start + extent * tensor.element_size(), name))
    found: set[str] = set()
    end, last = 0, ""
    for start, stop, name in sorted(spans):
        if start < end:
            found |= {last, name}
        if stop > end:
            end, last = stop, name
    return found
