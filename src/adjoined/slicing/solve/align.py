"""Every channel in its place: which channels of the base a small network has after channel shuffles.

After a shuffle and a split, the first channels of the small network are not the first ones of the base. But the small
network's own code shows which layers write and read each of its channels, on which side of every split and in which row
of every shuffle. A channel of the base that is written and read in the same places corresponds to it. So the small
network is traced like the base, and each of its channels gets a channel of the base with the same places.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch

from adjoined.slicing.flow.labels import Axis, Slot, sets_of
from adjoined.slicing.flow.sizes import Site
from adjoined.slicing.flow.trace import Trace
from adjoined.slicing.plan.index import Index

Places = dict[int, frozenset[tuple[object, ...]]]
"""Label -> the pieces of cuts, and the rows of folds and of grouped convolutions, that it went into."""
Signature = frozenset[tuple[object, int]]
"""Something, and how often it occurs."""


class Alignment(NamedTuple):
    """The channels of the base that a small network has.

    Attributes:
        tensors: tensor name -> indices that the small network has, as in a slice plan.
        kept: whether the small network has each label of the base (bool vector).
        narrowed: whether each label of the base belongs to channels of which some are dropped.
    """

    tensors: dict[str, tuple[Index | None, ...]]
    kept: list[bool]
    narrowed: list[bool]


class NoPlace(NamedTuple):
    """Channels of the small network for which the base has no channel with the same places.

    Attributes:
        axes: dimensions of tensors with such channels.
    """

    axes: frozenset[Axis]


def align(base: Trace, small: Trace) -> Alignment | NoPlace:
    """Return the channels of the base that the small network has.

    Args:
        base: the trace of the base network, with no channel identity given up.
        small: the trace of a small network of the same code, of the right widths.
    """
    rows = _common_rows(base, small)
    signatures = _Signatures(base, rows), _Signatures(small, rows)
    of_base, of_small = (each.sets for each in signatures)
    chosen: dict[int, int] = {}
    kept_roots: set[int] = set()
    narrowed_roots: set[int] = set()
    lacking: set[Axis] = set()
    for signature, wanted in of_small.items():
        there = of_base.get(signature, [])
        if len(there) < len(wanted):
            lacking |= {small.ties.axes[root] for root in wanted[len(there) :]}
            continue
        chosen |= zip(wanted, there, strict=False)
        kept_roots.update(there[: len(wanted)])
    if lacking:
        return NoPlace(frozenset(lacking))
    for signature, there in of_base.items():
        if len(of_small.get(signature, ())) < len(there):
            narrowed_roots.update(there)
    tensors = _indices(base, small, signatures, chosen)
    if tensors is None:
        return NoPlace(frozenset())
    roots = base.ties.roots()
    kept = [root == 0 or root in kept_roots for root in roots]
    return Alignment(tensors, kept, [root in narrowed_roots for root in roots])


def _common_rows(base: Trace, small: Trace) -> dict[tuple[Site, int], tuple[int, ...]]:
    """Return the dimensions of folds and grouped convolutions with the same size in both networks: their rows."""
    shapes = [{key: slot.shape for key, slot in _folds(each)} for each in (base, small)]
    return {
        key: tuple(d for d, size in enumerate(shape) if size == other[d])
        for key, shape in shapes[0].items()
        if (other := shapes[1].get(key)) is not None and len(other) == len(shape)
    }


def _folds(trace: Trace) -> Iterable[tuple[tuple[Site, int], Slot]]:
    """Yield the views that fold channels into rows and the inputs of grouped convolutions, numbered at each site."""
    count: Counter[Site] = Counter()
    for site, slot in (*trace.findings.folds, *trace.findings.blocks):
        yield (site, count[site]), slot
        count[site] += 1


class _Signatures:
    """What distinguishes the channels of a trace: in which places of which tensors each of them is.

    Attributes:
        of_channel: label -> signature of its channel, by the dimensions and places of the channel's labels.
        sets: signature of a set of tied channels, by those of its channels -> roots of such sets, ascending.
    """

    def __init__(self, trace: Trace, rows: Mapping[tuple[Site, int], Sequence[int]]) -> None:
        places = _places(trace, rows)
        axis_of, nowhere = trace.ties.axes, frozenset[tuple[object, ...]]()
        self.of_channel: dict[int, Signature] = {}
        for _, members in sets_of(trace.ties.channels()):
            signature = frozenset(Counter((axis_of[label], places.get(label, nowhere)) for label in members).items())
            self.of_channel |= dict.fromkeys(members, signature)
        self.sets: dict[Signature, list[int]] = defaultdict(list)
        for root, members in sets_of(trace.ties.roots()):
            counted = Counter(self.of_channel[label] for label in members)
            self.sets[frozenset(counted.items())].append(root)


def _places(trace: Trace, rows: Mapping[tuple[Site, int], Sequence[int]]) -> Places:
    places: dict[int, set[tuple[object, ...]]] = defaultdict(set)
    for label, pieces in trace.findings.cuts.items():
        places[label] |= pieces
    for key, slot in _folds(trace):
        dims = rows.get(key, ())
        index = torch.stack(torch.meshgrid(*(torch.arange(n, device="cpu") for n in slot.shape), indexing="ij"), -1)
        for label, position in zip(slot.flatten().tolist(), index.flatten(0, -2).tolist(), strict=True):
            if label:
                places[label].add((key, *(position[d] for d in dims)))
    return {label: frozenset(pieces) for label, pieces in places.items()}


def _indices(
    base: Trace, small: Trace, signatures: tuple[_Signatures, _Signatures], chosen: Mapping[int, int]
) -> dict[str, tuple[Index | None, ...]] | None:
    """Return the indices of every tensor in the order of the small network; None if their numbers do not match."""
    of_base, of_small = base.ties.roots(), small.ties.roots()
    tensors: dict[str, tuple[Index | None, ...]] = {}
    for name, vectors in base.labels.items():
        indices: list[Index | None] = []
        for vector, narrow in zip(vectors, small.labels[name], strict=True):
            if vector is None:
                indices.append(None)
                continue
            if narrow is None:  # a single channel has no label
                return None
            where: dict[object, list[int]] = defaultdict(list)
            for position, label in enumerate(vector.tolist()):
                where[of_base[label], signatures[0].of_channel[label]].append(position)
            used: Counter[object] = Counter()
            order: list[int] = []
            for label in narrow.tolist():
                key = chosen[of_small[label]], signatures[1].of_channel[label]
                if used[key] >= len(where[key]):
                    return None
                order.append(where[key][used[key]])
                used[key] += 1
            indices.append(None if order == list(range(vector.numel())) else Index.of(order))
        if any(index is not None for index in indices):
            tensors[name] = tuple(indices)
    return tensors
