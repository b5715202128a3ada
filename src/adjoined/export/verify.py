"""Whether an exported file computes what the network computes in PyTorch.

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
"""How far a file in fp32 may be from PyTorch: the largest difference of two logits / the largest logit."""


@dataclass(frozen=True)
class Difference:
    """How far the logits of a file are from those of PyTorch on the same images."""

    images: int
    maximum: float
    """Largest absolute difference of two logits."""
    mean: float
    """Mean absolute difference."""
    scale: float
    """Largest absolute logit of PyTorch."""
    other_class: int
    """Images with another likeliest class. Where PyTorch's own two likeliest classes are nearer to each other than the
    tolerance, their order is rounding, and either counts as the same."""

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
        run: what `load` returns.
        module: the network, in evaluation mode, on the CPU.
        batches: pairs of images, (N, C, H, W) each: as the file takes them, and as the module takes them.
        tolerance: relative; classes nearer to each other are equally likely.

    Raises:
        AdjoinedError: there are no images, or the file's logits are of another shape or not finite.

    Example:
        >>> linear = nn.Linear(3, 2)
        >>> compare(linear, linear, [(x := torch.ones(4, 3), x)]).relative
        0.0
    """
    found, wanted = [], []
    with torch.no_grad():
        for given, prepared in batches:
            found.append(run(given))
            wanted.append(module(prepared))
    if not found:
        raise AdjoinedError("there are no images to compare on", where="export")
    logits, reference = torch.cat(found), torch.cat(wanted)
    if logits.shape != reference.shape or not logits.isfinite().all():
        raise AdjoinedError(
            "the file gives no such logits as PyTorch",
            where="export",
            expected=f"finite numbers of shape {tuple(reference.shape)}",
            got=f"shape {tuple(logits.shape)}, {int((~logits.isfinite()).sum())} of them not finite",
        )
    apart = (logits.double() - reference.double()).abs()
    scale = float(reference.abs().max())
    likeliest = logits.argmax(dim=1, keepdim=True)
    behind = reference.max(dim=1, keepdim=True).values - reference.gather(1, likeliest)
    other = int((behind > tolerance * scale).sum())
    return Difference(len(logits), float(apart.max()), float(apart.mean()), scale, other)


def check(difference: Difference, tolerance: float, where: object) -> None:
    """Raise AdjoinedError if a file in fp32 is not what the network is."""
    if difference.relative <= tolerance and not difference.other_class:
        return
    raise AdjoinedError(
        "the exported file computes something else than PyTorch, and was not kept",
        where=where,
        expected=f"relative difference <= {tolerance:g} and the same class for every image",
        got=f"{difference.relative:.2g}, and another class for {difference.other_class} of {difference.images}",
        fix="Choose another target; please report the network.",
    )
