"""Metrics of a network, and their means over an epoch."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex, MultilabelAveragePrecision
from torchmetrics.utilities import dim_zero_cat

from adjoined.data.segmentation import NOT_COUNTED
from adjoined.errors import AdjoinedError
from adjoined.kinds import MAIN, MEASURES
from adjoined.tasks import TASKS, Task

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


class MeanLoss(Mean):
    """Mean loss of a task over all images seen, nats."""

    def __init__(self, task: Task, *, sync_on_compute: bool = True) -> None:
        super().__init__(sync_on_compute=sync_on_compute)
        self.task = task

    def update(self, preds: Tensor, target: Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Add outputs and targets of a batch."""
        super().update(self.task.loss([preds], target), len(target))


class MeanAveragePrecision(MultilabelAveragePrecision):
    """Average precision of logits, the mean over the labels that some image has."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add logits and labels, float 0 or 1, (N, K)."""
        super().update(preds.float().sigmoid(), target.long())

    def compute(self) -> Tensor:
        """Return the mean; 0 if no image has any label."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about labels that no image has, whose precision torchmetrics calls 0
            of_labels = super().compute()
        present = dim_zero_cat(self.target).any(dim=0)
        return of_labels[present].mean() if present.any() else of_labels.new_zeros(())


class MeanIoU(MulticlassJaccardIndex):
    """Intersection over union of predicted and true pixels, the mean over the classes."""

    def compute(self) -> Tensor:
        """Return the mean.

        Raises:
            AdjoinedError: no pixel counts.
        """
        found = super().compute()
        if found.isnan():
            raise AdjoinedError(
                "all pixels are ignored, so mean IoU has no value",
                where="the masks of these images",
                expected=f"some pixels with a class, 0 to {self.num_classes - 1}",
                got="255 everywhere",
                fix="Check that the mask files hold classes: 255 is for pixels without one.",
            )
        return found


def scores(kind: str, num_classes: int, *, alone: bool = False) -> MetricCollection:
    """Return the loss and the measures of a task (`adjoined.kinds`), which are in [0, 1].

    Args:
        kind: the task.
        num_classes: K.
        alone: count only this process's images, even if several processes train together.
    """
    task = TASKS[kind]()
    each: dict[str, Metric | MetricCollection] = {"loss": MeanLoss(task, sync_on_compute=not alone)}
    names = [name for name in MEASURES[kind] if name != "top5" or num_classes >= TOP5_FROM]
    each |= {name: measure(name, num_classes, alone=alone) for name in names}
    return MetricCollection(each, compute_groups=False)


def measure(name: str, num_classes: int, *, alone: bool = False) -> Metric:
    """Return the metric that computes a measure; arguments as in `scores`."""
    shared: dict[str, Any] = {"validate_args": False, "sync_on_compute": not alone}
    if name == "mean_ap":
        return MeanAveragePrecision(num_classes, average="none", **shared)
    if name == "miou":
        return MeanIoU(num_classes, ignore_index=NOT_COUNTED, **shared)
    if name == "pixel_accuracy":
        return MulticlassAccuracy(num_classes, average="micro", ignore_index=NOT_COUNTED, **shared)
    return MulticlassAccuracy(num_classes, top_k=5 if name == "top5" else 1, average="micro", **shared)


class EpochMeters:
    """All means of an epoch over all devices: loss terms, and accuracies in training and validation."""

    def __init__(
        self, networks: Iterable[str], num_classes: int, device: torch.device, kind: str = "classification"
    ) -> None:
        names, self.main, self.kind = list(networks), MAIN[kind], kind
        self.device = device
        self.terms: dict[str, Mean] = {}
        self.train_main = {name: measure(self.main, num_classes).to(device) for name in names}
        self.val_scores = {name: scores(kind, num_classes).to(device) for name in names}

    def add_terms(self, terms: Mapping[str, Tensor | float], images: int) -> None:
        """Add scalars of a batch, weighted by its images; a term may be missing from some batches."""
        for name, value in terms.items():
            if name not in self.terms:
                self.terms[name] = Mean().to(self.device)
            self.terms[name].update(value, images)

    def add_train(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Add logits of a training batch; of mixed classes (N, K), the larger share counts."""
        target = y.argmax(dim=1) if y.is_floating_point() and self.kind == "classification" else y
        for name, each in logits.items():
            self.train_main[name].update(each.detach(), target)

    def add_val(self, logits: Mapping[str, Tensor], y: Tensor) -> None:
        """Add logits of a validation batch."""
        for name, each in logits.items():
            self.val_scores[name].update(each, y)

    def close(self) -> dict[str, float]:
        """Return the means of the epoch and reset them; every process must call it."""
        found = {name: metric.compute() for name, metric in self.terms.items() if metric.update_called}
        found |= {f"train_{name}_{self.main}": metric.compute() for name, metric in self.train_main.items()}
        for name, collection in self.val_scores.items():
            found |= {f"val_{name}_{what}": value for what, value in collection.compute().items()}
        for metric in (*self.terms.values(), *self.train_main.values(), *self.val_scores.values()):
            metric.reset()
        return {name: float(value) for name, value in found.items()}
