"""A small network's module: the model's own classes without the shared weights, which each call binds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.assignable import Assignable
from adjoined.errors import AdjoinedError, first_line
from adjoined.outdated import Outdated, references, refuse_held
from adjoined.own_backward import refuse_listing
from adjoined.sharing import Shared, SharedWeights, Unknown, cannot_run, changed, refuse_freezing, submodule
from adjoined.slicing import (
    SlicePlan,
    WithoutHistory,
    and_parents,
    assigned_names,
    full_name,
    mentions,
    named_tensors,
    own_classes,
    unregistered_weights,
)

CHECKPOINTING = ("grad_checkpointing", "gradient_checkpointing", "memory_efficient", "use_checkpoint", "with_cp")
"""Switches of model libraries for activation checkpointing, which are turned off in small networks: it runs modules
again in the backward pass, when slices are no longer bound, and a small network has few activations to save."""

ATTEMPTS = 20
"""Attempts to copy a module while another thread runs it and adds attributes to it."""


def make_skeleton(weights: SharedWeights, number: int, plan: SlicePlan) -> nn.Module:
    """Return the module of the n-th small network, without the weights that it shares."""
    small = plan.cut(weights.base, in_common=unregistered_weights(weights.base))
    borrowed: list[str] = []
    for name, module in weights.base.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in borrowed)
        if isinstance(module, torch.jit.ScriptModule) and not inside:
            borrowed.append(name)
            parent, _, attribute = name.rpartition(".")
            setattr(small.get_submodule(parent), attribute, _Borrowed(module))
    lenders: dict[str, _Lender] = {}
    held = references(small, [owner for each in weights.shared for owner in each.owners])
    for shared in weights.shared:
        for where, name in shared.owners:
            small.get_submodule(where)._parameters[name] = None
            lenders.setdefault(where, _Lender(weights, number)).parameters.append((name, shared))
    weights.elsewhere.put(small, None)
    refuse_held(small, held)
    for where, lender in lenders.items():
        small.get_submodule(where).register_forward_pre_hook(lender.lend)
        small.get_submodule(where).register_forward_hook(lender.take_back, always_call=True)
    for name, followed in plan.unreached.items() if plan.tensors else ():
        if name not in plan.shapes:
            hook = _Guess(name) if followed else _Refusal(name)
            small.get_submodule(name).register_forward_pre_hook(hook)
    for module in small.modules():
        for switch in CHECKPOINTING:
            if vars(module).get(switch) is True:
                setattr(module, switch, False)
    return small


def check_same_parts(skeleton: nn.Module, joined: nn.Module, base: nn.Module) -> None:
    """Raise AdjoinedError if the base network has other modules than when it was joined."""
    if not any(each is joined for each in base.modules()):
        raise changed("base", f"the {type(joined).__name__} that was joined", f"another {type(base).__name__}")
    ran, now = (dict(each.named_modules()) for each in (skeleton, joined))
    for name in ran | now:
        borrowed = any(isinstance(ran.get(each), _Borrowed) for each in and_parents(name))
        kinds = ["no such module" if name not in each else _kind(each[name]) for each in (ran, now)]
        if kinds[0] != kinds[1] and not borrowed:
            raise changed(f"'{name}'", *kinds)


def check_same_place(skeleton: nn.Module, base: nn.Module) -> None:
    """Raise AdjoinedError if a small network's own tensors have another device or type than the base's tensors."""
    of_base = named_tensors(base)
    for name, own in named_tensors(skeleton).items():
        its = of_base.get(name)
        if its is not None and own.is_floating_point() and (own.device, own.dtype) != (its.device, its.dtype):
            raise AdjoinedError(
                "a small network's own tensors are not where the base network's are",
                where=f"smalls: '{name}'",
                expected=f"{its.dtype} on {its.device}",
                got=f"{own.dtype} on {own.device}",
                fix="Move the joint network, not the model alone: net.to(...).",
            )


def _kind(module: nn.Module) -> str:
    """Return a module's class by name, since every copy of a traced module has a class of its own."""
    return f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("torch.nn.modules.")


def extracted(skeleton: nn.Module, weights: SharedWeights, number: int) -> nn.Module:
    """Return a copy of the n-th small network, as it runs, with its own copies of the slices of shared weights.

    Raises:
        AdjoinedError: parts of the base were replaced, added or removed, and not in the small networks.
    """
    check_same_parts(skeleton, weights.base, weights.base)
    scripted = {id(part): copy.deepcopy(part.module) for part in skeleton.modules() if isinstance(part, _Borrowed)}
    small = _copied(skeleton, weights, scripted)
    for part in small.modules():
        for key, hook in [*part._forward_pre_hooks.items(), *part._forward_hooks.items()]:
            if isinstance(getattr(hook, "__self__", hook), (_Lender, _Guess, _Refusal)):
                for hooks in (part._forward_pre_hooks, part._forward_hooks, part._forward_hooks_always_called):
                    hooks.pop(key, None)
    for name, part in small.named_modules():
        part.training = skeleton.get_submodule(name).training  # copies of traced modules start in train mode
        for switch in CHECKPOINTING:
            if vars(part).get(switch) is False:
                setattr(part, switch, getattr(weights.base.get_submodule(name), switch))
    own_classes(small)
    _bind_copies(small, weights, number)
    return small


@contextmanager
def bound_copies(skeleton: nn.Module, weights: SharedWeights, number: int) -> Iterator[None]:
    """Give the n-th small network copies of its slices within the block."""
    _bind_copies(skeleton, weights, number)
    try:
        yield
    finally:
        for where, name in [owner for each in weights.shared for owner in each.owners]:
            submodule(skeleton, where)._parameters[name] = None
        weights.elsewhere.put(skeleton, None)


@torch.no_grad()
def _bind_copies(small: nn.Module, weights: SharedWeights, number: int) -> None:
    parameters: list[nn.Parameter] = []
    for shared in weights.shared:
        copied = weights.slices_of(shared)[number].detach().clone()
        where, name = shared.owners[0]
        parameter = nn.Parameter(copied, submodule(weights.base, where)._parameters[name].requires_grad)  # pyright: ignore
        parameters.append(parameter)
        for where, name in shared.owners:
            setattr(submodule(small, where), name, parameter)  # recurrent layers note it
    weights.elsewhere.put(small, parameters)


def _copied(skeleton: nn.Module, weights: SharedWeights, memo: dict[int, Any]) -> nn.Module:
    """Return a deep copy, with what its forward stores except slices, while other threads may run the skeleton."""
    memo[id(weights)] = weights
    for part, name in [(submodule(skeleton, where), name) for each in weights.shared for where, name in each.owners]:
        for value in (part._parameters.get(name), vars(part).get(name)):
            memo |= {} if value is None else {id(value): value}
    for _ in range(ATTEMPTS):
        with suppress(RuntimeError), WithoutHistory():  # another thread may add an attribute meanwhile
            return copy.deepcopy(skeleton, dict(memo))
    with WithoutHistory():
        return copy.deepcopy(skeleton, memo)


class Runner:
    """Runs a skeleton on slices of the shared weights, for any number of calls at the same time.

    A call binds its slices to the module, so a module serves one call at a time. The first call takes the skeleton
    itself; calls of other threads meanwhile take copies, which hold the same private tensors. No lock is needed: taking
    a module and giving it back are single list operations.

    Activation checkpointing and reversible layers (`Function.apply`) rerun code in the backward pass, after the slices
    have been unbound. If a model's code uses either, its modules keep the slices of a training call until the next
    call, as plain attributes rather than parameters.
    """

    def __init__(self, module: nn.Module, weights: SharedWeights) -> None:
        self._module, self._weights = module, weights
        self._idle, self._copies = [(module, _guesses(module))], list[_Copy]()
        self._checkpoints, self._left = mentions(module, lambda name: "checkpoint" in name or name == "apply"), False
        self._asks = mentions(module, lambda name: name in ("Parameter", "get_parameter"))  # for parameters
        self._assigned = assigned_names(module)
        self._outdated = Outdated([full_name(*shared.owners[0]) for shared in weights.shared])
        self._looked: set[bool] = set()  # modes in which the graph of a call has been looked at

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the copies, which are made again when needed."""
        return vars(self) | {"_idle": [(self._module, _guesses(self._module))], "_copies": [], "_left": False}

    def run(
        self, slices: Sequence[Tensor], args: tuple[Any, ...], kwargs: dict[str, Any], common: Sequence[Tensor] = ()
    ) -> Any:
        """Call the network with one slice for each shared weight, and with these values of unregistered weights."""
        if torch.compiler.is_compiling():
            if self._left:
                self.forget()
            both = zip(slices, self._weights.shared, strict=True)
            bound = {full_name(*owner): value for value, shared in both for owner in shared.owners}
            self._weights.elsewhere.put(self._module, slices)
            return torch.func.functional_call(self._module, bound, args, kwargs, tie_weights=False)
        try:
            idle = self._idle.pop()
        except IndexError:
            copied = self._take_copy()
            try:
                return self._call(copied.module, copied.guesses, slices, args, kwargs, common)
            finally:
                self._copies.append(copied)
        try:
            output = self._call(*idle, slices, args, kwargs, common)
        finally:
            self._idle.append(idle)
        if slices and self._module.training not in self._looked and torch.is_grad_enabled():
            refuse_listing(output)
            self._looked.add(self._module.training)
        return output

    def _call(
        self,
        module: nn.Module,
        guesses: list[_Guess],
        slices: Sequence[Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        common: Sequence[Tensor],
    ) -> Any:
        parameters = [(submodule(module, where), name) for each in self._weights.shared for where, name in each.owners]
        given = [*map(_as_parameter, slices)] if self._asks else slices
        bound: list[Any] = [value for value, each in zip(given, self._weights.shared, strict=True) for _ in each.owners]
        kept = [vars(part).pop(name, None) for part, name in parameters] if self._checkpoints else []
        assigned = {part: part._parameters for part, name in parameters if name in self._assigned}
        try:
            for part, registered in assigned.items():
                vars(part)["_parameters"] = Assignable(registered)
            for (part, name), value in zip(parameters, bound, strict=True):
                if name in self._assigned:
                    part._parameters.bind(part, name, value)  # pyright: ignore[reportAttributeAccessIssue]
                else:
                    part._parameters[name] = value
            self._weights.elsewhere.put(module, given)
            with self._outdated.refused(given, training=module.training), self._weights.unwritten(common):
                output = module(*args, **kwargs)
            self._weights.elsewhere.search(module, given)
            return output
        except RuntimeError as error:
            check_same_place(module, self._weights.base)
            refuse_freezing(error)
            read = [value.part for value in bound if isinstance(value, Unknown) and value.was_read]
            ran = [guess.name for guess in guesses if guess.ran]
            if not (read or ran) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise cannot_run(f"'{(read or ran)[0]}'", first_line(error)) from error
        finally:
            for guess in guesses:
                guess.ran = False
            for part, registered in assigned.items():
                vars(part)["_parameters"] = registered
            for part, name in parameters:
                part._parameters[name] = None
                vars(part).pop(name, None)  # code that replaces a weight for a while puts it back as an attribute
            if not (self._checkpoints and torch.is_grad_enabled()):
                self._weights.elsewhere.put(module, None)
            if self._checkpoints:
                for (part, name), value in zip(parameters, bound if torch.is_grad_enabled() else kept, strict=True):
                    if value is not None:
                        vars(part)[name] = value
                        self._left = True

    def forget(self) -> None:
        """Drop the slices kept for a backward pass."""
        for where, name in [owner for each in self._weights.shared for owner in each.owners]:
            vars(submodule(self._module, where)).pop(name, None)
        self._weights.elsewhere.put(self._module, None)
        self._left = False

    def _take_copy(self) -> _Copy:
        while self._copies:
            try:
                copied = self._copies.pop()
            except IndexError:  # another thread was faster
                break
            if copied.follow(self._module):
                return copied
        return _Copy(self._module, self._weights)


def _as_parameter(part: Tensor) -> nn.Parameter:
    """Return the slice itself, which passes for an `nn.Parameter` if a forward checks."""
    if not isinstance(part, nn.Parameter):
        part._is_param = True  # pyright: ignore[reportAttributeAccessIssue]
    return part  # pyright: ignore[reportReturnType]


class _Copy:
    """A copy of a skeleton that holds the same private tensors."""

    def __init__(self, skeleton: nn.Module, weights: SharedWeights) -> None:
        memo: dict[int, Any] = dict(unregistered_weights(skeleton))
        for part in skeleton.modules():
            memo[id(part._buffers)] = part._buffers
            memo |= {id(parameter): parameter for parameter in list(part._parameters.values())}
            if isinstance(part, _Borrowed):
                memo[id(part.module)] = part.module
        self.module = _copied(skeleton, weights, memo)
        self.guesses = _guesses(self.module)
        self._stamp = _stamp(skeleton)
        shared = {owner for each in weights.shared for owner in each.owners}
        self._private, self._numbers = [], []
        for (name, mine), its in zip(self.module.named_modules(), skeleton.modules(), strict=True):
            self._private += [
                (mine._parameters, its._parameters, p) for p in its._parameters if (name, p) not in shared
            ]
            self._numbers += [(vars(mine), vars(its), [n for n, v in vars(its).items() if isinstance(v, _NUMBERS)])]
        self.follow(skeleton)

    def follow(self, skeleton: nn.Module) -> bool:
        """Take over the skeleton's current mode, settings and private tensors; return False if its parts changed."""
        if _stamp(skeleton) != self._stamp:
            return False
        for mine, its, name in self._private:
            mine[name] = its[name]
        for mine, its, names in self._numbers:
            mine.update((name, its[name]) for name in names)
        return True


_NUMBERS = (int, float, str, type(None))


def _stamp(module: nn.Module) -> list[Any]:
    """Return a value that changes when a module gets other parts or hooks."""
    return [(id(each), *each._forward_hooks, None, *each._forward_pre_hooks) for each in module.modules()]


class _Refusal:
    """Refuses to run a part of a small network whose channels are unknown, so that it has the base's width."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, _args: object) -> None:
        raise cannot_run(f"'{self.name}' ({type(module).__name__})")


class _Guess:
    """Notes when a part of a small network runs whose channels are assumed, by its place, to follow another part's."""

    def __init__(self, name: str) -> None:
        self.name, self.ran = name, False

    def __call__(self, _module: nn.Module, _args: object) -> None:
        self.ran = True


def _guesses(module: nn.Module) -> list[_Guess]:
    """Return the hooks on parts whose channels are guessed."""
    hooks = (hook for part in module.modules() for hook in part._forward_pre_hooks.values())
    return [hook for hook in hooks if isinstance(hook, _Guess)]


class _Lender:
    """Binds the slices of a small network's module if no call has bound them.

    Activation checkpointing runs modules again in the backward pass, after the call that bound them.
    """

    def __init__(self, weights: SharedWeights, number: int) -> None:
        self.weights, self.number = weights, number
        self.parameters: list[tuple[str, Shared]] = []
        self.lent: list[str] = []

    def lend(self, module: nn.Module, _args: object) -> None:
        """Bind the missing slices before the module runs."""
        for name, shared in self.parameters:
            if module._parameters.get(name, module) is None:  # code may have replaced it
                module._parameters[name] = _as_parameter(self.weights.slices_of(shared)[self.number])
                self.lent.append(name)

    def take_back(self, module: nn.Module, _args: object, _out: object) -> None:
        """Unbind them again."""
        while self.lent:
            module._parameters[self.lent.pop()] = None


class _Borrowed(nn.Module):
    """A TorchScript module of the base network, which cannot be narrowed: small networks call the base's own.

    It is not registered as a submodule, so its tensors belong to the base alone.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = (module,)

    @property
    def module(self) -> nn.Module:
        """The module of the base network."""
        return self._module[0]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)
