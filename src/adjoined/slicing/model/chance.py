"""Runs of a model that draw the same random numbers, and leave those of the caller alone."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def same_chance(devices: Iterable[int] = ()) -> Iterator[None]:
    """Restore the random state of torch, Python and numpy after the block, so that the next one draws the same numbers.

    A forward in train mode may leave out layers or choose a branch by any of the three.

    Args:
        devices: numbers of the CUDA devices whose random state is restored, too.

    Example:
        >>> with same_chance():
        ...     first = torch.rand(()), random.random()
        >>> first == (torch.rand(()), random.random())
        True
    """
    numpy = sys.modules.get("numpy")  # a model that draws from it has imported it
    python, arrays = random.getstate(), numpy and numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        if numpy:
            numpy.random.set_state(arrays)
