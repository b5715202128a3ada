"""Checks that a copy of a model is independent: some copies still run, or change, the original model.

`copy.deepcopy` follows modules, bound methods and `functools.partial`, but not functions: a lambda, or a function
defined inside another one, still refers to the original model in a copy.
"""

from __future__ import annotations

import dis
import functools
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.code import codes_of
from adjoined.slicing.model.modules import full_name, named_tensors

ALONE = "a model whose copies are independent of it, since small networks are copies"
FIX = (
    "Make it a method of its class, or bind it: module.forward = types.MethodType(function, module); for a hook, "
    "functools.partial(module.method, ...)."
)
_CONTAINERS = (list, deque, dict)
_NO_OBJECTS = (FunctionType, BuiltinFunctionType, ModuleType, type, str, int, float, type(None))
_DEEPEST = 4
"""How far references are followed: from a function to a helper function, its list, and the model in it."""


def has_functions(model: nn.Module) -> bool:
    """Return whether a module holds functions that refer to objects; only a run shows whether these are the model's."""
    return any(not isinstance(value, _NO_OBJECTS) for _, function in _functions(model) for value in _used_by(function))


def check_copy(copied: nn.Module, model: nn.Module) -> None:
    """Raise AdjoinedError if a function that a copy holds refers to the original: by a closure, default or global name.

    It finds the usual cases without a run; `Original` finds all of them in one.

    Args:
        copied: a copy of the model, or a small network made from it.
        model: the original.
    """
    names: dict[int, str] = {id(tensor): name for name, tensor in named_tensors(model).items()}
    for name, module in model.named_modules():
        if next(module.parameters(), None) is not None:
            names[id(module)] = name or "the model itself"
    own = {id(each) for each in (*copied.modules(), *named_tensors(copied).values())}
    for holder, function in _functions(copied):
        for value in _referred(function):
            if id(value) in names and id(value) not in own:
                reader = repr(holder) if holder else "its own forward"
                raise AdjoinedError(
                    f"a copy of the model still refers to the original: a function of {reader} uses "
                    f"{names[id(value)]!r} of the original model",
                    where=type(model).__name__,
                    expected=ALONE,
                    fix=FIX,
                )


def _functions(model: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that modules hold as attributes, in lists and dicts, or as hooks of the forward pass."""
    for name, module in model.named_modules():
        for attribute, held in vars(module).items():
            if "backward" not in attribute and attribute != "_compiled_call_impl":  # a copy has none
                yield from ((name, each) for each in (held, *_inside(held).values()) if isinstance(each, FunctionType))


def _referred(function: FunctionType) -> Iterator[Any]:
    """Yield what a function, and the functions that it refers to, may use: closures, defaults, globals."""
    seen: set[int] = set()
    left: list[tuple[Any, int]] = [(function, 0)]
    while left:
        value, depth = left.pop()
        if id(value) in seen or depth > _DEEPEST:
            continue
        seen.add(id(value))
        yield value
        if isinstance(value, weakref.ref):
            inside: Iterable[Any] = (value(),)
        elif isinstance(value, MethodType):
            inside = value.__self__, value.__func__
        elif isinstance(value, functools.partial):
            inside = value.func, *value.args, *value.keywords.values()
        elif isinstance(value, FunctionType):
            inside = _used_by(value)
        else:
            inside = tuple(value) if isinstance(value, tuple) else _inside(value).values()
        left += [(each, depth + 1) for each in inside]


def _used_by(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for code in codes_of(function):
        names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        yield from (function.__globals__[name] for name in names if name in function.__globals__)


class Original:
    """The model whose copy is run: its tensors by identity, and the other attributes of its modules.

    Args:
        model: the user's model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(tensor): name for name, tensor in named_tensors(model).items()}
        self._kept = {name: dict(vars(module)) for name, module in model.named_modules()}
        # Most attributes hold nothing that could change; a copy of each would mostly be work for the garbage collector.
        self._inside = {
            name: {attribute: inside for attribute, held in kept.items() if (inside := _contents_in(held))}
            for name, kept in self._kept.items()
        }

    def check_not_read(self, tensors: Iterable[Tensor], module: str) -> None:
        """Raise AdjoinedError if an operator of the copy gets a tensor of the original.

        Args:
            tensors: the operator's operands.
            module: name of the copy's module that runs; "" for the model itself.
        """
        name = next((name for tensor in tensors if (name := self._names.get(id(tensor)))), None)
        if name is not None:
            reader = repr(module) if module else "its own forward"
            raise AdjoinedError(
                f"a copy of the model still runs the original: {reader} reads {name!r} of the original model, "
                "because a function refers to it",
                where=type(self._model).__name__,
                expected=ALONE,
                fix=FIX,
            )

    def undo(self) -> list[str]:
        """Undo what a run changed or added in the modules' attributes; return the names of these attributes."""
        changed: list[str] = []
        for name, module in [each for each in self._model.named_modules() if each[0] in self._kept]:
            kept, inside, now = self._kept[name], self._inside[name], vars(module)
            added = [attribute for attribute in now if attribute not in kept]
            for attribute in added:
                del now[attribute]
            other = {attribute: held for attribute, held in kept.items() if now.get(attribute, _ABSENT) is not held}
            now.update(other)
            undone = [each for each, held in kept.items() if _undo(held, inside.get(each, ())) or each in other]
            changed += [full_name(name, attribute) for attribute in (*added, *undone)]
        return changed

    def check_unchanged(self, changed: Sequence[str]) -> None:
        """Raise AdjoinedError if running a copy has changed these attributes of the original."""
        if changed:
            raise AdjoinedError(
                f"a copy of the model writes into the original: '{changed[0]}' changes when the copy runs, "
                "because a hook or another function refers to it",
                where=type(self._model).__name__,
                expected=ALONE,
                fix=FIX,
            )


def tensors_kept(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules keep in attributes and do not register, alone, in containers or in objects."""
    registered = {id(tensor) for tensor in named_tensors(model).values()}
    held = [value for module in model.modules() for value in vars(module).values()]
    held += [value for each in held for holder in _holders(each) for value in _contents(holder).values()]
    return [each for each in held if isinstance(each, Tensor) and id(each) not in registered]


_ABSENT = object()


def _contents_in(held: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """Return what an attribute holds that can change, each with its contents; nothing for an empty container."""
    if isinstance(held, _CONTAINERS) and not held:
        return []
    return [(holder, _contents(holder)) for holder in _holders(held)]


def _undo(held: Any, inside: Sequence[tuple[Any, dict[Any, Any]]]) -> bool:
    """Restore the contents of an attribute; return whether they had changed."""
    if not inside:
        filled = isinstance(held, _CONTAINERS) and bool(held)
        if filled:
            held.clear()
        return filled
    changed = False
    for holder, contents in inside:
        now = _contents(holder)
        # A library's own objects may be shared and count or cache: only tensors in them are a network's.
        seen = (contents, now) if holder is held else map(_tensors, (contents, now))
        if len(set(map(_ids, seen))) > 1:
            _refill(holder, contents)
            changed = True
    return changed


def _holders(held: Any) -> Iterator[Any]:
    """Yield the containers and other objects that an attribute holds, without modules and tensors."""
    seen: set[int] = set()
    left: list[tuple[Any, int]] = [(held, 0)]
    while left:
        each, depth = left.pop()
        plain = isinstance(each, (nn.Module, Tensor, *_NO_OBJECTS))
        if id(each) in seen or plain or not (isinstance(each, _CONTAINERS) or hasattr(each, "__dict__")):
            continue
        seen.add(id(each))
        yield each
        if depth < _DEEPEST:
            left += [(value, depth + 1) for value in _contents(each).values()]


def _contents(holder: Any) -> dict[Any, Any]:
    """Return the elements of a container, or the attributes of another object."""
    return _inside(holder) if isinstance(holder, _CONTAINERS) else dict(vars(holder))


def _refill(holder: Any, contents: dict[Any, Any]) -> None:
    """Give a container or an object the contents back that it had."""
    if isinstance(holder, (list, deque)):
        holder.clear()
        holder.extend(contents.values())
    else:
        own = holder if isinstance(holder, dict) else vars(holder)
        own.clear()
        own.update(contents)


def _tensors(contents: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in contents.items() if isinstance(value, Tensor)}


def _inside(held: Any) -> dict[Any, Any]:
    """Return the elements of a container."""
    if isinstance(held, dict):
        return dict(held)
    return dict(enumerate(held)) if isinstance(held, (list, deque)) else {}


def _ids(inside: dict[Any, Any]) -> frozenset[tuple[Any, int]]:
    return frozenset((key, id(value)) for key, value in inside.items())
