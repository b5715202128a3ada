"""Predictions on labelled images: confidence, calibration, confusion and disagreement.

Shape legend: N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BINS = 15
"""Bins of the confidence, as in Guo et al., arXiv 1706.04599."""


@dataclass(frozen=True)
class Answers:
    """Each network's predictions for the same images."""

    labels: Tensor
    """The true classes, int64 (N,)."""
    classes: dict[str, Tensor]
    """Network -> predicted class, int64 (N,)."""
    confidence: dict[str, Tensor]
    """Network -> probability of the predicted class, float32 (N,)."""

    def right(self, network: str) -> Tensor:
        """Return which images the network classifies correctly, bool (N,)."""
        return self.classes[network] == self.labels


@torch.no_grad()
def ask(
    networks: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu"
) -> Answers:
    """Classify the same images with every network.

    Args:
        networks: name -> plain module, images float32 (n, C, H, W) to logits (n, K); left in evaluation mode, on
            `device`.
        batches: images and true classes, int64 (n,).
        device: where to compute.
    """
    for network in networks.values():
        network.to(device).eval()
    labels: list[Tensor] = []
    found: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in networks}
    for x, y in batches:
        labels.append(y)
        for name, network in networks.items():
            surest = network(x.to(device)).float().softmax(dim=1).max(dim=1)
            found[name].append((surest.indices.cpu(), surest.values.cpu()))
    classes, confidence = ({name: torch.cat([each[i] for each in found[name]]) for name in found} for i in (0, 1))
    return Answers(torch.cat(labels), classes, confidence)


@dataclass(frozen=True)
class Calibration:
    """How well confidence matches accuracy: the number of images, mean confidence and accuracy of each bin."""

    bins: tuple[tuple[int, float, float], ...]
    """Images, mean confidence and accuracy of each bin, from low to high confidence; 0, 0, 0 for an empty bin."""
    ece: float
    """Expected calibration error: the mean of |confidence - accuracy| over the bins, weighted by their images."""


def calibration(confidence: Tensor, right: Tensor, bins: int = BINS) -> Calibration:
    """Compare confidence with accuracy in bins of equal width.

    Args:
        confidence: float (N,), in [0, 1].
        right: bool (N,).
        bins: number of bins.

    Source: Guo et al., "On calibration of modern neural networks", arXiv 1706.04599.

    Example:
        >>> found = calibration(torch.tensor([0.9, 0.9, 0.6, 0.6]), torch.tensor([True, True, True, False]), bins=2)
        >>> [(images, round(sure, 3), share) for images, sure, share in found.bins], round(found.ece, 3)
        ([(0, 0.0, 0.0), (4, 0.75, 0.75)], 0.0)
    """
    which = (confidence.double() * bins).ceil().long().clamp(1, bins) - 1  # bins are open below and closed above
    images = torch.bincount(which, minlength=bins)
    sure = torch.bincount(which, weights=confidence.double(), minlength=bins) / images.clamp(min=1)
    share = torch.bincount(which, weights=right.double(), minlength=bins) / images.clamp(min=1)
    ece = float((images * (sure - share).abs()).sum() / max(len(confidence), 1))
    return Calibration(tuple(zip(images.tolist(), sure.tolist(), share.tolist(), strict=True)), ece)


def confusion(labels: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Return the confusion matrix, true classes as rows and predicted classes as columns, int64 (K, K).

    Example:
        >>> confusion(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 2).tolist()
        [[1, 1], [0, 1]]
    """
    return torch.bincount(labels * num_classes + classes, minlength=num_classes**2).view(num_classes, num_classes)


def disagreements(answers: Answers, base: str, small: str) -> dict[str, list[int]]:
    """Return the images for which two networks predict different classes, the most confident mistakes first.

    Returns:
        "base" (only the base network is right), "small" (only the small one is), "neither" -> indices.
    """
    differ = answers.classes[base] != answers.classes[small]
    base_right, small_right = answers.right(base), answers.right(small)
    base_sure, small_sure = answers.confidence[base], answers.confidence[small]

    def ordered(chosen: Tensor, sure: Tensor) -> list[int]:
        indices = (differ & chosen).nonzero().squeeze(1)
        return indices[sure[indices].argsort(descending=True, stable=True)].tolist()

    return {
        "base": ordered(base_right, small_sure),
        "small": ordered(small_right, base_sure),
        "neither": ordered(~base_right & ~small_right, base_sure + small_sure),
    }
