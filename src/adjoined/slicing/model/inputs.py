"""Example inputs: the arguments with which a model is traced."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.outside import outside_unchanged


@dataclass(frozen=True)
class Inputs:
    """Positional and keyword arguments of one call of a model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, example: Any, where: str = "example_input") -> Inputs:
        """Read an example input: a tensor, a tuple of positional arguments or a mapping of keyword arguments."""
        if isinstance(example, Inputs):
            return example
        if isinstance(example, Mapping):
            inputs = cls((), dict(example))
        else:
            inputs = cls(tuple(example) if isinstance(example, (tuple, list)) else (example,))
        leaves = tensor_leaves((inputs.args, inputs.kwargs))
        if not leaves:
            raise AdjoinedError(
                "the input contains no tensor",
                where=where,
                expected="a tensor such as torch.zeros(1, 3, 224, 224), a tuple of arguments or a dict of them",
                got=type(example).__name__,
            )
        if not inputs.batch_size:
            raise AdjoinedError(
                "the batch is empty",
                where=where,
                expected="at least one sample, in the first dimension",
                got=tuple(leaves[0].shape),
            )
        return inputs

    def map(self, function: Callable[[Tensor], Tensor]) -> Inputs:
        """Return the inputs with a function applied to every tensor."""

        def change(leaf: Any) -> Any:
            return function(leaf) if isinstance(leaf, Tensor) else leaf

        return Inputs(tree_map(change, self.args), tree_map(change, self.kwargs))

    def isolated(self) -> Inputs:
        """Return a copy that shares nothing that a forward can change."""
        return Inputs(*isolated((self.args, self.kwargs)))

    def run(self, model: Callable[..., Any]) -> Any:
        """Call a model with a copy of these inputs, which its forward may change in place."""
        own = self.isolated()
        with outside_unchanged(model):
            return model(*own.args, **own.kwargs)

    @property
    def batch_size(self) -> int:
        """Size of the first dimension of the first tensor."""
        first = tensor_leaves((self.args, self.kwargs))[0]
        return first.shape[0] if first.ndim else 1

    def first(self, count: int) -> Inputs:
        """Return the first samples of the batch, of every tensor that has as many as the first one."""
        size = self.batch_size
        return self.map(lambda tensor: tensor[:count] if tensor.ndim and tensor.shape[0] == size else tensor)

    def for_training(self) -> Iterator[Inputs]:
        """Yield the inputs to try in train mode: these, and the doubled ones if there is a single sample."""
        yield self
        if self.batch_size == 1:
            yield self.doubled()

    def doubled(self) -> Inputs:
        """Return the inputs with every tensor repeated along dimension 0, for norms that need more than one sample."""
        return self.map(lambda tensor: torch.cat([tensor, tensor]) if tensor.ndim else tensor)


def isolated(given: Any) -> Any:
    """Return a copy of a model's arguments, so that in-place changes by one forward do not reach another.

    A forward may scale its input in place, write its own tensors into a list, or set fields of an object. Tensors are
    cloned (gradients flow through); containers and objects are copied with everything in them. A tensor that occurs
    twice is cloned once, and tensors that overlap in memory overlap in the copy, too. Modules, and objects that cannot
    be copied (generators, open files), are passed on unchanged.

    Example:
        >>> x = torch.zeros(2)
        >>> a, b = isolated(([x], x))
        >>> a[0] is b, a[0] is x
        (True, False)
    """
    if torch.compiler.is_compiling():
        return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, given)
    leaves = tree_leaves(given)
    clones: dict[int, Any] = _overlapping([t for leaf in leaves for t in _held_by(leaf, set())])

    def cloned(tensor: Tensor) -> Tensor:
        if id(tensor) not in clones:
            clones[id(tensor)] = tensor.clone()
        return clones[id(tensor)]

    def own(leaf: Any) -> Any:  # not recursive: a cycle of references would keep the clones in memory
        if isinstance(leaf, Tensor):
            return cloned(leaf)
        if isinstance(leaf, _WITHOUT_STATE) or callable(leaf):
            return leaf
        for tensor in _held_by(leaf, set()):
            cloned(tensor)
        try:
            return copy.deepcopy(leaf, clones)
        except Exception:  # whatever its class raises
            return leaf

    return tree_map(own, given)


def _overlapping(tensors: list[Tensor]) -> dict[int, Tensor]:
    """Return id -> copy of the tensors that overlap in memory, such as views of one tensor, with the same overlaps.

    Tensors that require a gradient are left out: their gradients have to flow through their own clones.

    Example:
        >>> x = torch.zeros(4)
        >>> first, second = _overlapping([x[:3], x[2:]]).values()
        >>> first.fill_(1), second
        (tensor([1., 1., 1.]), tensor([1., 0.]))
    """
    if len(tensors) < 2 or torch._C._are_functorch_transforms_active():
        return {}
    placed: dict[tuple[int, torch.dtype], list[tuple[int, int, Tensor]]] = {}
    for tensor in {id(each): each for each in tensors}.values():
        if type(tensor) is Tensor and tensor.layout == torch.strided and tensor.numel() and not tensor.requires_grad:
            begin = int(tensor.storage_offset())
            span = int(sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)))
            where = (tensor.untyped_storage()._cdata, tensor.dtype)
            placed.setdefault(where, []).append((begin, begin + span + 1, tensor))
    copies: dict[int, Tensor] = {}
    for pieces in placed.values():
        pieces.sort(key=lambda piece: piece[:2])
        while pieces:
            together = [pieces.pop(0)]
            begin, end, first = together[0]
            while pieces and pieces[0][0] < end:
                together.append(pieces.pop(0))
                end = max(end, together[-1][1])
            if len(together) > 1:
                memory = first.as_strided((end - begin,), (1,), begin).clone()
                for start, _, tensor in together:
                    copies[id(tensor)] = memory.as_strided(tensor.shape, tensor.stride(), start - begin)
    return copies


_PLAIN = (type(None), bool, int, float, complex, str, bytes, enum.Enum)
_WITHOUT_STATE = (*_PLAIN, torch.dtype, torch.device, torch.Generator)


def _held_by(holder: Any, seen: set[int]) -> Iterator[Tensor]:
    """Yield the tensors that an object holds at any depth, in its attributes, items or elements."""
    if id(holder) in seen or isinstance(holder, (nn.Module, type, *_WITHOUT_STATE)):
        return
    seen.add(id(holder))
    if isinstance(holder, Tensor):
        yield holder
        return
    inside = list(holder.values()) if isinstance(holder, Mapping) else []
    inside += list(holder) if isinstance(holder, (list, tuple, set)) else []
    inside += list(vars(holder).values()) if hasattr(holder, "__dict__") else []
    inside += [getattr(holder, name, None) for kind in type(holder).__mro__ for name in getattr(kind, "__slots__", ())]
    for each in inside:
        yield from _held_by(each, seen)


def tensor_leaves(out: Any) -> list[Tensor]:
    """Return all tensors in a model's output, in any containers, including what objects of other classes hold."""
    return [tensor for leaf in tree_leaves(out) for tensor in _held_by(leaf, set())]
