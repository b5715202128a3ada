"""Loss and quality of a finished network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjoined.kinds import Measures
from adjoined.training.meters import scores


@dataclass(frozen=True)
class Scores(Measures):
    """Loss and quality on some images."""

    images: int
    loss: float
    """Mean loss, nats: cross-entropy; of several labels the sum of their binary cross-entropies."""


@torch.no_grad()
def evaluate(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    num_classes: int,
    device: torch.device | str = "cpu",
    *,
    task: str = "classification",
) -> Scores:
    """Evaluate a network on images, in float32, batch by batch.

    The same batch size on the same kind of device gives bitwise identical figures.

    Args:
        network: a plain module that maps images float32 (N, C, H, W) to logits; it is left in evaluation mode, on
            `device`.
        batches: images and the targets of the task, such as class indices, int64 (N,).
        num_classes: K.
        device: device of the computation.
        task: classification, segmentation or multilabel.
    """
    network.to(device).eval()
    meter = scores(task, num_classes, alone=True).to(device)
    images = 0
    for x, y in batches:
        meter.update(network(x.to(device)), y.to(device))
        images += len(y)
    found = {name: float(value) for name, value in meter.compute().items()}
    return Scores(images, found.pop("loss"), **found)
