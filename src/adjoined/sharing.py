"""Shared weights and their slices for the small networks, with one autograd node for each weight."""

from __future__ import annotations

import dis
import re
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from adjoined.errors import AdjoinedError
from adjoined.other_tools import exchanges_gradients, refuse_base_alone, refuse_per_sample, refuse_sharded
from adjoined.slicing import (
    Elsewhere,
    Index,
    SlicePlan,
    add_at,
    full_name,
    is_recorded,
    mentions,
    take,
    unregistered_weights,
)

Indices = tuple[Index | None, ...]


class Shared(NamedTuple):
    """One shared weight: the modules that use it, and the small networks' slices of it."""

    owners: tuple[tuple[str, str], ...]
    """(module name, parameter name) wherever it is used: more than one for tied weights."""
    slices: tuple[Indices, ...]
    """Kept indices for each dimension, one entry for every small network."""
    shape: tuple[int, ...]
    """Its shape, for which the slices were chosen."""
    unknown: tuple[bool, ...]
    """For every small network, whether the weight's channels are unknown there."""


class SharedWeights:
    """All weights that the networks share, tied weights once.

    Args:
        base: the base network, which holds the weights.
        plans: the slice plans of the small networks.
        private: names of the tensors that are not shared.
        gradient: factor on the gradients of the slices, as in `share`.

    Attributes:
        shared: the weights.
        elsewhere: the places besides parameters in which the base holds them.
        unregistered: the weights that the base does not register, which the small networks have in common with it.
        written: whether the model's own code changes weights in place: small networks then get copies of their slices,
            so that what one network writes reaches no other. None if no call in this mode has shown it yet; they get
            copies then, too.
    """

    def __init__(
        self, base: nn.Module, plans: Sequence[SlicePlan], private: set[str], *, gradient: float = 1.0
    ) -> None:
        self.base, self.gradient = base, gradient
        self._mentions_writing = mentions(base, lambda name: _IN_PLACE.fullmatch(name) is not None)
        self.written = True if mentions(base, lambda name: name in _UNSEEN) else None
        owners: dict[int, list[tuple[str, str]]] = {}
        for where, module in base.named_modules():
            for name, parameter in () if isinstance(module, torch.jit.ScriptModule) else module._parameters.items():
                if parameter is not None and full_name(where, name) not in private:
                    owners.setdefault(id(parameter), []).append((where, name))
        self.elsewhere = Elsewhere(
            base, [submodule(base, where)._parameters[name] for (where, name), *_ in owners.values()]
        )
        self.unregistered = list(unregistered_weights(base).values())
        self.shared = []
        for of_one in owners.values():
            names = [full_name(*owner) for owner in of_one]
            slices = tuple(plan.indices(names[0]) for plan in plans)
            unknown = tuple(all(map(plan.is_unknown, names)) for plan in plans)
            self.shared.append(Shared(tuple(of_one), slices, plans[0].shapes[names[0]], unknown))

    def layers_of_slices(self, small: nn.Module) -> set[str]:
        """Return the names of a small network's layers that hold nothing but slices, and have no mode or settings."""
        shared = {owner for each in self.shared for owner in each.owners}
        found: set[str] = set()
        for where in {where for where, _ in shared}:
            layer = submodule(small, where)
            own = {name for name, tensor in {**layer._parameters, **layer._buffers}.items() if tensor is not None}
            if isinstance(layer, _LAYERS) and not _has_state(layer) and all((where, name) in shared for name in own):
                found.add(where)
        return found

    def slices_of(self, shared: Shared) -> tuple[Tensor, ...]:
        """Return every small network's slice of a weight, with its current values.

        Raises:
            AdjoinedError: the base network no longer has the weight, or has one of another shape.
        """
        where, name = shared.owners[0]
        weight = self._weight(where, name, shared)
        for tied in shared.owners[1:]:
            other = self._weight(*tied, shared)
            if other is not weight and other.untyped_storage()._cdata != weight.untyped_storage()._cdata:
                raise changed(
                    f"'{full_name(*tied)}'", f"the same parameter as '{full_name(where, name)}'", "another one"
                )
        if not torch.compiler.is_compiling():
            refuse_sharded(weight, full_name(where, name))
        if not isinstance(weight, nn.Parameter):  # such as under `functional_call`: slices pass for parameters
            weight = weight.view_as(weight)
        slices = share(weight, shared.slices, self.gradient)
        if self._may_write:
            slices = tuple(map(_cloned, slices))
        if not any(shared.unknown) or torch.compiler.is_compiling():
            return slices
        name = full_name(where, name)
        pairs = zip(slices, shared.unknown, strict=True)
        return tuple(Unknown.of(part, name) if unknown else part for part, unknown in pairs)

    def _weight(self, where: str, name: str, shared: Shared) -> nn.Parameter:
        """Return a weight of the base network by one of its names."""
        try:
            layer = submodule(self.base, where)
            weight = layer._parameters[name]
        except (KeyError, AttributeError):  # AttributeError: a part was set to None
            layer, weight = self.base, None
        if weight is None or weight.shape != shared.shape:
            got = "no such parameter" if weight is None else f"{tuple(weight.shape)}"
            raise changed(f"'{full_name(where, name)}'", f"a parameter of shape {shared.shape}", got)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            refuse_per_sample(layer, where, name)
        return weight

    def slices(self) -> list[tuple[Tensor, ...]]:
        """Return every small network's slice of every weight, in the order of `shared`."""
        return [self.slices_of(shared) for shared in self.shared]

    def around(self, base: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, list[tuple[Tensor, ...]], list[Tensor]]:
        """Run the base network, possibly wrapped; return its output, and what the small networks' calls start from.

        These are the slices, and the values of unregistered weights if the base may change them.

        Autograd runs the latest nodes first. Slices taken before the base runs pass on their gradients after the base's
        exist: each is padded, added and freed in turn. Otherwise a padded gradient for every weight waits for the base.
        If processes exchange gradients during the backward pass, waiting is better, unless the base changes weights:
        small networks see them as they were before.
        """
        if exchanging := exchanges_gradients():
            refuse_base_alone(base)
        before, slices = self._versions(), None
        common = [] if not self._may_write else [weight.detach().clone() for weight in self.unregistered]
        if self._may_write or not exchanging:
            slices = self.slices()
        output = base(*args, **kwargs)
        after = self._versions()
        if any(after.get(weight, version) != version for weight, version in before.items()):
            slices = None if self.written is False else slices  # views, in which some weights have changed
            self.written = True
        elif before:
            self.written = False
        return output, self.slices() if slices is None else slices, common

    def look_again(self) -> None:
        """Give small networks copies until a call in the current mode has changed no weight."""
        self.written = self.written or None

    @property
    def _may_write(self) -> bool:
        """Whether the model's code may change weights, as far as calls tell or, if these cannot be watched, names."""
        return self.written is True or (self.written is None and (self._mentions_writing or not _recorded()))

    @contextmanager
    def unwritten(self, common: Sequence[Tensor]) -> Iterator[None]:
        """Undo what a small network's call, which starts from these values, writes into unregistered weights."""
        kept = [(each, each.data, each.detach().clone()) for each in self.unregistered if self._may_write]
        for weight, value in zip(self.unregistered, common, strict=False):
            weight.data.copy_(value)
        try:
            yield
        finally:
            for weight, data, values in kept:
                weight.data = data.copy_(values)

    def _versions(self) -> dict[int, int]:
        """Return how often each weight has been changed in place, by its id; nothing if that cannot be watched."""
        if self.written or _recorded():
            return {}
        held = [*self.unregistered, *(self._weight(*each.owners[0], shared=each) for each in self.shared)]
        return {id(weight): weight._version for weight in held if not weight.is_inference()}


_IN_PLACE = re.compile(r"[a-z].*[a-z0-9]_")
"""A method's name such as `mul_`."""
_UNSEEN = ("data", "vector_to_parameters")
"""Ways to change a weight that its version does not show."""


def _recorded() -> bool:
    """Return whether a compiler or a transform runs the code, so that versions of weights cannot be watched."""
    return is_recorded() or torch._C._are_functorch_transforms_active()


_LAYERS = (
    nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.PReLU, nn.MultiheadAttention,
    nn.RNNBase,
)  # fmt: skip


def _has_state(layer: nn.Module) -> bool:
    """Return whether a layer has dropout, or is of a user's class that reads the mode or keeps numbers and switches."""
    if getattr(layer, "dropout", 0):
        return True
    own = [kind for kind in type(layer).__mro__ if not kind.__module__.startswith(("torch.nn.", "builtins"))]
    functions = [each for kind in own for each in vars(kind).values() if isinstance(each, FunctionType)]
    known = {name for kind in type(layer).__mro__ if kind not in own for name in getattr(kind, "__annotations__", ())}
    numbers = {name for name, value in vars(layer).items() if isinstance(value, (int, float, str))}
    return any("training" in each.__code__.co_names for each in functions) or bool(own and numbers - known)


def cannot_run(where: str, error: str = "") -> AdjoinedError:
    """Return the error for a part of a small network that the example input did not reach, and that may raise."""
    why = "the example input did not reach it, so its channels are unknown"
    return AdjoinedError(
        f"the small network cannot run this part: {why}" + (f": {error}" if error else ""),
        where=where,
        fix="Call adjoin with an example input or options that reach every part in use.",
    )


def refuse_freezing(error: RuntimeError) -> None:
    """Raise AdjoinedError if a line of code that changes `requires_grad` raised the error: a slice is not a leaf."""
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if frames and frames[-1][0].co_name == "requires_grad_":  # a module's method, whose caller counts
        frames.pop()
    if not frames:
        return
    code, line = frames[-1]
    numbered = ((each.positions, each.argval) for each in dis.get_instructions(code))
    names = {name for where, name in numbered if where is not None and where.lineno == line}
    if not names.isdisjoint(("requires_grad", "requires_grad_")):
        raise AdjoinedError(
            "the forward changes requires_grad of a weight that networks share",
            where=f"{code.co_name}, line {line} of {code.co_filename}",
            expected="a forward that leaves it alone, since a small network's weights are slices of the base's",
            fix="Freeze the weight outside of the forward, or compute with weight.detach() there.",
        ) from error


class Unknown(Tensor):
    """A weight whose channels in a small network are unknown, so that it has the base's width; it notes who reads it.

    Attributes:
        part: its name.
        was_read: whether an operator has read it, beyond its size and type.
    """

    part: str
    was_read: bool

    @classmethod
    def of(cls, weight: Tensor, name: str) -> Unknown:
        """Return the weight under its name."""
        unknown = weight.as_subclass(cls)
        unknown.part, unknown.was_read = name, False
        return unknown

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for each in tree_leaves((args, kwargs)) if func not in ASKS else ():
            if isinstance(each, cls):
                each.was_read = True
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


ASKS = {
    Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.is_complex,
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "layout", "requires_grad")),
}  # fmt: skip
"""What a model's code may ask of a weight without reading it."""


def changed(name: str, expected: str, got: str) -> AdjoinedError:
    """Return the error for a base network that was changed after it was joined."""
    return AdjoinedError(
        "the base network was changed after it was joined, but its small networks were not",
        where=name,
        expected=expected,
        got=got,
        fix="Undo the change, or call adjoin again. Prune, fuse, replace or parametrize layers before joining.",
    )


def submodule(root: nn.Module, where: str) -> nn.Module:
    """Return `root.get_submodule(where)`; a training step does this for every weight, and dictionaries are faster."""
    for name in where.split(".") if where else ():
        root = root._modules[name]  # pyright: ignore[reportAssignmentType]
    return root


def share(weight: Tensor, slices: Sequence[Indices], gradient: float = 1.0) -> tuple[Tensor, ...]:
    """Return the slice of a weight for every small network.

    The backward pass of plain slicing allocates a gradient of full size for each small network, and for each run of
    consecutive indices. Here all gradients are added into one tensor.

    Args:
        weight: a parameter of the base network.
        slices: kept indices for each dimension, one entry for every small network.
        gradient: factor on the gradients that reach the weight through its slices.

    Returns:
        A tensor for every small network: the weight itself if it is not sliced, a view if that is contiguous, else a
        copy. A model's own code may call `view` on its weights.
    """
    transformed = _recorded()
    if transformed or not (torch.is_grad_enabled() and weight.requires_grad):
        parts = tuple(_dense(take(weight, indices), weight) for indices in slices)
        if not transformed and weight.requires_grad and not torch.is_inference_mode_enabled():
            # A forward may enable gradients itself, for its own weights.
            return tuple(part if part is weight else part.detach().requires_grad_() for part in parts)
        if not transformed or gradient == 1:
            return parts
        return tuple(part.detach() + gradient * (part - part.detach()) for part in parts)
    if gradient == 1 and all(index is None for indices in slices for index in indices):
        return (weight,) * len(slices)
    return _Share.apply(weight, tuple(slices), gradient)  # pyright: ignore[reportReturnType]


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, slices: tuple[Indices, ...], gradient: float) -> tuple[Tensor, ...]:
        ctx.slices, ctx.shape, ctx.gradient = slices, weight.shape, gradient
        ctx.set_materialize_grads(False)
        return tuple(_taken(weight, indices) for indices in slices)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        pairs = zip(ctx.slices, gradients, strict=True)
        arrived = [(indices, part) for indices, part in pairs if part is not None]
        if not arrived:
            return None, None, None
        if all(part.is_sparse and indices[0] is None for indices, part in arrived):  # of a table: rows are not channels
            padded = (_sparse_at(ctx.shape, indices, part, ctx.gradient) for indices, part in arrived)
            return reduce(torch.add, padded), None, None
        dense = [(indices, part.to_dense()) for indices, part in arrived]
        total = dense[0][1].new_zeros(ctx.shape)  # for a vectorised Jacobian, a batch of gradients
        for indices, part in dense:
            add_at(total, indices, part, ctx.gradient)
        return total, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        tangent = ctx.gradient * tangents[0]
        return tuple(_taken(tangent, indices) for indices in ctx.slices)


def _cloned(part: Tensor) -> Tensor:
    """Return a copy of a slice that requires gradients if the slice does, even where none are recorded."""
    own = part.clone()
    asked = part.requires_grad and not own.requires_grad and not torch.is_inference_mode_enabled()
    return own.requires_grad_() if asked else own


def _taken(tensor: Tensor, indices: Indices) -> Tensor:
    """Return a slice as a separate tensor, even if it is the whole weight: a node may not return its input."""
    part = _dense(take(tensor, indices), tensor)
    return part.view_as(part)


def _dense(part: Tensor, weight: Tensor) -> Tensor:
    """Return a slice, contiguous if the weight is."""
    return part.contiguous() if weight.is_contiguous() and not part.is_contiguous() else part


def _sparse_at(shape: torch.Size, indices: Indices, part: Tensor, factor: float) -> Tensor:
    """Return `factor` times a sparse gradient of a slice as one of the whole weight, with the same rows."""
    rows, values = part._indices(), part._values()
    total = values.new_zeros(len(values), *shape[1:])
    add_at(total, indices, values, factor)
    return torch.sparse_coo_tensor(rows, total, shape, check_invariants=False)
