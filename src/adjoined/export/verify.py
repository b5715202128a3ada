"""Compare an exported file with the network in PyTorch.

Shape legend: N images, C channels, H and W height and width in pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError

TOLERANCE = 1e-4
"""Tolerance of an fp32 file: the largest difference from PyTorch's logits, relative to the largest logit."""


@dataclass(frozen=True)
class Difference:
    """The difference between a file's logits and PyTorch's on the same images."""

    images: int
    maximum: float
    """Largest absolute difference between logits."""
    mean: float
    """Mean absolute difference."""
    scale: float
    """Largest absolute logit of PyTorch."""
    other_class: int
    """Images with another predicted class. If PyTorch's two highest logits differ by less than the tolerance, their
    order is a matter of rounding, and either class counts as the same."""

    @property
    def relative(self) -> float:
        """Largest difference / largest logit."""
        return self.maximum / self.scale if self.scale else self.maximum

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return {**asdict(self), "relative": self.relative}


def compare(
    run: Callable[[Tensor], Tensor],
    module: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    tolerance: float = TOLERANCE,
) -> Difference:
    """Run a file and PyTorch on the same images.

    Args:
        run: the result of `load`.
        module: the network, in evaluation mode, on the CPU.
        batches: pairs of images, (N, C, H, W) each: in the file's format and in the module's.
        tolerance: relative; classes whose logits differ by less count as equally likely.

    Raises:
        AdjoinedError: there are no images, or the file's logits are of another shape or not finite.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> compare(linear, linear, [(x := torch.ones(4, 3), x)]).relative
        0.0
    """
    images = numbers = 0
    maximum = total = scale = 0.0
    behind: list[Tensor] = []
    with torch.no_grad():
        for given, prepared in batches:  # nothing of a batch is kept: the logits of large masks take gigabytes
            logits, reference = run(given), module(prepared)
            if logits.shape != reference.shape or not logits.isfinite().all():
                raise AdjoinedError(
                    "the file's logits are not finite, or not of PyTorch's shape",
                    where="export",
                    expected=f"finite numbers of shape {tuple(reference.shape)}",
                    got=f"shape {tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of them not finite",
                )
            apart = (logits.double() - reference.double()).abs()
            images, numbers = images + len(logits), numbers + apart.numel()
            maximum, total = max(maximum, float(apart.max())), total + float(apart.sum())
            scale = max(scale, float(reference.abs().max()))
            likeliest = logits.argmax(dim=1, keepdim=True)
            short = reference.max(dim=1, keepdim=True).values - reference.gather(1, likeliest)
            behind.append(short[short > 0])
    if not images:
        raise AdjoinedError("no images to compare on", where="export")
    other = int((torch.cat(behind) > tolerance * scale).sum())
    return Difference(images, maximum, total / numbers, scale, other)


def check(difference: Difference, tolerance: float, where: object) -> None:
    """Raise AdjoinedError if an fp32 file differs from the network."""
    if difference.relative <= tolerance and not difference.other_class:
        return
    raise AdjoinedError(
        "the exported file does not compute what PyTorch computes; it was not kept",
        where=where,
        expected=f"relative difference <= {tolerance:g} and the same class for every image",
        got=f"{difference.relative:.2g}, and another class for {difference.other_class} of {difference.images}",
        fix="Choose another target, and please report the network.",
    )
