"""What the networks of a run learn: loss, distance and shape of their outputs, for every kind of data.

Shape legend: N samples, K classes or labels, H and W height and width in pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from adjoined.distances import at_least_float32, label_kl
from adjoined.kinds import task_kind
from adjoined.loss import AdjointTerms, adjoint_terms, sum_cross_entropy
from adjoined.objective import objective_terms
from adjoined.penalty import quadratic_penalty

if TYPE_CHECKING:
    from adjoined.settings import Settings


class Task(ABC):
    """The task of a run; training methods are written in its terms.

    Args:
        label_smoothing: share of the targets that is spread over all classes in training.
    """

    kind: ClassVar[str]

    def __init__(self, label_smoothing: float = 0.0) -> None:
        self.label_smoothing = label_smoothing

    @abstractmethod
    def loss(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Return the sum of several networks' losses, nats; each is a mean over the samples that count."""

    @abstractmethod
    def terms(
        self, p: Tensor, q: Tensor | Sequence[Tensor], y: Tensor, *, detach: bool = False, temperature: float = 1.0
    ) -> AdjointTerms:
        """Return the base's loss, and the distance of the small networks from it.

        Args:
            p: output of the base network.
            q: outputs of the small networks, one or several.
            y: the targets.
            detach: stop the gradient of the distance at `p`.
            temperature: of both outputs in the distance.
        """

    @abstractmethod
    def penalty(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the distance's quadratic form around the base's output, nats (docs/theory.md)."""

    def shape(self, num_classes: int, size: int) -> tuple[int, ...]:
        """Return the shape of the output for one image of `size` pixels."""
        return (1, num_classes)

    @abstractmethod
    def blank(self, output: Tensor) -> Tensor:
        """Return targets of zeros that fit a network's output, to count the cost of a step."""


class Classification(Task):
    """One class for each image: logits (N, K), classes int64 (N,) or probabilities (N, K)."""

    kind = "classification"

    def loss(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Return the cross-entropy."""
        return sum_cross_entropy(outputs, y, label_smoothing=self.label_smoothing)

    def terms(
        self, p: Tensor, q: Tensor | Sequence[Tensor], y: Tensor, *, detach: bool = False, temperature: float = 1.0
    ) -> AdjointTerms:
        """Return cross-entropy and KL."""
        return adjoint_terms(p, q, y, label_smoothing=self.label_smoothing, detach=detach, temperature=temperature)

    def penalty(self, p: Tensor, q: Tensor) -> Tensor:
        """Return the quadratic penalty."""
        return quadratic_penalty(p, q)

    def blank(self, output: Tensor) -> Tensor:
        """Return the first class for every sample and position."""
        return torch.zeros_like(output[:, 0], dtype=torch.int64)


class Segmentation(Classification):
    """One class for each pixel: logits (N, K, H, W), classes int64 (N, H, W), -100 where a pixel does not count."""

    kind = "segmentation"

    def shape(self, num_classes: int, size: int) -> tuple[int, ...]:
        """Return the shape of the logits, of the image's height and width."""
        return (1, num_classes, size, size)


class MultiLabel(Task):
    """Any number of labels for each image: logits (N, K), float 0 or 1 (N, K)."""

    kind = "multilabel"

    def loss(self, outputs: Sequence[Tensor], y: Tensor) -> Tensor:
        """Return the binary cross-entropy, summed over the labels like the KL of independent labels."""
        smooth = y * (1 - self.label_smoothing) + self.label_smoothing / 2
        each = (F.binary_cross_entropy_with_logits(z, smooth, reduction="sum") for z in map(at_least_float32, outputs))
        return torch.stack(list(each)).sum() / max(len(y), 1)

    def terms(
        self, p: Tensor, q: Tensor | Sequence[Tensor], y: Tensor, *, detach: bool = False, temperature: float = 1.0
    ) -> AdjointTerms:
        """Return the binary cross-entropy and the KL of independent labels."""
        family = [q] if isinstance(q, Tensor) else q
        distance = partial(label_kl, temperature=temperature, pull=not detach)
        terms = objective_terms([p, *family], task=lambda z: self.loss([z], y), distance=distance, small_task=False)
        return AdjointTerms(*terms[:2])

    def penalty(self, p: Tensor, q: Tensor) -> Tensor:
        """Return ½ Σ σ(p) (1 − σ(p)) (p − q)² over the labels, the mean over the samples."""
        p, q = at_least_float32(p), at_least_float32(q)
        probability = p.sigmoid()
        return (probability * (1 - probability) * (p - q).square()).sum(dim=1).mean() / 2

    def blank(self, output: Tensor) -> Tensor:
        """Return no label for every sample."""
        return torch.zeros_like(output)


TASKS: dict[str, type[Task]] = {each.kind: each for each in (Classification, Segmentation, MultiLabel)}
"""Name of a task -> class."""


def task_of(settings: Settings) -> Task:
    """Return the task of a run, which follows from its data.

    Example:
        >>> from adjoined.settings import Settings
        >>> task_of(Settings(data="segmentation:streets")).kind
        'segmentation'
    """
    return TASKS[task_kind(settings.data)](settings.label_smoothing)
