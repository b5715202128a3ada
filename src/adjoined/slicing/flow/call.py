"""One call of an operator, as rules see it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor


def tensors_in(given: Any) -> list[Tensor]:
    """Return the tensors among an operator's arguments or results, in order: single ones, and those in lists.

    It is called several times for each operator, and several times faster than torch's functions for any containers.
    """
    if isinstance(given, Tensor):
        return [given]
    return [tensor for each in given for tensor in tensors_in(each)] if isinstance(given, (tuple, list)) else []


@dataclass(slots=True)
class Call:
    """One operator call: the overload, its arguments by their names in the schema, and what it returned."""

    op: Any
    name: str
    """Name without namespace and overload: `convolution`, `add_`."""
    args: dict[str, Any]
    out: Any

    def __getitem__(self, name: str) -> Any:
        return self.args.get(name)

    @property
    def tensors(self) -> list[Tensor]:
        """The tensor arguments, in order; lists of tensors are flattened."""
        return tensors_in(list(self.args.values()))

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors returned, in order."""
        return tensors_in(self.out)


class Argument(NamedTuple):
    """An argument in an operator's schema."""

    name: str
    default: Any
    changes: bool
    """Whether the operator changes it in place."""


@functools.cache
def schema_of(func: Any) -> list[Argument]:
    """Return the arguments of an operator, cached because torch makes new objects of them on every read."""
    arguments = [(a.name, a.default_value, a.alias_info) for a in func._schema.arguments]
    return [Argument(name, default, info is not None and info.is_write) for name, default, info in arguments]


def bound_to_names(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of an operator but `out` by their names, with defaults."""
    schema = schema_of(func)
    given = {a.name: value for a, value in zip(schema, args, strict=False)}
    return {a.name: kwargs.get(a.name, a.default) for a in schema if a.name != "out"} | given
