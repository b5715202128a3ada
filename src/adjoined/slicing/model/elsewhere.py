"""Weights that a model's code holds elsewhere than in its parameters: in lists, tuples, partials, hooks and objects.

A model may keep `self.weights = [self.conv.weight]` or `functools.partial(F.conv2d, weight=self.kernel)`, and read its
parameters there. Small networks get their weights anew in each call, so they have to get them in these places, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence, Set
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

from torch import Tensor, nn

from adjoined.slicing.model.held import CONTAINERS, contents

_DEEPEST = 6
"""How far references are followed, starting from a module's attributes."""
_MANAGED = frozenset({"_parameters", "_buffers", "_modules", "_flat_weights"})
"""Attributes that torch keeps up to date itself."""
_FIXED = (tuple, functools.partial, MethodType)
"""What cannot be changed in place."""
_PLAIN = (FunctionType, BuiltinFunctionType, ModuleType, type, str, bytes, int, float, type(None))
"""What holds no weights."""
_ABSENT = object()


class _Place(NamedTuple):
    module: str
    path: tuple[Any, ...]
    """An attribute of the module, then keys, positions or attributes of what it holds."""
    weight: int


class Elsewhere:
    """The places in which a model holds its weights, besides the parameters of its modules.

    Args:
        model: the model.
        weights: its weights.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> model.held = [(1, model[0].weight)]
        >>> from copy import deepcopy
        >>> copied = deepcopy(model)
        >>> Elsewhere(model, list(model.parameters())).put(copied, ["a slice"])
        >>> copied.held
        [(1, 'a slice')]
    """

    def __init__(self, model: nn.Module, weights: Sequence[Tensor | None]) -> None:
        self._model, self._places = model, list(_places_of(model, _by_identity(weights), _MANAGED))
        self._searched: set[bool] = set()

    def put(self, model: nn.Module, values: Sequence[Any] | None) -> None:
        """Put a value for each weight into all its places in a copy of the model, or None into all of them.

        A forward may have replaced what was there; that stays as it is, and so does what the copy has in common with
        the model, such as a registry that `copy.deepcopy` does not copy.
        """
        for name, path, weight in self._places:
            new = None if values is None else values[weight]
            _replaced(model.get_submodule(name), path, new, self._model.get_submodule(name))

    def search(self, model: nn.Module, values: Sequence[Tensor]) -> None:
        """Add the places in which a copy of the model has put values of the weights in its first call in this mode."""
        if model.training not in self._searched:
            found = _places_of(model, _by_identity(values), _MANAGED)
            self._places += [place for place in found if place not in self._places]
            self._searched.add(model.training)


class Views:
    """Tensors that share memory with a model's weights: views such as `self.tied = self.head.weight.t()`.

    When a copy of the model gets other weights, its tensors in these places still hold the old values.

    Args:
        model: the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3))
        >>> model.tied = [model[0].weight.t()]
        >>> [(tuple(view.shape), name) for view, name in Views(model).inside(model)]
        [((2, 3), '0.weight')]
    """

    def __init__(self, model: nn.Module) -> None:
        weights = dict(model.named_parameters())
        memory = {_memory(weight): number for number, weight in enumerate(weights.values())}
        own = {id(weight) for weight in weights.values()}

        def weight_of(held: Any) -> int | None:
            if not isinstance(held, Tensor) or id(held) in own or (at := _memory(held)) is None:
                return None
            return memory.get(at)

        self._names, self._places = list(weights), list(_places_of(model, weight_of, _MANAGED - {"_buffers"}))

    def inside(self, copied: nn.Module) -> list[tuple[Tensor, str]]:
        """Return what a copy of the model holds in these places, with the weights whose views they are in the model."""
        found = []
        for name, path, weight in self._places:
            held: Any = copied.get_submodule(name)
            for key in path:
                held = _inside(held).get(key)
            found += [(held, self._names[weight])] if isinstance(held, Tensor) else []
        return found


def _memory(tensor: Tensor) -> int | None:
    """Return a number that tensors have in common if they share memory; None for tensors without memory."""
    try:
        return tensor.untyped_storage()._cdata
    except NotImplementedError:  # sparse tensors, and some subclasses
        return None


def _by_identity(weights: Sequence[Tensor | None]) -> Callable[[Any], int | None]:
    numbers = {id(weight): number for number, weight in enumerate(weights)}
    return lambda held: numbers.get(id(held))


def _places_of(model: nn.Module, weight_of: Callable[[Any], int | None], apart_from: Set[str]) -> Iterator[_Place]:
    """Yield the places in which modules hold an object for which `weight_of` returns the number of a weight."""
    seen = {id(module) for module in model.modules()}

    def look(held: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], int]]:
        number = weight_of(held)
        if number is not None:
            yield path, number
        elif len(path) <= _DEEPEST and id(held) not in seen:
            if not isinstance(held, _FIXED):  # each holder of one gets a new one
                seen.add(id(held))
            for key, value in _inside(held).items():
                if not isinstance(value, _PLAIN):
                    yield from look(value, (*path, key))

    for name, module in model.named_modules():
        for attribute, held in list(vars(module).items()):
            if attribute not in apart_from and not isinstance(held, _PLAIN):
                yield from (_Place(name, *each) for each in look(held, (attribute,)))


def _inside(held: Any) -> dict[Any, Any]:
    """Return what an object holds, by key, position or attribute."""
    if isinstance(held, tuple):
        return dict(enumerate(held))
    if isinstance(held, functools.partial):
        return {"func": held.func, "args": held.args, "keywords": held.keywords}
    if isinstance(held, MethodType):
        return {"__self__": held.__self__}
    if isinstance(held, (Tensor, *_PLAIN)) or type(held).__module__.startswith("adjoined."):
        return {}
    return contents(held)


def _replaced(held: Any, path: tuple[Any, ...], new: Any, original: Any) -> Any:
    """Return an object with a new value at the end of a path: the same object, if it can be changed in place.

    `original` is the model's own object in this place, which is never changed.
    """
    if not path:
        return new if held is None or isinstance(held, Tensor) else held
    if held is original and not isinstance(held, _FIXED):
        return held
    key = path[0]
    before = _inside(held).get(key, _ABSENT)
    after = before
    if before is not _ABSENT:
        after = _replaced(before, path[1:], new, _inside(original).get(key, _ABSENT))
    if after is before:
        return held
    if isinstance(held, tuple):
        values = [*held[:key], after, *held[key + 1 :]]
        return held._make(values) if hasattr(held, "_make") else type(held)(values)  # pyright: ignore
    if isinstance(held, functools.partial):
        parts = _inside(held) | {key: after}
        return functools.partial(parts["func"], *parts["args"], **parts["keywords"])
    if isinstance(held, MethodType):
        return MethodType(held.__func__, after)
    if isinstance(held, CONTAINERS):
        held[key] = after  # pyright: ignore[reportArgumentType]
    else:
        object.__setattr__(held, key, after)  # even if the object is frozen, or a module
    return held
