"""One call of an operator, as rules see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves


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
