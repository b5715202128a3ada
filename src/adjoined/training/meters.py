"""Metrics of a network, and their means over an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

TOP5_FROM = 6
"""Fewest classes for which top-5 accuracy is meaningful."""


class Mean(Metric):
    """Mean of a scalar over all images seen."""

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, value: Tensor | float, images: int) -> None:
        """Add the mean over some images, and their number."""
        self.total += value * images
        self.images += images

    def compute(self) -> Tensor:
        """Return the mean."""
        return self.total / self.images


class MeanCrossEntropy(Mean):
    """Mean cross-entropy over all images seen, nats."""

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add logits (N, K) and class indices (N,)."""
        super().update(F.cross_entropy(preds.float(), target), len(target))


def scores(num_classes: int, *, alone: bool = False) -> MetricCollection:
    """Return loss, top-1 and, with enough classes, top-5 metrics; accuracies are in [0, 1].

    Args:
        num_classes: K.
        alone: count only this process's images, even if several processes train together.
    """
    each: dict[str, Metric | MetricCollection] = {
        "loss": MeanCrossEntropy(sync_on_compute=not alone),
        "top1": accuracy(num_classes, alone=alone),
    }
    if num_classes >= TOP5_FROM:
        each["top5"] = accuracy(num_classes, top=5, alone=alone)
    return MetricCollection(each, compute_groups=False)


def accuracy(num_classes: int, *, top: int = 1, alone: bool = False) -> MulticlassAccuracy:
    """Return the top-k accuracy for k = `top`."""
    return MulticlassAccuracy(num_classes, top_k=top, average="micro", validate_args=False, sync_on_compute=not alone)


class EpochMeters:
    """All means of an epoch over all devices: loss terms, and accuracies in training and validation.

    Args:
        networks: names of the networks.
        num_classes: K.
        device: device of the figures.
    """

    def __init__(self, networks: Iterable[str], num_classes: int, device: torch.device) -> None:
        names = list(networks)
        self.device = device
        self.terms: dict[str, Mean] = {}
        self.train_top1 = {name: accuracy(num_classes).to(device) for name in names}
        self.val_scores = {name: scores(num_classes).to(device) for name in names}

    def add_terms(self, terms: Mapping[str, Tensor | float], images: int) -> None:
        """Add scalars of a batch, weighted by its images; a term may be missing from some batches."""
        for name, value in terms.items():
            if name not in self.terms:
                self.terms[name] = Mean().to(self.device)
            self.terms[name].update(value, images)

    def add_train(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Add logits of a training batch; of mixed labels (N, K), the larger share counts."""
        target = y.argmax(dim=1) if y.is_floating_point() else y
        for name, each in logits.items():
            self.train_top1[name].update(each.detach(), target)

    def add_val(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Add logits of a validation batch."""
        for name, each in logits.items():
            self.val_scores[name].update(each, y)

    def close(self) -> dict[str, float]:
        """Return the means of the epoch and reset them; every process must call it."""
        found = {name: metric.compute() for name, metric in self.terms.items() if metric.update_called}
        found |= {f"train_{name}_top1": metric.compute() for name, metric in self.train_top1.items()}
        for name, collection in self.val_scores.items():
            found |= {f"val_{name}_{what}": value for what, value in collection.compute().items()}
        for metric in (*self.terms.values(), *self.train_top1.values(), *self.val_scores.values()):
            metric.reset()
        return {name: float(value) for name, value in found.items()}
