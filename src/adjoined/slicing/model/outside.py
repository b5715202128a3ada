"""What a model's code keeps outside its modules: in globals, classes, default arguments and attributes of functions."""

from __future__ import annotations

import enum
import functools
from collections.abc import Iterable, Iterator, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import CellType, FunctionType, ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adjoined.slicing.model.code import functions_of, used_by
from adjoined.slicing.model.held import CONTAINERS, changes, contents, has_attributes, reached, restore
from adjoined.slicing.model.modules import named_tensors

_Cached = type(functools.cache(len))
_KEEP_NOTHING = (nn.Module, Tensor, ModuleType, enum.Enum)
DEEPEST = 2
"""How far references are followed: from a global to an object, and to a cache in it."""


@dataclass
class Left:
    """Whether a run has changed anything outside the modules."""

    anything: bool = False


@contextmanager
def outside_unchanged(model: Any, apart_from: Set[int] = frozenset()) -> Iterator[Left]:
    """Undo what a run of a model leaves outside its modules, where copies of the model share it.

    A cache may be filled on the meta device, in float64, or by a small network, and the model would read it later.

    Args:
        model: the model.
        apart_from: the ids of objects to leave alone.
    """
    found = holders(model) if isinstance(model, nn.Module) else []
    left, before = Left(), Outside([each for each in found if id(each) not in apart_from])
    try:
        yield left
    finally:
        left.anything = before.changed() is not None
        before.restore_tensors()


class Recorded:
    """What the base network's call leaves outside the modules, such as feature maps that a hook puts into a dict.

    The same code runs in small networks, and would replace it.

    Args:
        base: the base network.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base, self._left = base, dict[bool, bool]()

    def watched(self) -> AbstractContextManager[None]:
        """Return a context in which the base network runs; the first one in train or eval mode shows what it leaves."""
        watching = not is_recorded() and self._base.training not in self._left
        return self._watched() if watching else nullcontext()

    def kept(self) -> AbstractContextManager[None]:
        """Return a context in which small networks run; at its end, what they have replaced is put back."""
        keeping = not is_recorded() and self._left.get(self._base.training, False)
        return self._kept() if keeping else nullcontext()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        before = Outside(holders(self._base))
        yield
        self._left[self._base.training] = before.has_other_tensors()

    @contextmanager
    def _kept(self) -> Iterator[None]:
        left = Outside(holders(self._base))
        try:
            yield
        finally:
            left.restore_replaced()


def is_recorded() -> bool:
    """Return whether a compiler or a tracer records the code."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


class _Place(NamedTuple):
    """A tensor that an object holds, alone or in a tuple, or that another module has."""

    holder: Any
    key: Any
    tensor: Tensor
    version: int
    value: Tensor | None


class Outside:
    """What objects outside a model's modules hold at one time.

    Args:
        holders: the objects, among them modules that do not belong to the model.
        values: also keep the values of tensors, which code may change in place.
    """

    def __init__(self, holders: Sequence[Any], *, values: bool = False) -> None:
        self._caches = [(each, each.cache_info().currsize) for each in holders if isinstance(each, _Cached)]
        self._held = [(each, contents(each)) for each in holders if not isinstance(each, (_Cached, nn.Module))]
        held = [(each, key, tensor) for each, all_of in self._held for key, tensor in _tensors_in(all_of)]
        for each in holders:
            held += [(each, *pair) for pair in named_tensors(each).items()] if isinstance(each, nn.Module) else []
        self._places = [_Place(*each, _version(each[2]), each[2].detach().clone() if values else None) for each in held]

    def changed(self) -> tuple[Any, Any] | None:
        """Return a holder and the key of something that has changed; None if nothing has, apart from caches."""
        found = ((holder, key) for holder, held in self._held for key in changes(holder, held))
        return next(found, None) or next(self._written(), None)

    def has_other_tensors(self) -> bool:
        """Return whether tensors were replaced, added or removed."""
        return any(_has_tensors(pair) for holder, held in self._held for pair in changes(holder, held).values())

    def changed_module(self) -> tuple[nn.Module, str] | None:
        """Return a module and the name of its tensor that code has written into, such as a running mean."""
        return next((each for each in self._written() if isinstance(each[0], nn.Module)), None)

    def _written(self) -> Iterator[tuple[Any, Any]]:
        return ((each.holder, each.key) for each in self._places if _version(each.tensor) != each.version)

    def restore_tensors(self) -> None:
        """Put back tensors that were replaced, added or removed; what is not a tensor, such as a counter, stays."""
        self._clear_caches()
        for holder, held in self._held:
            if keys := [key for key, pair in changes(holder, held).items() if _has_tensors(pair)]:
                restore(holder, held, keys)

    def restore_replaced(self) -> None:
        """Put back tensors that were replaced or removed; what was added stays."""
        for holder, held in self._held:
            back = {key: old for key, (old, _) in changes(holder, held).items() if key in held and _has_tensors(old)}
            if back:
                restore(holder, {**held, **contents(holder), **back}, list(back))

    def restore(self) -> None:
        """Put back everything, including the values of tensors."""
        self._clear_caches()
        for holder, held in self._held:
            if keys := list(changes(holder, held)):
                restore(holder, held, keys)
        for place in self._places:
            if place.value is not None and _version(place.tensor) != place.version:
                place.tensor.data.copy_(place.value)

    def _clear_caches(self) -> None:
        for cached, size in self._caches:
            if cached.cache_info().currsize != size:
                cached.cache_clear()


def _has_tensors(held: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(held))


def _tensors_in(held: dict[Any, Any]) -> Iterator[tuple[Any, Tensor]]:
    for key, value in held.items():
        yield from ((key, t) for t in (value if isinstance(value, tuple) else (value,)) if isinstance(t, Tensor))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def holders(model: nn.Module) -> list[Any]:
    """Return the namespaces, containers, objects and other modules that a model's own functions refer to."""
    functions = [function for function, _ in functions_of(model, held=True)]
    held = [kind for each in set(map(type, model.modules())) for kind in each.__mro__]
    held += [value for function in functions for value in (*(function.__closure__ or ()), *used_by(function))]
    namespaces = {id(function.__globals__): function.__globals__ for function in functions}
    own = set(map(id, model.modules()))
    found = [each for each in reached(held, held_by, DEEPEST) if can_keep(each) or isinstance(each, nn.Module)]
    return [*namespaces.values(), *(each for each in found if id(each) not in own)]


def held_by(holder: Any) -> Iterable[Any]:
    """Return what an object holds that may hold tensors a run has put there; nothing for others."""
    return contents(holder).values() if can_keep(holder) and not isinstance(holder, _Cached) else ()


def can_keep(holder: Any) -> bool:
    """Return whether an object may hold tensors that a run has put there."""
    if isinstance(holder, (type, FunctionType)):
        return not str(holder.__module__).startswith(("torch.", "builtins"))
    if isinstance(holder, (*CONTAINERS, CellType, _Cached)):
        return True
    return has_attributes(holder) and not (isinstance(holder, _KEEP_NOTHING) or callable(holder))
