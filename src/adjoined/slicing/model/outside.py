"""What a model's code keeps outside of its modules: in globals, in classes, in default arguments."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adjoined.slicing.model.code import functions_of

_Cached = type(functools.cache(len))
_DEEPEST = 2
"""How far references are followed: from a global to an object, and to a cache in it."""


@contextmanager
def outside_unchanged(model: Any) -> Iterator[None]:
    """Undo what a run of a model leaves outside of its modules, where copies of the model share it.

    A cache may be filled on the meta device, in float64, or by a small network, and the model would read it later.
    """
    holders = _outside(model) if isinstance(model, nn.Module) else []
    before = [(holder, dict(_entries(holder))) for holder in holders]
    try:
        yield
    finally:
        for holder, entries in before:
            _restore(holder, entries)


def _outside(model: nn.Module) -> list[Any]:
    """Return the namespaces, containers and objects that a model's own functions refer to."""
    found: dict[int, Any] = {}
    left: list[tuple[Any, int]] = [(kind, 0) for each in set(map(type, model.modules())) for kind in each.__mro__]
    for function, names in functions_of(model):
        found[id(function.__globals__)] = function.__globals__
        named = [function.__globals__[name] for name in names if name in function.__globals__]
        defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        left += [(each, 0) for each in (*named, *defaults)]
    for each, depth in left:
        if id(each) not in found and _can_keep(each):
            found[id(each)] = each
            left += [(value, depth + 1) for value in _entries(each).values() if depth < _DEEPEST]
    return list(found.values())


def _can_keep(holder: Any) -> bool:
    """Return whether an object may hold tensors that a run has put there."""
    if isinstance(holder, type):
        return not holder.__module__.startswith(("torch.", "builtins"))
    if isinstance(holder, (dict, list, deque, _Cached)):
        return True
    return hasattr(holder, "__dict__") and not (isinstance(holder, (nn.Module, Tensor, ModuleType)) or callable(holder))


def _entries(holder: Any) -> dict[Any, Any]:
    if isinstance(holder, dict):
        return holder
    if isinstance(holder, _Cached):
        return {"size": holder.cache_info().currsize}
    return dict(enumerate(holder)) if isinstance(holder, (list, deque)) else dict(vars(holder))


def _restore(holder: Any, before: dict[Any, Any]) -> None:
    """Give a holder back the tensors that it had; what else it holds, such as counters, stays."""
    now = dict(_entries(holder))
    if isinstance(holder, _Cached):
        if now != before:
            holder.cache_clear()
        return
    other = [key for key in {**before, **now} if now.get(key) is not before.get(key)]
    changed = [key for key in other if any(isinstance(t, Tensor) for t in tree_leaves((before.get(key), now.get(key))))]
    if changed and isinstance(holder, (list, deque)):
        holder.clear()
        holder.extend(before.values())
        return
    for key in changed:
        if isinstance(holder, dict):
            holder.pop(key, None)
            holder.update({key: before[key]} if key in before else {})
        elif key in before:
            setattr(holder, key, before[key])
        else:
            delattr(holder, key)
