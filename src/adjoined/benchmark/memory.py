"""What a forward pass holds and moves: the most bytes of activations at one time, and the bytes read and written."""

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
    """Activations of one forward pass in PyTorch as it is, without gradients."""

    peak_bytes: int
    """The most bytes that the input and all intermediate results take at one time; weights do not count."""
    moved_bytes: int
    """Bytes of tensors that the operators read and write, weights among them; what views hand on does not count."""
    operators: int
    """Operators called, without those that only make views."""


def measure_activations(model: nn.Module, example: Tensor) -> Activations:
    """Count the bytes of a forward pass.

    What is counted are tensors, as PyTorch makes and frees them one operator after the other. What a kernel takes for
    itself while it works comes on top; a runtime that fuses operators needs less.

    Args:
        model: any module; it is neither run nor changed (a copy on the meta device is, in eval mode).
        example: the input, (N, ...).

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU())
        >>> measure_activations(net, torch.zeros(1, 3, 4, 4)).peak_bytes  # 3 + 8 + 8 channels of 16 places, 4 bytes
        1216
    """
    try:
        return _run(copy.deepcopy(model).to("meta"), example.to("meta"))
    except Exception:  # data-dependent code, or a module that does not know the meta device
        return _run(copy.deepcopy(model), example)


def _run(model: nn.Module, example: Tensor) -> Activations:
    ledger = _Ledger({tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())})
    with torch.no_grad(), ledger:
        ledger.see(example)
        model.eval()(example)
    return Activations(ledger.peak, ledger.moved, ledger.operators)


class _Ledger(TorchDispatchMode):
    """Notes storages when operators make them, and when they go."""

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
        """Count the tensor's storage from now on until it is freed, once, whoever shares it."""
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
