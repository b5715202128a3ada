"""Checks that a copy of a model is independent: some copies still run, or change, the original model.

`copy.deepcopy` follows modules, bound methods and `functools.partial`, but not functions: a lambda, or a function
defined inside another one, still refers to the original model in a copy.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator, Sequence
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.code import used_by
from adjoined.slicing.model.elsewhere import Views
from adjoined.slicing.model.held import CONTAINERS, changes, contents, has_attributes, reached, restore
from adjoined.slicing.model.modules import full_name, named_tensors

_NO_OBJECTS = (FunctionType, BuiltinFunctionType, ModuleType, type, str, int, float, type(None))
_DEEPEST = 4
"""How far references are followed: from a function to a helper function, its list, and the model in it."""


def has_functions(model: nn.Module) -> bool:
    """Return whether a module holds functions that refer to objects; a run shows whether these are the model's."""
    return any(not isinstance(value, _NO_OBJECTS) for _, function in _functions(model) for value in used_by(function))


def check_copy(copied: nn.Module, model: nn.Module) -> None:
    """Raise AdjoinedError if a function that a copy holds refers to the original: by a closure, default or global name.

    It finds the usual cases without a run; `Original` finds all of them in one.
    """
    names: dict[int, str] = {id(tensor): name for name, tensor in named_tensors(model).items()}
    for name, module in model.named_modules():
        if next(module.parameters(), None) is not None:
            names[id(module)] = name or "the model itself"
    own = {id(each) for each in (*copied.modules(), *named_tensors(copied).values())}
    for holder, function in _functions(copied):
        for value in reached([function], _referred, _DEEPEST):
            if id(value) in names and id(value) not in own:
                reader = repr(holder) if holder else "its own forward"
                what = f"a copy of the model still refers to the original: a function of {reader} uses"
                raise _shared(model, f"{what} {names[id(value)]!r} of the original model")


def _shared(model: nn.Module, what: str) -> AdjoinedError:
    held = (pair for module in model.modules() for pair in vars(module).items())
    weak = next((name for name, value in held if isinstance(value, weakref.ref) and isinstance(value(), nn.Module)), "")
    fix = "Make it a method of its class, or bind it: module.forward = types.MethodType(function, module); for a hook, "
    fix += "functools.partial(module.method, ...)."
    if weak:
        fix = f"Hold the module in a tuple, self.{weak} = (module,): copies keep a weak reference as it is."
    return AdjoinedError(
        what,
        where=type(model).__name__,
        expected="a model whose copies are independent of it, since small networks are copies",
        fix=fix,
    )


def _reader(module: str) -> str:
    return repr(module) if module else "its own forward"


def _made_before(reader: str, weight: str) -> AdjoinedError:
    return AdjoinedError(
        f"{reader} reads a view of this weight that was made before the call",
        where=weight,
        expected="code that makes it in each call: in a copy of the model, a view no longer follows its weight",
        fix="Move it into forward, such as self.head.weight.t(), or clone() what need not follow the weight.",
    )


def _functions(model: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions that modules hold as attributes, in lists and dicts, or as hooks of the forward pass."""
    for name, module in model.named_modules():
        for attribute, held in vars(module).items():
            if "backward" not in attribute and attribute != "_compiled_call_impl":  # a copy has none
                yield from ((name, each) for each in (held, *_elements(held)) if isinstance(each, FunctionType))


def _referred(value: Any) -> Iterable[Any]:
    """Return what an object refers to: a function by its closure, defaults and globals, a container by its elements."""
    if isinstance(value, weakref.ref):
        return (value(),)
    if isinstance(value, MethodType):
        return value.__self__, value.__func__
    if isinstance(value, functools.partial):
        return value.func, *value.args, *value.keywords.values()
    if isinstance(value, FunctionType):
        return used_by(value)
    return value if isinstance(value, tuple) else _elements(value)


class Original:
    """The user's model, a copy of which is run: its tensors by identity, and the other attributes of its modules."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {id(tensor): name for name, tensor in named_tensors(model).items()}
        self._views: dict[int, tuple[Tensor, str]] = {}
        self._kept = {name: dict(vars(module)) for name, module in model.named_modules()}
        # Most attributes hold nothing that could change; copying them all would mostly burden the garbage collector.
        self._inside = {
            name: {attribute: inside for attribute, held in kept.items() if (inside := _contents_in(held))}
            for name, kept in self._kept.items()
        }

    def watch(self, copied: nn.Module) -> None:
        """From now on, refuse reads of what a copy holds in the place of a view of one of the original's weights."""
        self._views = {id(view): (view, name) for view, name in Views(self._model).inside(copied)}

    def check_not_read(self, tensors: Iterable[Tensor], module: str) -> None:
        """Raise AdjoinedError if an operator of the copy's `module` gets a tensor of the original, or a copied view."""
        for tensor in tensors:
            if id(tensor) in self._views:
                raise _made_before(_reader(module), self._views[id(tensor)][1])
            if (name := self._names.get(id(tensor))) is not None:
                what = f"a copy of the model still runs the original: {_reader(module)} reads {name!r} of the original"
                raise _shared(self._model, f"{what} model")

    def held(self) -> set[int]:
        """Return the ids of the objects that the modules hold in their attributes."""
        inside = (each for of_module in self._inside.values() for each in of_module.values())
        values = (value for kept in self._kept.values() for value in kept.values())
        return {*map(id, values), *(id(holder) for each in inside for holder, _ in each)}

    def undo(self) -> list[str]:
        """Undo what a run changed or added in the modules' attributes; return the names of these attributes."""
        found: list[str] = []
        for name, module in [each for each in self._model.named_modules() if each[0] in self._kept]:
            kept, inside, own = self._kept[name], self._inside[name], vars(module)
            changed = changes(own, kept)
            restore(own, kept, changed)
            undone = [attribute for attribute, held in kept.items() if _undo(held, inside.get(attribute, ()))]
            found += [full_name(name, attribute) for attribute in dict.fromkeys((*changed, *undone))]
        return found

    def check_unchanged(self, changed: Sequence[str]) -> None:
        """Raise AdjoinedError if running a copy has changed these attributes of the original."""
        if changed:
            what = f"a copy of the model writes into the original: '{changed[0]}' changes when the copy runs"
            raise _shared(self._model, what)


def tensors_kept(model: nn.Module) -> list[Tensor]:
    """Return the tensors that modules keep in attributes and do not register, alone, in containers or in objects."""
    registered = {id(tensor) for tensor in named_tensors(model).values()}
    held = [value for module in model.modules() for value in vars(module).values()]
    changing = filter(_can_change, held[:])
    held += [value for each in changing for holder in _holders(each) for value in contents(holder).values()]
    return [each for each in held if isinstance(each, Tensor) and id(each) not in registered]


def _contents_in(held: Any) -> list[tuple[Any, dict[Any, Any]]]:
    """Return what an attribute holds that can change, each with its contents; nothing for an empty container."""
    if not _can_change(held) or (isinstance(held, CONTAINERS) and not held):  # nearly all of them
        return []
    return [(holder, contents(holder)) for holder in _holders(held)]


def _undo(held: Any, inside: Sequence[tuple[Any, dict[Any, Any]]]) -> bool:
    """Restore the contents of an attribute; return whether they had changed."""
    found = False
    for holder, before in inside or ([(held, {})] if isinstance(held, CONTAINERS) else ()):
        changed = changes(holder, before)
        # A library's objects may be shared, and count or cache; only the tensors in them belong to the network.
        if changed and (holder is held or any(isinstance(each, Tensor) for pair in changed.values() for each in pair)):
            restore(holder, before, changed)
            found = True
    return found


def _holders(held: Any) -> Iterator[Any]:
    """Return the containers and other objects that an attribute holds, without modules and tensors."""

    def inside(each: Any) -> Iterable[Any]:
        return contents(each).values() if _can_change(each) else ()

    return filter(_can_change, reached([held], inside, _DEEPEST))


def _can_change(held: Any) -> bool:
    plain = isinstance(held, (nn.Module, Tensor, *_NO_OBJECTS))
    return not plain and (isinstance(held, CONTAINERS) or has_attributes(held))


def _elements(held: Any) -> Iterable[Any]:
    return contents(held).values() if isinstance(held, CONTAINERS) else ()
