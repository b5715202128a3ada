"""Finds norms that cannot be trained because they get one value per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

_TAKES_STATISTICS = (F.batch_norm, F.instance_norm, F.group_norm)


def one_value_per_channel(step: Callable[[], object]) -> tuple[int, ...] | None:
    """Rerun a failed step, and return the shape of a norm's input with one value per channel, if there is one.

    Args:
        step: a forward pass in training mode.

    Example:
        >>> import torch
        >>> norm = torch.nn.BatchNorm2d(3)
        >>> one_value_per_channel(lambda: norm(torch.zeros(1, 3, 1, 1)))
        (1, 3, 1, 1)
        >>> one_value_per_channel(lambda: norm(torch.zeros(2, 3, 1, 1)))
    """
    watch = _Watch()
    try:
        with watch:
            step()
    except Exception:
        return watch.found
    return None


class _Watch(TorchFunctionMode):
    """Remember the last input of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[int, ...] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _TAKES_STATISTICS:
            x = args[0]
            per_channel = x.numel() // x.shape[1] if x.ndim > 1 else x.numel()
            per_channel //= x.shape[0] if func is F.instance_norm else 1
            if func is F.group_norm:
                groups = args[1] if len(args) > 1 else kwargs["num_groups"]
                per_channel = x.numel() // groups
            self.found = tuple(x.shape) if per_channel == 1 else None
        return func(*args, **(kwargs or {}))
