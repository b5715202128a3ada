"""The table of rules: what each family of ATen operators does to labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

if TYPE_CHECKING:
    from adjoined.slicing.flow.run import LabelFlow


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
        return [leaf for leaf in tree_leaves(list(self.args.values())) if isinstance(leaf, Tensor)]

    @property
    def outputs(self) -> list[Tensor]:
        """The tensors returned, in order."""
        return [leaf for leaf in tree_leaves(self.out) if isinstance(leaf, Tensor)]


Rule = Callable[["LabelFlow", Call], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register
