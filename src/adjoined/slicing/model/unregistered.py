"""Weights that a model uses but does not register: in plain lists and dicts, or in objects of other classes.

No optimizer, checkpoint or `.to()` sees them unless the user's code cares for them by hand. Small networks use the base
network's own, so that they follow whatever that code does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

_DEEPEST = 4
"""How far references are followed, from an attribute of a module on."""
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
    held = [value for module in model.modules() for name, value in vars(module).items() if name not in _OF_MODULES]
    return {id(weight): weight for value in held for weight in _weights_in(value, registered, 0)}


def _weights_in(held: Any, seen: set[int], depth: int) -> Iterator[Tensor]:
    if id(held) in seen or isinstance(held, (type, str, int, float)) or depth > _DEEPEST:
        return
    seen.add(id(held))
    if isinstance(held, Tensor):
        if held.requires_grad and held.is_leaf:
            yield held
        return
    if isinstance(held, nn.Module):
        inside: Any = held.parameters()
    elif isinstance(held, Mapping):
        inside = held.values()
    else:
        inside = held if isinstance(held, (list, tuple)) else getattr(held, "__dict__", {}).values()
    for each in list(inside):
        yield from _weights_in(each, seen, depth + 1)
