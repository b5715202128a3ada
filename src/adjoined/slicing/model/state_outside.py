"""States that a model's code keeps outside its modules, which networks would share: they are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.code import functions_of, is_own
from adjoined.slicing.model.held import CONTAINERS, contents, reached
from adjoined.slicing.model.modules import full_name
from adjoined.slicing.model.outside import DEEPEST, Outside, can_keep, held_by, holders


def shared_objects(model: nn.Module, copied: nn.Module) -> list[Any]:
    """Return the objects of the user's own classes that a model and its copy both hold: they copy to themselves.

    Example:
        >>> class Memory:
        ...     def __deepcopy__(self, memo):
        ...         return self
        >>> Memory.__module__ = "nets"
        >>> model = nn.Sequential(nn.Linear(2, 2))
        >>> model.memory = Memory()
        >>> from copy import deepcopy
        >>> [type(each).__name__ for each in shared_objects(model, deepcopy(model))]
        ['Memory']
    """
    own, copies = (
        {id(held): held for module in each.modules() for held in reached(vars(module).values(), held_by, DEEPEST)}
        for each in (model, copied)
    )
    return [held for i, held in own.items() if i in copies and can_keep(held) and is_own(type(held).__module__)]


def refuse_state_outside(
    call: Callable[[nn.Module, bool, int], list[Tensor]], copied: Callable[[], nn.Module], shared: Sequence[Any]
) -> None:
    """Raise AdjoinedError if outputs depend on what earlier calls have left outside the modules.

    That is a state, such as a moving average, which networks would share. A cache, a counter of calls or a recorded
    feature map changes no outputs. The statistics of a norm that no module registers count, too: they change the
    outputs of later calls, once the norm is in eval mode.

    Args:
        call: runs a model on random numbers, given whether in train mode and a seed; returns its outputs.
        copied: returns a new copy of the model.
        shared: objects that copies of the model share.
    """
    model = copied()
    before = Outside([*holders(model), *shared], values=True)

    def outputs(train: bool, seed: int = 0) -> list[Tensor] | None:
        with suppress(Exception):  # whatever the model's own code raises
            return [out.clone() for out in call(copied(), train, seed)]
        return None

    try:
        for train in (False, True):
            first = outputs(train)
            for other in (True, False):
                outputs(other, seed=1)
            state, changed, later = before.changed_module(), before.changed(), outputs(train)
            before.restore()
            if changed and not _equal(first, later) and _equal(first, outputs(train)):
                state = changed
            if state:
                raise AdjoinedError(
                    "the model keeps a state outside its modules, which the base and the small network would share",
                    where=_name(*state, model),
                    expected="a state in a buffer or an attribute of a module: each network then has its own",
                    fix="Keep it in a module, such as self.register_buffer('average', torch.zeros(10)).",
                )
            before.restore()
    finally:
        before.restore()


def _equal(some: Sequence[Tensor] | None, others: Sequence[Tensor] | None) -> bool:
    if some is None or others is None or len(some) != len(others):
        return some is others
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(some, others, strict=True))


def _name(holder: Any, key: Any, model: nn.Module) -> str:
    """Return the name of what an object holds, such as `nets.AVERAGE` or `nets.STATE['average']`."""
    if isinstance(holder, (type, FunctionType)):
        return f"{holder.__module__}.{holder.__qualname__}.{key}"
    if isinstance(holder, CellType):
        return _variable(holder, model)
    if isinstance(holder, dict) and "__builtins__" in holder:
        return f"{holder['__name__']}.{key}"
    inside = f"[{key!r}]" if isinstance(holder, CONTAINERS) else f".{key}"
    for module, part in model.named_modules():
        for name, value in vars(part).items():
            if value is holder:
                return full_name(module, name) + inside
    for outer in holders(model):
        for name, value in contents(outer).items():
            if value is holder:
                return _name(outer, name, model) + inside
    return f"{type(holder).__name__}{inside}, which its code holds"


def _variable(cell: CellType, model: nn.Module) -> str:
    for function, _ in functions_of(model, held=True):
        for name, each in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if each is cell:
                return f"the variable {name!r} of {function.__qualname__}"
    return "a variable of an enclosing function"
