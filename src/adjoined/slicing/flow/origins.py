"""Where the tensors of a run come from: the small network's code must call each function with the same ones.

Code may read a number of channels and, for fewer of them, not transpose, or take another piece of a split or another
parameter. No operator then gets other numbers; torch itself transposes, too, as shapes require. So this follows the
calls in the model's code, not the operators behind them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.call import tensors_in
from adjoined.slicing.flow.sizes import Site


class Origin(NamedTuple):
    """What a tensor is: a result of a function called in a module, or an input, a parameter or a buffer."""

    module: str | None
    """The module; None for what has a name."""
    function: str
    """The function, or the name."""
    number: int | None = None
    """Which of several results; None if labels tell them apart."""

    def __str__(self) -> str:
        """Name the tensor in a message."""
        if self.module is None:
            return self.function
        place = f" in '{self.module}'" if self.module else ""
        return f"{f'result {self.number + 1}' if self.number else 'the result'} of {self.function}{place}"


Operands = tuple[Origin | None, ...]
"""The origins of the tensors in one argument; None for a tensor made elsewhere."""

Known = dict[Operands, bool]
"""The operands of a function's calls -> whether a call gets different ones that belong to the same channels."""

_SAME = {
    "broadcast_to", "clone", "contiguous", "cpu", "data", "detach", "detach_", "expand", "expand_as", "flatten",
    "ravel", "requires_grad_", "reshape", "reshape_as", "squeeze", "squeeze_", "unflatten", "unsqueeze", "unsqueeze_",
    "view", "view_as",
}  # fmt: skip
"""Functions whose result has the origin of their first argument: code may call them or not, as shapes require."""

_CONVERSIONS = {"to", "type", "type_as", "float", "double", "half", "bfloat16"}
"""The same, unless the type of the elements changes."""

_BY_DIMS = {
    "transpose", "transpose_", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "swapaxes_", "swapdims_",
    "flip", "rot90",
}  # fmt: skip
"""Functions that move elements along the dimensions they get, which are not compared elsewhere."""

_TENSORS = {"T", "mT", "H", "mH", "real", "imag", "data"}
"""Attributes that are tensors, made anew by each access."""


class Origins:
    """The origins of a run's tensors.

    Args:
        known: (site of a function's first call in a module, argument) -> what it got there; the first run fills it.
        strict: whether this is the second run, which compares.
    """

    def __init__(self, known: dict[tuple[Site, int | str], Known], *, strict: bool) -> None:
        self._known, self._strict = known, strict
        self._of: Any = WeakIdKeyDictionary()

    def name(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Give inputs, parameters and buffers their names as origins, unless they have one."""
        for name, tensor in tensors:
            if tensor not in self._of:
                self._of[tensor] = Origin(None, name)

    def note(self, module: str, function: str, source: Any, results: Sequence[Tensor], *, alike: bool) -> None:
        """Record what a function returned.

        Args:
            module: the module that runs.
            function: name of the function.
            source: its first argument.
            results: the tensors that it returned.
            alike: whether these belong to the same channels.
        """
        converted = function in _CONVERSIONS and isinstance(source, Tensor) and source.dtype != results[0].dtype
        if may_keep_origin(function) and not converted:
            self._of[results[0]] = self._of.get(source) if isinstance(source, Tensor) else None
            return
        for number, tensor in enumerate(results):
            self._of[tensor] = Origin(module, function, number if alike or self._strict else None)

    def differing(
        self, site: Site, arguments: dict[int | str, Any], alike: Callable[[list[Tensor]], bool]
    ) -> tuple[list[Tensor], str] | None:
        """Return what a function gets instead of what it gets in the base network, which also calls it.

        Args:
            site: where the function is called.
            arguments: position or name -> argument.
            alike: whether tensors belong to the same channels, so that their number does not follow channels.

        Returns:
            The tensors in the first argument that differs, and a text that names them; None if none differs.
        """
        for key, value in arguments.items():
            if not (tensors := tensors_in(value)):
                continue
            operands = tuple(self._of.get(tensor) for tensor in tensors)
            if not self._strict:
                copies = len(set(operands)) < len(operands)  # perhaps one for each channel
                self._known.setdefault((site, key), {})[operands] = not copies and alike(tensors)
            elif not _fits(operands, known := self._known.get((site, key), {operands: True})):
                return tensors, _compared(operands, known, site.operator)
        return None


def function_name(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> str | None:
    """Return what tells a function's calls apart, its name and the texts and dimensions it gets; None for attributes.

    Example:
        >>> import torch
        >>> function_name(torch.Tensor.transpose, (torch.zeros(2, 3), 0, 1), {})
        'transpose(0, 1)'
    """
    name = func.__name__
    if name == "__get__":
        name = func.__self__.__name__
        return name if name in _TENSORS else None
    given = [each for each in (*args, *kwargs.values()) if isinstance(each, str) or name in _BY_DIMS]
    told = ", ".join(str(each) for each in given if not isinstance(each, Tensor))
    return f"{name}({told})" if told else name


def may_keep_origin(name: str) -> bool:
    """Return whether a function's result may hold the elements of its first argument, each in its place."""
    return name in _SAME or name in _CONVERSIONS


def _compared(operands: Operands, known: Known, function: str) -> str:
    if len(operands) > 1:
        return f"passes other tensors to {function}"
    others = f", not {_named(*other)}" if len(known) == 1 and len(other := next(iter(known))) == 1 else ""
    return f"passes {_named(*operands)} to {function}{others}"


def _named(origin: Origin | None) -> str:
    return "a tensor made elsewhere" if origin is None else str(origin)


def _fits(operands: Operands, known: Known) -> bool:
    """Return whether these operands are among those known; a list that follows channels may be shorter."""
    if as_many := [each for each in known if len(each) == len(operands)]:
        return any(all(map(_is, operands, each)) for each in as_many)
    others = {origin for each, alike in known.items() if not alike for origin in each}
    return all(any(_is(origin, other) for other in others) for origin in operands)


def _is(origin: Origin | None, known: Origin | None) -> bool:
    return origin == known or (
        origin is not None and known is not None and known.number is None and origin[:2] == known[:2]
    )
