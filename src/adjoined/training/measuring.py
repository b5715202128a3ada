"""The last step of a run: measuring the running statistics of the finished networks with their final weights."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import TYPE_CHECKING

import torch

from adjoined.methods import TrainedNetwork
from adjoined.settings import Settings
from adjoined.statistics import measure_statistics
from adjoined.training.loaders import training_batches

if TYPE_CHECKING:
    from adjoined.data import ImageData

MOST_IMAGES = 4096
"""Most training images used to measure statistics."""


def measure_finished(
    finished: Mapping[str, TrainedNetwork], settings: Settings, images: ImageData, device: torch.device
) -> int:
    """Measure the running statistics of finished networks on training images, augmented as in training.

    Training keeps moving averages. In a short run, or with a small momentum, these lag behind the weights.
    A base with frozen modules keeps its statistics.

    Args:
        finished: the networks, changed in place.
        settings: settings of the run; its seed determines the images.
        images: the images of the run.
        device: device of the computation; the networks are returned to the CPU.

    Returns:
        The number of images used; 0 if no network has running statistics.
    """
    modules = [each.module.to(device) for each in finished.values() if not (settings.freeze and each.plan is None)]
    dtype = next((each.dtype for module in modules for each in module.parameters()), torch.float32)
    batches = max(MOST_IMAGES // images.settings.batch_size, 1)
    some = islice(training_batches(settings, images, device, settings.epochs), batches)
    count = measure_statistics(modules, modules, (x.to(dtype) for x, _ in some)) if modules else 0
    for module in modules:
        module.cpu()
    return count
