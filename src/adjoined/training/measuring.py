"""The last step of a run: running statistics of finished networks, measured on the weights that they ended with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from adjoined.methods import Finished
from adjoined.settings import Settings
from adjoined.statistics import measure_statistics

if TYPE_CHECKING:
    from adjoined.data import ImageData

IMAGES = 4096
"""Training images that statistics are measured on, at most."""


def measure_finished(
    finished: Mapping[str, Finished], settings: Settings, images: ImageData, device: torch.device
) -> int:
    """Measure the running statistics of finished networks on training images, varied as in training.

    In training they follow as moving averages, which in a short run, or with the small momentum of many ImageNet
    models, lag behind the weights by more than the run is long. What is frozen keeps its statistics.

    Args:
        finished: the networks, in place.
        settings: those of the run; the images are drawn by its seed.
        images: the run's.
        device: where to compute; the networks come back to the CPU.

    Returns:
        The number of images used; 0 where no network has running statistics.
    """
    modules = [each.module.to(device) for each in finished.values()]
    count = measure_statistics(modules, modules, _some(settings, images))
    for module in modules:
        module.cpu()
    return count


def _some(settings: Settings, images: ImageData) -> Iterator[tuple[Tensor, Tensor]]:
    loader = images.train_loader(seed=settings.seed)
    loader.sampler.set_epoch(settings.epochs)  # an epoch that the training has not seen  # pyright: ignore
    batch = images.settings.batch_size
    return islice(iter(loader), max(IMAGES // batch, 1))
