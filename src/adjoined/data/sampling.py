"""Which image comes when, and which seed it is varied under: pure functions of numbers, never of a global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield (index, seed of this image in this epoch), a pure function of (seed, epoch), the same on every rank.

    Rank r of w takes every w-th item of one permutation, so the ranks together see every image once an epoch. The
    permutation is continued from its beginning until all ranks have equally many.

    Args:
        length: number of images.
        seed: seed of the order and of the variation.
        rank: r.
        world_size: w.
        shuffle: permute anew in each epoch; else the images come in their order.

    Example:
        >>> sampler = EpochSampler(3, seed=0, rank=1, world_size=2, shuffle=False)
        >>> [index for index, _ in sampler]  # rank 0 has 0, 2
        [1, 0]
    """

    def __init__(self, length: int, *, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True) -> None:
        self.length, self.seed, self.rank, self.world_size, self.shuffle = length, seed, rank, world_size, shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, counted from 0, that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.length // self.world_size)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = seeded(self.seed, self.epoch)
        order = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
        seeds = torch.randint(2**62, (self.length,), generator=generator)  # by index, not by place in the order
        places = torch.arange(self.rank, len(self) * self.world_size, self.world_size) % self.length
        mine = order[places]
        return iter(zip(mine.tolist(), seeds[mine].tolist(), strict=True))


def seeded(*numbers: int) -> torch.Generator:
    """Return a generator whose stream depends on all the numbers, in their order; related numbers give unrelated ones.

    Example:
        >>> draws = [torch.randint(1000, (1,), generator=seeded(*pair)).item() for pair in ((0, 1), (1, 0), (0, 1))]
        >>> draws[0] == draws[2], draws[0] == draws[1]
        (True, False)
    """
    import numpy as np

    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))


def choose_per_class(labels: Tensor, count: Callable[[int], int], seed: int) -> Tensor:
    """Choose images of every class at random.

    Args:
        labels: int64 (N,).
        count: of a class with n images, how many to choose.
        seed: seed of the choice.

    Returns:
        bool (N,), True for the chosen ones.

    Example:
        >>> chosen = choose_per_class(torch.tensor([0, 0, 0, 0, 1, 1]), lambda n: n // 2, seed=0)
        >>> chosen[:4].sum().item(), chosen[4:].sum().item()
        (2, 1)
    """
    generator = seeded(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().squeeze(1)
        chosen[members[torch.randperm(len(members), generator=generator)[: count(len(members))]]] = True
    return chosen
