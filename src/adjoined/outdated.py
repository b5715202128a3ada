"""Refusals of code that keeps a small network's weights where the next call's weights cannot be put."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from adjoined.errors import AdjoinedError
from adjoined.sharing import ASKS
from adjoined.slicing import full_name

_CALLS = 2
"""Calls that are watched in train and in eval mode: what the first one keeps, the second one reads."""

References = list[tuple[str, "weakref.ref[Tensor]"]]


def references(network: nn.Module, owners: Iterable[tuple[str, str]]) -> References:
    """Return a weak reference to each weight of a network, given as (module name, parameter name)."""
    held: dict[str, Tensor | None] = {}
    for where, name in owners:
        module = network.get_submodule(where)
        if not isinstance(module, nn.RNNBase):  # it keeps a list of its weights itself
            held[full_name(where, name)] = module._parameters[name]
    return [(name, weakref.ref(weight)) for name, weight in held.items() if weight is not None]


def refuse_held(network: nn.Module, removed: References) -> None:
    """Raise AdjoinedError if anything but a network's own parameters still holds weights that were removed."""
    own = {id(each) for each in network.parameters()}  # tied ones may be private
    if any(tensor() is not None for _, tensor in removed):
        gc.collect()  # they may hold each other
        for name, tensor in removed:
            if (held := tensor()) is not None and id(held) not in own:
                raise _kept(name, "in a set, as the key of a dict or in another object that cannot be followed")


class Outdated:
    """Watches the first calls of one small network for weights of earlier calls.

    Args:
        names: the names of the weights that each call gets.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names, self._given, self._calls = names, References(), Counter[bool]()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the references: a copy starts anew."""
        return {"_names": self._names, "_given": References(), "_calls": Counter()}

    @contextmanager
    def refused(self, given: Sequence[Tensor], *, training: bool) -> Iterator[None]:
        """Run a call that gets these weights.

        Raises:
            AdjoinedError: the call reads a weight that an earlier one was given.
        """
        if self._calls[training] == _CALLS or torch._C._is_tracing():
            yield
            return
        self._calls[training] += 1
        now = {id(tensor) for tensor in given}
        held = [(name, tensor) for name, known in self._given if (tensor := known()) is not None]
        left = [(name, tensor) for name, tensor in held if id(tensor) not in now]
        with _Reads(left) if left else nullcontext():
            yield
        # A tensor that nothing but the autograd graph holds is gone after the call.
        self._given += [(name, weakref.ref(each)) for name, each in zip(self._names, given, strict=True)]


class _Reads(TorchFunctionMode):
    """Refuses operators that read some tensors."""

    def __init__(self, tensors: Sequence[tuple[str, Tensor]]) -> None:
        super().__init__()
        self._tensors = tensors  # alive, so that their ids stay theirs
        self._names = {id(tensor): name for name, tensor in tensors}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)) if func not in ASKS else ():
            if id(each) in self._names:
                raise _kept(self._names[id(each)], "from an earlier call, as a cached function does")
        return func(*args, **(kwargs or {}))


def _kept(name: str, how: str) -> AdjoinedError:
    layer, _, weight = name.rpartition(".")
    return AdjoinedError(
        f"the model keeps this weight {how}, but a small network gets its weights anew in each call",
        where=name,
        expected=f"code that reads {weight!r} of its module, or of a list, tuple, dict or object that holds it",
        fix=f"Change it, or share no weights of this module: adjoin(..., private=({layer!r},)).",
    )
