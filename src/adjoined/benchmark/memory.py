"""Memory use of a forward pass: peak activation memory, and bytes read and written."""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Activations:
    """Memory use of one forward pass in eager PyTorch, without gradients."""

    peak_bytes: int
    """Peak memory of the input and all intermediate results, bytes; weights do not count."""
    moved_bytes: int
    """Bytes of tensors that operators read and write, including weights; views do not count."""
    operators: int
    """Number of operators called, not counting views."""


def measure_activations(model: nn.Module, example: Tensor) -> Activations:
    """Count the bytes of a forward pass.

    Only tensors are counted, as PyTorch allocates and frees them operator by operator. Kernels may need additional
    workspace; a runtime that fuses operators needs less.

    Args:
        model: any module; it is neither run nor changed (a copy runs on the meta device, in eval mode).
        example: the input, (N, ...).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU())
        >>> measure_activations(net, torch.zeros(1, 3, 4, 4)).peak_bytes  # 3 + 8 + 8 channels of 16 positions, 4 bytes
        1216
    """
    try:
        return _run(copy.deepcopy(model).to("meta"), example.to("meta"))
    except Exception:  # data-dependent code, or a module that does not support the meta device
        return _run(copy.deepcopy(model), example)


def _run(model: nn.Module, example: Tensor) -> Activations:
    ledger = _Ledger({tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())})
    with torch.no_grad(), ledger:
        ledger.see(example)
        model.eval()(example)
    return Activations(ledger.peak, ledger.moved, ledger.operators)


class _Ledger(TorchDispatchMode):
    """Tracks storages from allocation to release."""

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self.weights = weights
        self.living: dict[int, weakref.ref[Any]] = {}
        self.held = self.peak = self.moved = self.operators = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        for tensor in made:
            self.see(tensor)
        if not func.is_view:
            read = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*read, *made))
            self.operators += 1
        return out

    def see(self, tensor: Tensor) -> None:
        """Count the tensor's storage until it is freed; a shared storage counts once."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.weights or key in self.living:
            return
        self.held += size
        self.peak = max(self.peak, self.held)
        self.living[key] = weakref.ref(storage, lambda _, key=key, size=size: self._freed(key, size))

    def _freed(self, key: int, size: int) -> None:
        del self.living[key]
        self.held -= size
