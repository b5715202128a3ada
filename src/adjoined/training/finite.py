"""Checks for finite numbers: a run stops before a non-finite checkpoint replaces a good one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import isfinite
from typing import Any

from torch import Tensor, nn

from adjoined.errors import AdjoinedError

HOLDS_WEIGHTS = ("state_dict", "current_model_state", "optimizer_states")
"""Checkpoint entries needed for resuming: weights and buffers, their average, the optimizer's state."""


class NotFinite(AdjoinedError):
    """A loss, a weight or a training state is NaN or infinite; the last checkpoint is good."""


def infinite_buffers(module: nn.Module) -> set[str]:
    """Return the buffers that are non-finite before training, such as an attention mask of minus infinities."""
    return {name for name, buffer in module.named_buffers() if not _finite(buffer)}


def not_finite_in(checkpoint: Mapping[str, Any], allowed: Iterable[str] = ()) -> str:
    """Return the name of the first non-finite number or tensor in a checkpoint, or "".

    Args:
        checkpoint: a checkpoint of Lightning; its entries `HOLDS_WEIGHTS` are checked.
        allowed: names of tensors that may be non-finite.

    Example:
        >>> import torch
        >>> not_finite_in({"state_dict": {"w": torch.tensor([0.0, float("nan")])}})
        'w'
    """
    allowed = set(allowed)
    for entry in HOLDS_WEIGHTS:
        for name, value in _leaves(checkpoint.get(entry), ""):
            if name not in allowed and not _finite(value):
                return name if entry != "optimizer_states" else f"the optimizer's {name.rpartition('.')[2]}"
    return ""


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{name}.{number}" if name else str(number))
    else:
        yield name, value


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex()) or bool(value.isfinite().all())
    return not isinstance(value, float) or isfinite(value)
