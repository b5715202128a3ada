"""Running an operator of which only the shapes matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_ACTIVATIONS = {"elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "relu", "sigmoid", "silu"}
"""Functions of one tensor, whose results have its shape and dtype."""


def run_operator(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; on tensors without values, those that most layers consist of return at once.

    Their meta kernels are written in Python and would take half of a run.
    """
    x = args[0] if args else None
    if isinstance(x, Tensor) and x.is_meta and x.is_floating_point() and "out" not in kwargs:
        results = _results(name, x, args[1:], kwargs)
        if results is not None:
            return results
    return func(*args, **kwargs)


def _results(name: str, x: Tensor, rest: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Return the results of activations, batch norms, sums, products and means; None for all other calls."""
    kind, in_place = name.removesuffix("_"), name.endswith("_")
    if kind in _ACTIVATIONS:
        return x if in_place else _empty(x)
    if name == "native_batch_norm" and len(rest) > 4 and not rest[4] and _fits(x, *rest[:4]):
        return _empty(x), _empty(x, [0]), _empty(x, [0])
    if not x.is_contiguous():
        return None
    if kind in ("add", "mul") and _broadcasts(rest[0], to=x):
        return x if in_place else _empty(x)
    if name == "mean" and rest and rest[0] and not kwargs:
        lost, keep = {d % x.ndim for d in rest[0] if -x.ndim <= d < x.ndim}, any(rest[1:])
        if len(lost) == len(rest[0]):
            return _empty(x, [1 if d in lost else n for d, n in enumerate(x.shape) if keep or d not in lost])
    return None


def _empty(x: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """Return `torch.empty_like(x)`, or a contiguous tensor of another shape; torch's own way is slow on meta."""
    if shape is None and not x.is_contiguous():
        return torch.empty_like(x)
    return torch.empty(x.shape if shape is None else shape, dtype=x.dtype, device="meta")


def _broadcasts(other: Any, *, to: Tensor) -> bool:
    """Return whether an operand is a contiguous tensor that broadcasts to another one's shape and has its dtype."""
    if not isinstance(other, Tensor) or other.dtype != to.dtype or not other.is_meta or not other.is_contiguous():
        return False
    shape = to.shape[to.ndim - other.ndim :]
    return other.ndim <= to.ndim and all(n in (1, m) for n, m in zip(other.shape, shape, strict=True))


def _fits(x: Tensor, *per_channel: Tensor | None) -> bool:
    """Return whether a batch norm accepts its input."""
    shape = (x.shape[1],) if x.ndim > 1 else ()
    return all(p is None or (p.is_meta and p.shape == shape) for p in per_channel)
