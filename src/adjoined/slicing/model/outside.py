"""What a model's code keeps outside its modules: in globals, classes and default arguments."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adjoined.slicing.model.code import functions_of, used_by
from adjoined.slicing.model.held import CONTAINERS, changes, contents, reached, restore

_Cached = type(functools.cache(len))
_DEEPEST = 2
"""How far references are followed: from a global to an object, and to a cache in it."""


@contextmanager
def outside_unchanged(model: Any) -> Iterator[None]:
    """Undo what a run of a model leaves outside its modules, where copies of the model share it.

    A cache may be filled on the meta device, in float64, or by a small network, and the model would read it later.
    """
    holders = _outside(model) if isinstance(model, nn.Module) else []
    caches = [(each, each.cache_info().currsize) for each in holders if isinstance(each, _Cached)]
    before = [(holder, contents(holder)) for holder in holders if not isinstance(holder, _Cached)]
    try:
        yield
    finally:
        for cached, size in caches:
            if cached.cache_info().currsize != size:
                cached.cache_clear()
        for holder, held in before:
            changed = [(key, tree_leaves(pair)) for key, pair in changes(holder, held).items()]
            if keys := [key for key, leaves in changed if any(isinstance(leaf, Tensor) for leaf in leaves)]:
                restore(holder, held, keys)  # what is not a tensor, such as a counter, stays


def _outside(model: nn.Module) -> list[Any]:
    """Return the namespaces, containers and objects that a model's own functions refer to."""
    functions = [function for function, _ in functions_of(model)]
    held = [kind for each in set(map(type, model.modules())) for kind in each.__mro__]
    held += [value for function in functions for value in used_by(function)]
    namespaces = {id(function.__globals__): function.__globals__ for function in functions}
    return [*namespaces.values(), *filter(_can_keep, reached(held, _inside, _DEEPEST))]


def _inside(holder: Any) -> Iterable[Any]:
    return contents(holder).values() if _can_keep(holder) and not isinstance(holder, _Cached) else ()


def _can_keep(holder: Any) -> bool:
    """Return whether an object may hold tensors that a run has put there."""
    if isinstance(holder, type):
        return not holder.__module__.startswith(("torch.", "builtins"))
    if isinstance(holder, (*CONTAINERS, _Cached)):
        return True
    return hasattr(holder, "__dict__") and not (isinstance(holder, (nn.Module, Tensor, ModuleType)) or callable(holder))
