"""Running an operator of which only the shapes matter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def run_operator(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operator; batch norms of tensors without values, whose meta kernels take half of a run, do not compute."""
    if name == "native_batch_norm" and len(args) > 5 and not args[5] and _fits(*args[:5]):
        return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
    return func(*args, **kwargs)


def _fits(x: Tensor, *per_channel: Tensor | None) -> bool:
    """Tell whether a batch norm accepts its input, which is on the meta device."""
    shape = (x.shape[1],) if x.ndim > 1 else ()
    return (
        x.is_meta and x.is_floating_point() and all(p is None or (p.is_meta and p.shape == shape) for p in per_channel)
    )
