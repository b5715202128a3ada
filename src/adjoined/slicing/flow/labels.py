"""Labels: which channels of a network belong together.

Every index of every dimension of every parameter and buffer gets a unique number, its *label*; 0 means "no channel". A
tensor carries its labels in *slots*: int32 tensors with as many dimensions as the tensor, and size 1 along every
dimension where the label does not change. A weight (O, I, 3, 3) starts with the slots (O, 1, 1, 1), (1, I, 1, 1), (1,
1, 3, 1) and (1, 1, 1, 3); an activation (N, C, H, W) carries one slot (1, C, 1, 1).
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from adjoined.slicing.plan.reasons import Kind, Reason

Slot = Tensor
"""int32, as many dimensions as the labelled tensor, broadcastable to its shape."""
LABEL = torch.int32
"""The slots of attention maps are the largest tensors of a trace, so their elements are small."""
_SMALL = 1 << 14
"""A slot may keep a storage of up to this many bytes alive, even if it is a small part of it."""


class Axis(NamedTuple):
    """One dimension of a named tensor."""

    tensor: str
    dim: int


class OutOfStep(Exception):
    """Two channel groups meet that must stay separate, or an operator does not accept the narrow shapes."""

    kind: ClassVar[Kind] = Kind.DOES_NOT_RUN

    def __init__(self, message: str, labels: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.labels = tuple({label for label in labels if label})

    @property
    def why(self) -> Reason:
        """Why the channels concerned stay at full width, if nothing helps."""
        return Reason(self.kind, str(self))


class OtherNeighbours(OutOfStep):
    """An operator combines neighbouring channels that are not neighbours in the base network."""

    kind = Kind.NEIGHBOURS


class OtherCourse(OutOfStep):
    """Code reads a width and does something else for fewer channels."""

    kind = Kind.BY_WIDTH


class NeedsValues(Exception):
    """The trace needs the values of a tensor, and tensors on the meta device have none."""


class TooNarrow(OutOfStep):
    """More channels arrive after an unaligned cut than the group there has."""

    def __init__(self, message: str, labels: Iterable[int], expected: Iterable[int], arriving: int) -> None:
        super().__init__(message, labels)
        self.expected, self.arriving = tuple(expected), arriving


class Ties:
    """Disjoint sets of labels: labels in one set are kept or dropped together. A set may be pinned to full width.

    Within a set, subsets hold the labels of one channel: those that met element by element.
    """

    def __init__(self) -> None:
        # A network with large tables has as many labels as parameters, so labels are not Python objects.
        self._parent = array("q", [0])
        self._channel = array("q", [0])
        self._pinned = array("i", [0])
        self._reasons: dict[Reason | None, int] = {None: 0}
        self.axes = [Axis("", 0)]

    def new(self, tensor: str, dim: int, count: int) -> Tensor:
        """Return `count` fresh labels (int32 vector) for the indices along dimension `dim` of a tensor."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._channel.extend(range(first, first + count))
        self._pinned.extend(repeat(0, count))
        self.axes.extend([Axis(tensor, dim)] * count)
        return torch.arange(first, first + count, dtype=LABEL, device="cpu")

    def find(self, label: int) -> int:
        """Return the root of the label's set, its smallest label."""
        return _root(self._parent, label)

    def tie(self, a: Slot, b: Slot, where: str) -> None:
        """Tie two slots of one shape, whose elements are the same channels; `where` is for the strict run.

        Labels 0 are left out.
        """
        for x, y in pairs(a, b):
            self._unite(x, y)
            _join(self._channel, x, y)

    def couple(self, a: Slot, b: Slot, where: str) -> None:
        """Tie two slots of one shape, whose elements are different channels that are kept or dropped together."""
        for x, y in pairs(a, b):
            self._unite(x, y)

    def _unite(self, x: int, y: int) -> None:
        x, y = _join(self._parent, x, y)
        self._pinned[x] = self._pinned[x] or self._pinned[y]

    def pin(self, slot: Slot, reason: Reason) -> None:
        """Keep every channel of the slot at full width; a set keeps the first reason that it gets."""
        number = self._reasons.setdefault(reason, len(self._reasons))
        for label in distinct(slot):
            root = self.find(label)
            self._pinned[root] = self._pinned[root] or number

    def roots_of(self, slot: Slot) -> Tensor:
        """Return the root of every label of a slot (int64, the slot's shape)."""
        labels, places = torch.unique(slot, return_inverse=True)
        return torch.tensor([self.find(label) for label in labels.tolist()], device="cpu")[places]

    def roots(self) -> array[int]:
        """Return the root of every label."""
        return _roots(self._parent)

    def channels(self) -> array[int]:
        """Return for every label the smallest one of the same channel."""
        return _roots(self._channel)

    def reasons(self) -> Callable[[int], Reason | None]:
        """Return a function from a root to the reason why its set is pinned, None if it is not."""
        reasons = list(self._reasons)
        return lambda root: reasons[self._pinned[root]]


def _root(parent: array[int], label: int) -> int:
    while parent[label] != label:
        parent[label] = parent[parent[label]]
        label = parent[label]
    return label


def _join(parent: array[int], x: int, y: int) -> tuple[int, int]:
    """Join the sets of two labels, and return their roots: first the smaller one, which remains a root."""
    x, y = _root(parent, x), _root(parent, y)
    if x > y:
        x, y = y, x
    parent[y] = x
    return x, y


def _roots(parent: array[int]) -> array[int]:
    """Return the root of every label."""
    roots = parent[:]
    table = torch.frombuffer(roots, dtype=torch.int64)
    while not torch.equal(above := table[table], table):
        table.copy_(above)
    return roots


def sets_of(roots: array[int]) -> Iterator[tuple[int, list[int]]]:
    """Yield the root and the members of every set of labels, both ascending, from the root of every label.

    Example:
        >>> list(sets_of(array("q", [0, 1, 1, 3, 1])))
        [(1, [1, 2, 4]), (3, [3])]
    """
    table = torch.frombuffer(roots, dtype=torch.int64)
    ordered = torch.argsort(table, stable=True)
    found, counts = torch.unique_consecutive(table[ordered], return_counts=True)
    members, end = array("q", ordered.tolist()), 0
    for root, count in zip(found.tolist(), counts.tolist(), strict=True):
        end += count
        if root:
            yield root, members[end - count : end].tolist()


class FrozenTies:
    """The ties of a finished trace, for the second run on the small network: a new tie is an error.

    Groups at full width may be tied: there the small network does what the base does.

    Args:
        roots: the root of every label.
        narrowed: whether each label belongs to channels of which some are dropped (bool vector).
        channels: the smallest label of the same channel, for every label, if the small network has its channels in
            another order than the base; None if tied channels have one order everywhere.
    """

    def __init__(self, roots: array[int], narrowed: Tensor, channels: array[int] | None = None) -> None:
        self._roots, self._narrowed = roots, narrowed
        self.narrows = bool(narrowed.any())  # whether any group is narrowed
        self._root_of = torch.frombuffer(roots, dtype=torch.int64)  # every operator of a run compares
        self._channel_of = self._root_of if channels is None else torch.frombuffer(channels, dtype=torch.int64)

    def find(self, label: int) -> int:
        """Return the root of the label's set, its smallest label."""
        return self._roots[label]

    def roots_of(self, slot: Slot) -> Tensor:
        """Return the root of every label of a slot (int64, the slot's shape)."""
        return self._root_of[slot]

    def tie(self, a: Slot, b: Slot, where: str) -> None:
        """Raise OutOfStep if a narrowed set would be tied to another set."""
        self._compare(self._channel_of, a, b, where)

    def couple(self, a: Slot, b: Slot, where: str) -> None:
        """Raise OutOfStep if a narrowed set would be tied to another set."""
        self._compare(self._root_of, a, b, where)

    def _compare(self, table: Tensor, a: Slot, b: Slot, where: str) -> None:
        if a.shape == b.shape and torch.equal(*(table.index_select(0, slot.reshape(-1)) for slot in (a, b))):
            return
        for x, y in pairs(a, b):
            if table[x] != table[y] and (self._narrowed[x] or self._narrowed[y]):
                raise OutOfStep(f"two channel groups meet in {where}", (x, y))

    def any_narrowed(self, labels: Iterable[int]) -> bool:
        """Return whether any of the labels belongs to a group that is narrowed."""
        return bool(self._narrowed[list(labels)].any())

    def pin(self, slot: Slot, reason: Reason) -> None:
        """Do nothing: the first run has pinned it."""


def pairs(a: Slot, b: Slot) -> list[tuple[int, int]]:
    """Return the distinct pairs of different labels at equal positions of two slots that broadcast to each other."""
    a, b = torch.broadcast_tensors(a, b)
    different = (a != b) & (a != 0) & (b != 0)
    if not bool(different.any()):
        return []
    both = torch.unique((a[different].long() << 32) + b[different])  # as one number: unique by rows is slow
    return list(zip((both >> 32).tolist(), (both & 0xFFFFFFFF).tolist(), strict=True))


def distinct(slot: Slot) -> list[int]:
    """Return the distinct labels of a slot, ascending, without 0."""
    return [label for label in torch.unique(slot).tolist() if label]


def varying(slot: Slot) -> tuple[int, ...]:
    """Return the dimensions along which a slot has more than one element."""
    return tuple(d for d, size in enumerate(slot.shape) if size > 1)


def along(vector: Tensor, dim: int, ndim: int) -> Slot:
    """Return a vector of labels as a slot of `ndim` dimensions that varies along `dim`."""
    return vector.reshape([-1 if d == dim else 1 for d in range(ndim)])


def lines(slot: Slot, dims: Sequence[int]) -> list[list[int]]:
    """Return the labels of a slot at every place along some of its dimensions.

    Example:
        >>> lines(torch.arange(4).view(2, 1, 2), [2])
        [[0, 2], [1, 3]]
    """
    places = math.prod(slot.shape[d] for d in dims)
    return slot.movedim(tuple(dims), tuple(range(len(dims)))).reshape(places, -1).tolist()


def proportions(line: Iterable[int]) -> dict[int, int]:
    """Return how often each label occurs in a row, in lowest terms: other channels in the row may be narrowed, too.

    Example:
        >>> proportions([5, 5, 7, 7, 7, 7])
        {5: 1, 7: 2}
    """
    counts = Counter(line)
    divisor = math.gcd(*counts.values())
    return {label: count // divisor for label, count in counts.items()}


def in_order(slot: Slot) -> tuple[list[int], Tensor]:
    """Return the distinct labels of a slot in the order in which they appear, and the number of each element's.

    Example:
        >>> in_order(torch.tensor([[7, 9], [9, 4]]))
        ([7, 9, 4], tensor([[0, 1],
                [1, 2]]))
    """
    numbers: dict[int, int] = {}
    where = [numbers.setdefault(label, len(numbers)) for label in slot.flatten().tolist()]
    return list(numbers), torch.tensor(where).view(slot.shape)


def squeeze_equal(slot: Slot) -> Slot:
    """Reduce to size 1 every dimension along which the labels do not change."""
    for d in range(slot.ndim):
        if slot.shape[d] > 1:
            first = slot.narrow(d, 0, 1)
            if slot.stride(d) == 0 or bool((slot == first).all()):
                slot = first
    # A view would keep the whole storage of a large tensor alive.
    return slot.clone() if slot.untyped_storage().nbytes() > max(2 * slot.nbytes, _SMALL) else slot


def reshaped(slot: Slot, source: Sequence[int], target: Sequence[int]) -> Slot:
    """Reshape a slot as a tensor of shape `source` is reshaped to `target`, without expanding it where it is constant.

    Each run of dimensions becomes the one of the same total size; if the labels do not change within it, its dimensions
    keep size 1.

    Example:
        >>> tuple(reshaped(torch.arange(6).view(1, 6, 1), (8, 6, 100), (8, 2, 3, 10, 10)).shape)
        (1, 2, 3, 1, 1)
    """
    before: list[int] = []
    after: list[int] = []
    for old, new in _runs(source, target):
        changes = any(slot.shape[d] > 1 for d in old)
        before += [source[d] if changes else 1 for d in old]
        after += [target[d] if changes else 1 for d in new]
    return slot.expand(before).reshape(after)


def _runs(source: Sequence[int], target: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Return the shortest runs of dimensions of source and target that have equal numbers of elements."""
    old: list[int] = []
    new: list[int] = []
    i = j = 0
    while i < len(source) or j < len(target):
        a, b = (math.prod(shape[d] for d in dims) for shape, dims in ((source, old), (target, new)))
        if old and new and a == b:
            yield old, new
            old, new = [], []
        elif i < len(source) and (a < b or not old or j == len(target)):
            old, i = [*old, i], i + 1
        else:
            new, j = [*new, j], j + 1
    yield old, new
