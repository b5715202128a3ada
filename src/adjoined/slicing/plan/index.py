"""The kept indices of one dimension, and slicing by them without copies where they are consecutive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOST_RANGES = 8
"""Up to this many ranges are sliced one by one."""


@dataclass(frozen=True)
class Index:
    """Distinct indices as ranges [start, stop): ((0, 16),) is the first 16, ((0, 8), (64, 72)) two pieces.

    They ascend, unless the small network has its channels in another order, as after channel shuffles.
    """

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, indices: Iterable[int]) -> Index:
        """Return the index of distinct integers, in this order.

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
    def where_each(cls, chosen: Tensor, ranges: Tensor) -> list[Index | None]:
        """Return the positions that are true within each range of a bool vector; None if all are.

        Args:
            chosen: bool vector.
            ranges: (start, stop) of each range, int64 (ranges, 2).

        Example:
            >>> Index.where_each(torch.tensor([True, True, False, True]), torch.tensor([[0, 2], [1, 4]]))
            [None, Index(ranges=((0, 1), (2, 3)))]
        """
        before = torch.cat([chosen.new_zeros(1, dtype=torch.int64), chosen.cumsum(0)])
        starts, stops = ranges.unbind(1)
        counts = before[stops] - before[starts]
        in_front = before[starts + counts] - before[starts] == counts  # usually the first ones are chosen
        found: list[Index | None] = []
        for (start, stop), count, first in zip(ranges.tolist(), counts.tolist(), in_front.tolist(), strict=True):
            if count == stop - start:
                found.append(None)
            elif first:
                found.append(cls(((0, count),) if count else ()))
            else:
                found.append(cls.of(chosen[start:stop].nonzero()[:, 0].tolist()))
        return found

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def tolist(self) -> list[int]:
        """Return the indices as a list."""
        return [i for start, stop in self.ranges for i in range(start, stop)]

    def tensor(self, device: torch.device) -> Tensor:
        """Return the indices as an int64 vector."""
        if self.scattered:
            return torch.tensor(self.tolist(), device=device)
        return torch.cat([torch.arange(start, stop, device=device) for start, stop in self.ranges])

    @property
    def scattered(self) -> bool:
        """Whether there are so many ranges that one gather is faster than a slice for each."""
        return len(self.ranges) > MOST_RANGES

    @property
    def ascending(self) -> bool:
        """Whether the indices ascend."""
        return list(self.ranges) == sorted(self.ranges)

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
        if index is not None and index.scattered:
            tensor = tensor.index_select(d, index.tensor(tensor.device))
        elif index is not None:
            pieces = [tensor.narrow(d, start, stop - start) for start, stop in index.ranges]
            tensor = pieces[0] if len(pieces) == 1 else torch.cat(pieces, d)
    return tensor


def add_at(total: Tensor, indices: Sequence[Index | None], part: Tensor, factor: float = 1) -> None:
    """Add `factor` · `part` in place to the slice of `total` that `take` returns, without a temporary of full size.

    Example:
        >>> total = torch.zeros(4)
        >>> add_at(total, (Index.of([3, 0]),), torch.tensor([1.0, 2.0]))
        >>> total.tolist()
        [2.0, 0.0, 0.0, 1.0]
    """
    if any(index is not None and index.scattered for index in indices):
        lines = [
            torch.arange(size, device=total.device) if index is None else index.tensor(total.device)
            for size, index in zip(total.shape, indices, strict=False)
        ]
        places = tuple(line.view([-1] + [1] * (len(lines) - 1 - d)) for d, line in enumerate(lines))
        total[places] += part if factor == 1 else factor * part
        return
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
                add_at(total.narrow(d, start, size), rest, part.narrow(d, offset, size), factor)
                offset += size
            return
    total.add_(part, alpha=factor)
