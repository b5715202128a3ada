"""Loss and accuracy of a finished network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjoined.training.meters import scores


@dataclass(frozen=True)
class Scores:
    """Loss and accuracies in [0, 1]."""

    images: int
    loss: float
    """Mean cross-entropy, nats."""
    top1: float
    top5: float | None
    """None if there are five classes or fewer."""


@torch.no_grad()
def evaluate(
    network: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], num_classes: int, device: torch.device | str = "cpu"
) -> Scores:
    """Evaluate a network on images, in float32, batch by batch.

    The same batch size on the same kind of device gives bitwise identical figures.

    Args:
        network: a plain module that maps images float32 (N, C, H, W) to logits (N, K); it is left in evaluation mode,
            on `device`.
        batches: images and class indices, int64 (N,).
        num_classes: K.
        device: device of the computation.
    """
    network.to(device).eval()
    meter = scores(num_classes, alone=True).to(device)
    images = 0
    for x, y in batches:
        meter.update(network(x.to(device)), y.to(device))
        images += len(y)
    found = {name: float(value) for name, value in meter.compute().items()}
    return Scores(images, found["loss"], found["top1"], found.get("top5"))
