"""What a call of a model keeps in its modules for the next call: counters, hidden states, statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adjoined.slicing.model.held import CONTAINERS, contents


class Kept:
    """The attributes of a model's modules, and the tensors in them, before a call.

    Running statistics of torch's own norms are left out: what they become follows from what the norm gets.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.BatchNorm1d(3))
        >>> before = Kept(net)
        >>> _ = net(torch.randn(2, 3))
        >>> before.changed()
        False
        >>> net.latest = torch.zeros(3)
        >>> before.changed()
        True
    """

    def __init__(self, model: nn.Module) -> None:
        self._model, self._before = model, _kept(model)

    def changed(self) -> bool:
        """Return whether anything has been replaced, added, removed, or written into since then."""
        now = _kept(self._model)
        return now.keys() != self._before.keys() or any(
            value is not self._before[key][0] or version != self._before[key][1]
            for key, (value, version) in now.items()
        )


def _kept(model: nn.Module) -> dict[tuple[str, ...], tuple[Any, int]]:
    """Return (module, attribute, ...) -> the object, and for a tensor how often it was written."""
    found: dict[tuple[Any, ...], tuple[Any, int]] = {}
    for name, module in model.named_modules():
        for attribute, held in vars(module).items() if not isinstance(module, _NormBase) else ():
            inside = contents(held).items() if isinstance(held, CONTAINERS) else ()
            for key, value in ((None, held), *inside):
                version = value._version if isinstance(value, Tensor) and not value.is_inference() else 0
                found[name, attribute, key] = value, version
    return found
