"""The kept indices of one dimension, and slicing by them without copies where they are consecutive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Index:
    """Ascending indices as ranges [start, stop): ((0, 16),) is the first 16, ((0, 8), (64, 72)) two pieces."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, indices: Iterable[int]) -> Index:
        """Return the index of ascending integers.

        Example:
            >>> Index.of([0, 1, 2, 8, 9])
            Index(ranges=((0, 3), (8, 10)))
        """
        ranges: list[tuple[int, int]] = []
        for i in indices:
            if ranges and ranges[-1][1] == i:
                ranges[-1] = (ranges[-1][0], i + 1)
            else:
                ranges.append((i, i + 1))
        return cls(tuple(ranges))

    @classmethod
    def where(cls, chosen: Tensor) -> Index:
        """Return the index of the positions at which a bool vector is true.

        Example:
            >>> Index.where(torch.tensor([True, True, False, True]))
            Index(ranges=((0, 2), (3, 4)))
        """
        count = int(chosen.count_nonzero())
        if bool(chosen[:count].all()):  # most often, these are the first ones
            return cls(((0, count),) if count else ())
        ends = torch.diff(chosen.to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8), append=torch.zeros(1).char())
        starts, stops = ((ends == sign).nonzero()[:, 0].tolist() for sign in (1, -1))
        return cls(tuple(zip(starts, stops, strict=True)))

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def tolist(self) -> list[int]:
        """Return the indices as a list."""
        return [i for start, stop in self.ranges for i in range(start, stop)]

    def tensor(self, device: torch.device) -> Tensor:
        """Return the indices as an int64 vector."""
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.ranges])

    def to_json(self) -> Any:
        """Return the number n for the first n indices, else the list of ranges."""
        return self.ranges[0][1] if len(self.ranges) == 1 and self.ranges[0][0] == 0 else [list(r) for r in self.ranges]

    @classmethod
    def from_json(cls, data: Any) -> Index:
        """Read what `to_json` returned."""
        if isinstance(data, int):
            return cls(((0, data),))
        return cls(tuple((int(start), int(stop)) for start, stop in data))


def take(tensor: Tensor, indices: Sequence[Index | None]) -> Tensor:
    """Return the slice of a tensor: a view where each dimension's indices are consecutive, else a copy.

    Example:
        >>> take(torch.arange(6).view(2, 3), (None, Index.of([0, 2]))).tolist()
        [[0, 2], [3, 5]]
    """
    for d, index in enumerate(indices):
        if index is not None:
            pieces = [tensor.narrow(d, start, stop - start) for start, stop in index.ranges]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, d)
    return tensor


def add_at(total: Tensor, indices: Sequence[Index | None], part: Tensor) -> None:
    """Add `part` in place to the slice of `total` that `take` returns, without a temporary of full size."""
    for d, index in enumerate(indices):
        if index is not None:
            if len(index.ranges) == 1:
                start, stop = index.ranges[0]
                total = total.narrow(d, start, stop - start)
                continue
            offset = 0
            rest = [None if e <= d else other for e, other in enumerate(indices)]
            for start, stop in index.ranges:
                size = stop - start
                add_at(total.narrow(d, start, size), rest, part.narrow(d, offset, size))
                offset += size
            return
    total.add_(part)
