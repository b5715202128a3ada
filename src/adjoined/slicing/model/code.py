"""The names that a model's own code uses, and what its functions refer to."""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any

from torch import nn


def codes_of(function: FunctionType) -> Iterator[CodeType]:
    """Yield the code of a function, and that of the functions and comprehensions defined inside it."""
    left = [function.__code__]
    while left:
        code = left.pop()
        left += [each for each in code.co_consts if isinstance(each, CodeType)]
        yield code


def functions_of(model: nn.Module) -> Iterator[tuple[FunctionType, set[str]]]:
    """Yield a model's own functions with the names that they use, as far as its forward methods lead by these names."""
    for kind in set(map(type, model.modules())):
        left: list[Any] = [getattr(kind, "forward", None)]
        seen = set[str]()
        while left:
            function = inspect.unwrap(getattr(reached := left.pop(), "fget", reached))
            if not isinstance(function, FunctionType) or str(function.__module__).startswith(("torch.", "adjoined.")):
                continue
            names = {name for code in codes_of(function) for name in (*code.co_names, *code.co_freevars)}
            yield function, names
            left += [getattr(kind, name, function.__globals__.get(name)) for name in names - seen]
            seen |= names


def used_by(function: FunctionType) -> Iterator[Any]:
    """Yield the objects that a function refers to: closures, default arguments, globals."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for code in codes_of(function):
        names = {each.argval for each in dis.get_instructions(code) if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        yield from (function.__globals__[name] for name in names if name in function.__globals__)


def mentions(model: nn.Module, named: Callable[[str], bool]) -> bool:
    """Return whether a model's own code uses such a name.

    Args:
        model: the model.
        named: whether a name is one of those looked for.
    """
    return any(any(map(named, names)) for _, names in functions_of(model))
