"""Example inputs: what a model is called with while its channels are traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from adjoined.errors import AdjoinedError


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any) -> Inputs:
        """Read an example input: a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            return cls((), dict(example))
        inputs = cls(tuple(example) if isinstance(example, (tuple, list)) else (example,))
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(inputs.args)):
            raise AdjoinedError(
                "no tensor to run the model on",
                where="example_input",
                expected="a tensor such as torch.zeros(1, 3, 224, 224), a tuple of arguments or a dict of them",
                got=type(example).__name__,
            )
        return inputs

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor."""

        def change(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, Tensor) else leaf

        return Inputs(tree_map(change, self.args), tree_map(change, self.kwargs))

    def run(self, model: Callable[..., Any]) -> Any:
        """Call a model with these inputs, and leave them as they are.

        Lists and dicts are handed over as copies, for a forward may write its own tensors into a list that it is given
        (networks of several pathways do).
        """
        own = self.map(lambda tensor: tensor)
        return model(*own.args, **own.kwargs)

    @property
    def batch_size(self) -> int:
        """Size of the first dimension of the first tensor."""
        first = next(leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Tensor))
        return first.shape[0] if first.ndim else 1

    def doubled(self) -> Inputs:
        """Return the inputs with every tensor repeated along dimension 0, for norms that need more than one sample."""
        return self.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)


def tensor_leaves(out: Any) -> list[Tensor]:
    """Return all tensors in a model's output, whatever holds them; attributes of unknown objects count too."""
    leaves: list[Tensor] = []
    for leaf in tree_leaves(out):
        if isinstance(leaf, Tensor):
            leaves.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, (nn.Module, type)):
            leaves += [each for value in vars(leaf).values() for each in tree_leaves(value) if isinstance(each, Tensor)]
    return leaves
