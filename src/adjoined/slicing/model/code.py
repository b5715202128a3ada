"""The names that a model's own code uses, and what its functions refer to."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

_REMEMBERED = 1024
"""Codes whose contents are remembered: they never change, reading them takes long, and every plan reads them again."""
_MOST_WRAPPED = 10
"""Decorators on one function that are looked into."""


def codes_of(function: FunctionType) -> Iterator[CodeType]:
    """Yield the code of a function, and that of the functions and comprehensions defined inside it."""
    left = [function.__code__]
    while left:
        code = left.pop()
        left += [each for each in code.co_consts if isinstance(each, CodeType)]
        yield code


def functions_of(
    model: nn.Module,
    *,
    held: bool = False,
    first: Callable[[nn.Module], Iterable[str]] = lambda module: ("__call__", "forward", "train"),
) -> Iterator[tuple[FunctionType, set[str]]]:
    """Yield a model's own functions that its forward methods reach by name, with the names that they use.

    They may be methods of a parent class, enclosed in another function, or in a list or dict. With `held`, also begin
    with hooks, and follow names of attributes that hold functions or helper objects. Begin with the methods of a module
    that `first` returns; code may have replaced them in the module alone.
    """
    known: dict[FunctionType, set[str]] = {}
    for module in model.modules():
        own = vars(module) if held else {}
        holders: list[Any] = [type(module), own]
        left = _named(first(module), [type(module), vars(module)])
        left += [hook for each in ("_forward_pre_hooks", "_forward_hooks") for hook in own.get(each, {}).values()]
        seen = set[FunctionType]()
        while left:
            for function in _functions(left.pop()):
                if function in seen:
                    continue
                seen.add(function)
                if function not in known:
                    codes = codes_of(function)
                    known[function] = {name for code in codes for name in (*code.co_names, *code.co_freevars)}
                    yield function, known[function]
                names = known[function]
                parents = type(module).__mro__ if "super" in names else ()
                found = [*_named(names, [function.__globals__, *holders, *parents]), *_enclosed(function)]
                found += [each for value in found for each in _callables_in(value)]
                new = [each for value in found for each in _holders(value) if not any(each is one for one in holders)]
                holders += new
                left += [*found, *_named(names, new)]


_OTHERS = {"torch", "numpy", "adjoined", *sys.stdlib_module_names}
"""Packages whose functions are not a model's own."""


def is_own(package: object) -> bool:
    """Return whether a package is neither torch, numpy, this one nor part of Python: its code is a model's own."""
    return str(package).partition(".")[0] not in _OTHERS


def _functions(reached: Any) -> list[FunctionType]:
    """Return the function of a property, a method, a partial function or a callable object, and those it wraps."""
    if reached is None:  # what most names are, in most places
        return []
    while isinstance(reached, functools.partial):
        reached = reached.func
    if isinstance(reached, (property, MethodType)):
        reached = reached.fget if isinstance(reached, property) else reached.__func__
    found: list[Any] = []
    while callable(reached) and len(found) < _MOST_WRAPPED:
        of_class = isinstance(reached, (FunctionType, type, nn.Module))
        found.append(reached if of_class else inspect.getattr_static(type(reached), "__call__", None))
        reached = inspect.getattr_static(reached, "__wrapped__", None)
    return [each for each in found if isinstance(each, FunctionType) and is_own(each.__module__)]


def _holders(value: Any) -> list[Any]:
    """Return the holders of an imported file's functions, a class's, or a helper object's outside the network."""
    if isinstance(value, ModuleType):
        return [vars(value)] if is_own(value.__name__) else []
    if isinstance(value, type):
        return [value] if is_own(value.__module__) else []
    others = (nn.Module, Tensor, FunctionType, MethodType)
    helps = hasattr(value, "__dict__") and not isinstance(value, others) and is_own(type(value).__module__)
    return [type(value), vars(value)] if helps else []


def _named(names: Iterable[str], holders: Iterable[Any]) -> list[Any]:
    return [h.get(name) if isinstance(h, dict) else getattr(h, name, None) for h in holders for name in names]


def _callables_in(value: Any) -> list[Any]:
    if isinstance(value, dict):
        value = list(dict.values(value))
    return list(filter(callable, value)) if type(value) in (list, tuple) else []


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def used_by(function: FunctionType) -> Iterator[Any]:
    """Yield the objects that a function refers to: closures, default arguments, globals."""
    yield from _enclosed(function)
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for code in codes_of(function):
        yield from (function.__globals__[name] for name in _globals_in(code) if name in function.__globals__)


@functools.lru_cache(_REMEMBERED)
def _globals_in(code: CodeType) -> set[str]:
    return {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}


def mentions(model: nn.Module, named: Callable[[str], bool]) -> bool:
    """Return whether a model's own code uses a name of which `named` is true."""
    return any(any(map(named, names)) for _, names in functions_of(model, held=True))


_ANY_PART = {
    "children", "named_children", "modules", "named_modules", "_modules", "get_submodule", "getattr", "__getattr__",
    "attrgetter", "vars", "__dict__", "eval", "exec",
}  # fmt: skip
"""Names with which code reaches parts of a module without their own names."""


def may_name(model: nn.Module, names: Collection[str], part: str) -> bool:
    """Return whether code that uses these names (see `names_in_use`) may reach a part: a module or a parameter."""
    *outer, own = part.split(".")
    while outer and isinstance(model.get_submodule(".".join(outer)), _LISTS):  # its parts have no names of their own
        own = outer.pop()
    holder = model.get_submodule(".".join(outer))
    if isinstance(holder, _LISTS) or not is_own(type(holder).__module__):
        return True
    return own in names or not _ANY_PART.isdisjoint(names)


_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def names_in_use(model: nn.Module, called: Collection[nn.Module]) -> set[str]:
    """Return the names that code uses which may run: that of the modules that were called, and of methods it names."""
    names = set[str]()

    def first(module: nn.Module) -> Iterable[str]:
        yield from ("forward",) if module in called else ()
        special = (name for name in dir(module) if name.startswith("__") and name != "__init__")  # such as __getitem__
        yield from names.intersection(dir(module)).union(special)

    while True:
        found = {name for _, used in functions_of(model, held=True, first=first) for name in used}
        if found <= names:
            return names
        names |= found


def assigned_names(model: nn.Module) -> set[str]:
    """Return the names of the attributes to which a model's own code assigns, as in `layer.weight /= norm`."""
    functions = (function for function, _ in functions_of(model, held=True))
    return {name for function in functions for code in codes_of(function) for name in _assigned(code)}


@functools.lru_cache(_REMEMBERED)
def _assigned(code: CodeType) -> frozenset[str]:
    return frozenset(each.argval for each in dis.get_instructions(code) if each.opname == "STORE_ATTR")


def lists_parameters(function: FunctionType) -> bool:
    """Return whether a function asks some module for its parameters."""
    return any(map(_lists_parameters, codes_of(function)))


@functools.lru_cache(_REMEMBERED)
def _lists_parameters(code: CodeType) -> bool:
    found = (each for each in dis.get_instructions(code) if each.argval in ("parameters", "named_parameters"))
    return any(each.opname == "LOAD_METHOD" or _is_method(each) for each in found)


def _is_method(read: dis.Instruction) -> bool:
    """Return whether an attribute is read to be called; from Python 3.12, the lowest bit of the argument tells."""
    return read.opname == "LOAD_ATTR" and sys.version_info >= (3, 12) and bool((read.arg or 0) & 1)


def reads_mode(model: nn.Module) -> bool:
    """Return whether a model's own code may behave differently in train mode."""
    own = any("train" in vars(module) or type(module).train is not nn.Module.train for module in model.modules())
    return own or mentions(model, lambda name: name == "training") or _reads_mode_by_other_names(model)


def _reads_mode_by_other_names(model: nn.Module) -> bool:
    """Return whether a method reads the mode in a model that makes names: `getattr(self, f"forward_{way}")`."""

    def first(module: nn.Module) -> Iterable[str]:
        return (name for name in dir(type(module)) if name != "__init__")

    reaching = functions_of(model, held=True, first=first) if mentions(model, _MAKES_NAMES.__contains__) else ()
    return any("training" in names for _, names in reaching)


_MAKES_NAMES = {"getattr", "attrgetter", "methodcaller", "__getattribute__", "eval", "exec"}
