"""Kernel positions that small networks do without: the "masking factor" of the authors' code, as an ablation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError


class KernelMasks(nn.Module):
    """A random mask for the kernels of every convolution, the same one for all of its filters.

    Of a kernel of n positions, `int(n * factor)` are zero; 1x1 kernels thus stay as they are. Nothing becomes faster by
    it: the zeros are multiplied like any other number.

    Args:
        base: the base network; parametrised convolutions are left alone.
        factor: share of the positions that are zero, in [0, 1).

    Raises:
        AdjoinedError: the factor is out of range.

    Source: the code of Nath, Kushagra, Yang, arXiv 2006.05624, which draws one mask for a layer.

    Example:
        >>> masks = KernelMasks(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)), 0.5)
        >>> masks.of("0.weight").shape, int(masks.of("0.weight").sum()), masks.of("1.weight")
        (torch.Size([3, 3]), 5, None)
    """

    def __init__(self, base: nn.Module, factor: float) -> None:
        super().__init__()
        if not 0 <= factor < 1:
            raise AdjoinedError("out of range", where="masking_factor", expected="a number in [0, 1)", got=factor)
        for name, module in base.named_modules():
            weight = module._parameters.get("weight") if isinstance(module, nn.modules.conv._ConvNd) else None
            positions = 0 if weight is None else math.prod(weight.shape[2:])
            if weight is not None and (zeros := int(positions * factor)):  # no random number where nothing is masked
                mask = weight.detach().new_ones(positions)
                mask[torch.randperm(positions)[:zeros]] = 0
                self.register_buffer(_key(f"{name}.weight"), mask.view(weight.shape[2:]))

    def of(self, weight: str) -> Tensor | None:
        """Return the mask of a weight by its name, float (kernel height, kernel width), or None where it has none."""
        return self._buffers.get(_key(weight))


def _key(name: str) -> str:
    """Names of buffers have no dots."""
    return name.replace(".", "/")
