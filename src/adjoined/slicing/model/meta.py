"""Results on the meta device whose shapes are plain: torch's own kernels for these operators, in Python, are slow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_ACTIVATIONS = {"elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "sigmoid", "silu"}
_ARITHMETIC = {"add", "sub", "mul", "div"}


def result_on_meta(name: str, args: Sequence[Any], given: Sequence[Tensor]) -> Any:
    """Return an operator's results on the meta device, or None if torch has to find their shapes.

    Args:
        name: the name of the operator, without an `out`.
        args: its arguments by position.
        given: the tensors among all its arguments.

    Example:
        >>> x = torch.zeros(2, 3, device="meta")
        >>> result_on_meta("relu", (x,), [x]).shape
        torch.Size([2, 3])
    """
    x = given[0] if given else None
    if x is None or not x.is_meta or not x.is_floating_point():
        return None
    if name.removesuffix("_") in _ACTIVATIONS:
        return x if name.endswith("_") else torch.empty_like(x)
    if name == "native_batch_norm" and all(each is None or each.shape == x.shape[1:2] for each in args[1:5]):
        return torch.empty_like(x), x.new_empty(x.shape[1:2]), x.new_empty(x.shape[1:2])
    if name in _ARITHMETIC and x is args[0] and len(args) > 1 and _keeps(x, args[1]):
        return torch.empty_like(x)
    if name == "addmm" and all(_alike(x, each) for each in given):
        bias, a, b = args[:3]
        if a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0] and bias.shape == b.shape[1:]:
            return x.new_empty(a.shape[0], b.shape[1])
    return None


def _keeps(x: Tensor, other: Any) -> bool:
    """Return whether arithmetic with another operand keeps the shape, the dtype and the strides of the first."""
    if isinstance(other, Tensor):
        return _alike(x, other) and other.shape == x.shape and other.stride() == x.stride()
    return isinstance(other, (int, float))


def _alike(x: Tensor, other: Tensor) -> bool:
    return other.is_meta and other.dtype == x.dtype
