"""The order of images and their augmentation seeds: pure functions of numbers, never of global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield (index, seed of this image in this epoch), from a permutation that depends only on (seed, epoch).

    Rank r of w takes every w-th item of the permutation, so the ranks together see every image once per epoch. The
    permutation is padded from its start until all ranks have equally many items.

    Args:
        length: number of images.
        seed: seed of the order and of the augmentation.
        rank: r.
        world_size: w.
        shuffle: draw a new permutation in each epoch; otherwise keep the order.

    Example:
        >>> sampler = EpochSampler(3, seed=0, rank=1, world_size=2, shuffle=False)
        >>> [index for index, _ in sampler]  # rank 0 has 0, 2
        [1, 0]
    """

    def __init__(self, length: int, *, seed: int, rank: int = 0, world_size: int = 1, shuffle: bool = True) -> None:
        self.length, self.seed, self.rank, self.world_size, self.shuffle = length, seed, rank, world_size, shuffle
        self.epoch = 0

    @property
    def own(self) -> int:
        """Number of this rank's items before the padding; over all ranks they add up to all images."""
        return -(-(self.length - self.rank) // self.world_size)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration, counted from 0."""
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
    """Return a generator seeded by all the numbers and their order; similar numbers give independent streams.

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
        count: number of images to choose from a class with n images.
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
    # Sorted once: looking for the members of every class would take minutes with ten thousand classes.
    for members in labels.argsort(stable=True).split(labels.unique(return_counts=True)[1].tolist()):
        chosen[members[torch.randperm(len(members), generator=generator)[: count(len(members))]]] = True
    return chosen
