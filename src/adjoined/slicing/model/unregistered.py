"""Weights that a model uses but does not register: in plain lists and dicts, or in objects of other classes.

No optimizer, checkpoint or `.to()` sees them unless the user's code takes care of them. Small networks use the base
network's own, so they follow whatever that code does.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from adjoined.slicing.model.held import contents, reached

_DEEPEST = 4
"""How far references are followed, starting from an attribute of a module."""
_OF_MODULES = set(vars(nn.Module()))


def unregistered_weights(model: nn.Module) -> dict[int, Tensor]:
    """Return id -> tensor of the trainable tensors that modules hold without registering them.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.more = [nn.Linear(2, 3)]
        >>> [tuple(weight.shape) for weight in unregistered_weights(model).values()]
        [(3, 2), (3,)]
    """
    registered = {id(each) for each in (*model.modules(), *model.parameters())}

    def inside(held: Any) -> Iterable[Any]:
        if id(held) in registered or isinstance(held, (Tensor, type, ModuleType)):
            return ()
        if isinstance(held, nn.Module):
            return held.parameters()
        return held if isinstance(held, tuple) else contents(held).values()

    held = [value for module in model.modules() for name, value in vars(module).items() if name not in _OF_MODULES]
    tensors = {id(each): each for each in reached(held, inside, _DEEPEST) if isinstance(each, Tensor)}
    return {i: each for i, each in tensors.items() if i not in registered and each.requires_grad and each.is_leaf}
