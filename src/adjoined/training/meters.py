"""What is measured of a network, and the means over an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

TOP5_FROM = 6
"""Top-5 accuracy says something from this many classes on."""


class MeanCrossEntropy(Metric):
    """Mean cross-entropy over all images seen, nats."""

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Take in logits (N, K) and class indices (N,)."""
        self.total += F.cross_entropy(preds.float(), target, reduction="sum")
        self.images += len(target)

    def compute(self) -> Tensor:
        """Return the mean, float64."""
        return self.total / self.images


def scores(num_classes: int) -> MetricCollection:
    """Return loss, top-1 and, where there are classes enough, top-5; accuracies are shares in [0, 1]."""
    each: dict[str, Metric | MetricCollection] = {"loss": MeanCrossEntropy(), "top1": top1(num_classes)}
    if num_classes >= TOP5_FROM:
        each["top5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro", validate_args=False)
    return MetricCollection(each, compute_groups=False)


def top1(num_classes: int) -> MulticlassAccuracy:
    """Return the share of images whose likeliest class is the right one."""
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False)


class EpochMeters(nn.Module):
    """All means of an epoch, over all devices: terms of the loss, accuracies in training and in validation.

    Args:
        networks: names of the networks.
        num_classes: K.
    """

    def __init__(self, networks: Iterable[str], num_classes: int) -> None:
        super().__init__()
        names = list(networks)
        self.terms = nn.ModuleDict()
        self.train_top1 = nn.ModuleDict({name: top1(num_classes) for name in names})
        self.val_scores = nn.ModuleDict({name: scores(num_classes) for name in names})

    def add_terms(self, terms: Mapping[str, Tensor | float], images: int) -> None:
        """Take in scalars of a batch, weighted by its images; a term may be missing from some batches."""
        for name, value in terms.items():
            if name not in self.terms:
                self.terms[name] = MeanMetric(nan_strategy="disable")
            metric = self.terms[name]
            if isinstance(value, Tensor):
                metric.to(value.device)
            metric.update(value, images)

    def add_train(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Take in logits of a training batch; of mixed labels (N, K) the larger share counts."""
        target = y.argmax(dim=1) if y.is_floating_point() else y
        for name, each in logits.items():
            self.train_top1[name].update(each.detach(), target)

    def add_val(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Take in logits of a validation batch."""
        for name, each in logits.items():
            self.val_scores[name].update(each, y)

    def close(self) -> dict[str, float]:
        """Return the means of the epoch and start anew; every process must call it."""
        found: dict[str, Tensor] = {name: metric.compute() for name, metric in self.terms.items()}
        found |= {f"train_{name}_top1": metric.compute() for name, metric in self.train_top1.items()}
        for name, collection in self.val_scores.items():
            found |= {f"val_{name}_{what}": value for what, value in collection.compute().items()}
        for metric in (*self.terms.values(), *self.train_top1.values(), *self.val_scores.values()):
            metric.reset()
        return {name: float(value) for name, value in found.items()}
