"""The label flow: run a network once and follow, operator by operator, which channel every element belongs to."""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._decomp import decomposition_table
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from adjoined.errors import first_line
from adjoined.slicing.flow.call import Call, bound_to_names, schema_of, tensors_in
from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.functions import Functions
from adjoined.slicing.flow.labels import FrozenTies, NeedsValues, OutOfStep, Slot, Ties, distinct, varying
from adjoined.slicing.flow.memory import Memory
from adjoined.slicing.flow.mixtures import PRODUCTS, Shares
from adjoined.slicing.flow.operators import UNKNOWN
from adjoined.slicing.flow.rules import OPERATORS
from adjoined.slicing.flow.rules.movement import moved
from adjoined.slicing.flow.sizes import Site, family_of, sizes_in
from adjoined.slicing.flow.state import GroupChoice, State
from adjoined.slicing.flow.uniform import CREATE, NOISE
from adjoined.slicing.model.cost import flops_of
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.meta import result_on_meta
from adjoined.slicing.model.misuse import takes_functions
from adjoined.slicing.model.modules import is_norm, sizes_by_input
from adjoined.slicing.model.original import Original
from adjoined.slicing.model.outside import outside_unchanged
from adjoined.slicing.plan.reasons import Kind, Reason


class LabelFlow(State, TorchDispatchMode):
    """One labelled run of a module.

    Arguments are those of `State`, and the `original` of which a copy is run: it may not read the original's tensors.

    Attributes:
        path: the innermost modules in the order in which they ran in eval mode.
        finished: all modules in the order in which they finished in eval mode.
        flops: module -> twice the multiply-adds of its own convolutions and matrix products in eval mode.
        innermost: a context for the model's code alone, in which a mode sees operators before this run does.
    """

    innermost: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext

    def __init__(
        self,
        ties: Ties | FrozenTies,
        findings: Findings,
        *,
        unaligned: Iterable[Site] = (),
        is_kept: Callable[[int], bool] | None = None,
        slices_inside: GroupChoice = lambda module, groups, size: False,
        original: Original | None = None,
    ) -> None:
        State.__init__(self, ties, findings, unaligned=unaligned, is_kept=is_kept, slices_inside=slices_inside)
        TorchDispatchMode.__init__(self)
        self.supports_higher_order_operators = True  # they arrive here, to be refused
        self.original = original
        self.path: list[str] = []
        self.finished: list[str] = []
        self.flops = Counter[str]()
        self.called_with: tuple[Any, ...] = ()
        self.steps = 0
        self._idle = False  # whether a norm runs on an empty input: torch then reads only its first element
        self._memory = Memory()
        self._shares = Shares(weakref.proxy(self), self.values)  # without a cycle: it would keep the model in memory

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self, model: nn.Module, inputs: Inputs, *, train: bool = False) -> Any:
        """Run the module without gradients and return its output; its mode and hooks are restored."""
        named = list(model.named_modules())
        watched = [(name, module) for name, module in named if not isinstance(module, torch.jit.ScriptModule)]
        hook = -id(self)  # torch numbers hooks from 0; its handles would outnumber the modules
        for name, module in watched:
            module._forward_pre_hooks[hook] = lambda module, args, name=name: self._enter(name, module, args)
            module._forward_hooks[hook] = lambda module, args, out, name=name: self._leave(name)
        modes = [(module, module.training) for _, module in named]
        model.train(train)
        self._modules, self._entry = [""], LabelFlow.run.__code__
        self._count.clear()
        self._train = train
        self._ran.clear()
        inputs = inputs.isolated()
        self.values.start((inputs.args, inputs.kwargs))
        try:
            with (
                torch.no_grad(),
                _plain_operators(model),
                outside_unchanged(model, self.original.held() if self.original else frozenset()) as left,
                self,
                Functions(self),
                self.innermost(),
            ):
                returned = model(*inputs.args, **inputs.kwargs)
            self.findings.left_outside |= left.anything
            self.check_steps()
            return returned
        finally:
            for _, module in watched:
                del module._forward_pre_hooks[hook], module._forward_hooks[hook]
            for module, mode in modes:
                if module.training != mode:
                    module.training = mode

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self._modules.append(name)
        self.called_with = args
        if not self.strict:
            self.findings.ran.add(name)
            self._note_sizes_by_input(name, module, args)
        self.in_linear = isinstance(module, nn.Linear)
        self._idle = is_norm(module) and any(isinstance(each, Tensor) and not each.numel() for each in args)
        if not self._train and next(module.children(), None) is None:
            self.path.append(name)

    def _note_sizes_by_input(self, name: str, module: nn.Module, args: Any) -> None:
        """Record the channels that a norm without tensors gets, since it stores their number."""
        x = args[0] if args else None
        for dim, (attribute, element) in sizes_by_input(module, x.ndim).items() if isinstance(x, Tensor) else ():
            for slot in self.slots(x):
                if varying(slot) == (dim,):
                    self.findings.by_input[name, attribute, element] = slot

    def _leave(self, name: str) -> None:
        self._idle = self.in_linear = False
        self._modules.pop()
        if not self._train:
            self.finished.append(name)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then let its rule label the results."""
        if isinstance(func, HigherOrderOperator):
            raise takes_functions(func, self.module)
        with torch._C.DisableTorchFunction():  # TorchScript would let `Functions` see the rules' own calls
            return self._labelled(func, args, kwargs or {})

    def _labelled(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        self.last_op = name = func._schema.name.split("::")[1]
        self._count[self.module, self._within + family_of(name)] += 1
        if not self.strict:
            self.findings.calls.add(self.call_site)
        self.steps += self.call_site in self.findings.calls
        given = tensors_in((args, tuple(kwargs.values())))
        self._before(given, kwargs)
        labelled = [tensor for tensor in given if tensor in self._slots]
        if labelled and (written_out := _written_out(func, name)) is not None:
            with self:
                results = written_out(*args, **kwargs)
            self.last_op = name
            if results is not NotImplemented:
                return results
        if name not in _BY_SHAPE and not self._within and not _moves(name):
            self.note_step(labelled)
        bound = bound_to_names(func, args, kwargs) if labelled else {}
        if labelled and self.strict and not self._within:
            self.check_sizes(self.call_site, sizes_in(name, bound))
        out = self._run_operator(func, name, args, kwargs, given, labelled)
        results = tensors_in(out)
        if not self._train:
            self.flops[self.module] += flops_of(func, args, kwargs, out)
        self._note_readers(name, labelled, out)
        if self.values.note(func, name, given, results, self.module):
            self.note_decided(given)
        self._note_statistics(name, given, results)
        if labelled and name not in CREATE and not (self._idle and name == "select"):
            self._apply_rule(Call(func, name, bound, out), args, labelled[0], results)
        if name in CREATE or not labelled:
            self._note_uniform(Call(func, name, bound, out), args, kwargs, given)
        else:
            self.uniform.set(name, results)
        if self._train and name in NOISE:
            self.uniform.set(name, results, name)
        return out

    def _before(self, given: Sequence[Tensor], kwargs: dict[str, Any]) -> None:
        """Bring the operands' slots up to date."""
        if self.original is not None:
            self.original.check_not_read(given, self.module)
        if self._memory:
            self._reread(given)
        for slot in [slot for tensor in given for slot in self.choices.pop(tensor, ())] if self.choices else ():
            self.pin(slot, Reason(Kind.BY_VALUE, "selected by value"))
        if "out" in kwargs:  # its previous contents are lost
            self._slots.pop(kwargs["out"], None)

    def _run_operator(
        self,
        func: Any,
        name: str,
        args: Any,
        kwargs: dict[str, Any],
        given: Sequence[Tensor],
        labelled: Sequence[Tensor],
    ) -> Any:
        """Run an operator.

        Raises:
            NeedsValues: it needs the values of tensors on the meta device.
            OutOfStep: in the second run, it does not accept the shapes.
        """
        try:
            if "out" not in kwargs and (found := result_on_meta(name, args, given)) is not None:
                return found
            return func(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, NotImplementedError) and any(t.is_meta for t in given):
                raise NeedsValues(str(func)) from error
            if not self.strict:
                raise
            concerned = (label for slot in self._concerned(name, args, labelled) for label in distinct(slot))
            raise OutOfStep(f"{first_line(error, 160)} in {self.here}", concerned) from error

    def _note_readers(self, name: str, labelled: Iterable[Tensor], out: Any) -> None:
        """Record which parameters and buffers the operator reads."""
        for tensor in labelled:
            if tensor in self._names:
                self.findings.readers[self._names[tensor]].add(name)
                if name == "t":  # how linear layers read their weight
                    self._names[out] = self._names[tensor]

    def _note_statistics(self, name: str, given: Iterable[Tensor], results: Sequence[Tensor]) -> None:
        """Record which statistics the results depend on; the weights of a product can make up for dropped channels."""
        for tensor in given if name not in PRODUCTS else ():
            if tensor in self.statistics:
                behind = [out._base for out in results if out._base is not None]
                self.note_statistic(self.statistics[tensor].values(), [*results, *behind])

    def _note_uniform(self, call: Call, args: Any, kwargs: dict[str, Any], given: Sequence[Tensor]) -> None:
        """Follow what makes elements equal, such as `torch.zeros`, through an operator without labels."""
        bound = bound_to_names(call.op, args, kwargs)

        def move(pattern: Tensor) -> list[Tensor] | None:
            return moved(Call(call.op, call.name, bound, call.out), pattern, given[0])

        elementwise = torch.Tag.pointwise in call.op.tags or call.name in ALIKE
        self.uniform.note(
            call.name,
            args,
            given,
            call.outputs,
            understood=elementwise or call.name in OPERATORS,
            elementwise=elementwise,
            move=move if _moves(call.name) else None,
        )

    def _apply_rule(self, call: Call, args: Any, first: Tensor, results: Sequence[Tensor]) -> None:
        """Let the operator's rule label the results; `first` is the first operand with labels."""
        read = self.slots(first)
        changed = [t for a, t in zip(schema_of(call.op), args, strict=False) if a.changes and isinstance(t, Tensor)]
        written = [(tensor, self.slots(tensor)) for tensor in changed]
        elementwise = "add" if torch.Tag.pointwise in call.op.tags else UNKNOWN  # these need no entry of their own
        (OPERATORS.get(call.name) or OPERATORS[elementwise]).rule(self, call)
        if not self.strict:
            self._shares.note(call, in_layer=self.in_linear)
        self._last = [slot for tensor in results for slot in self.slots(tensor)]
        self._remember(written)
        self.note_sizes(call, self._written(read), [self._written(self.slots(each)) for each in results])

    def _concerned(self, name: str, args: Any, labelled: Sequence[Tensor]) -> list[Slot]:
        """Return the slots that may be why an operator does not accept the shapes of its operands.

        The output channels of a convolution or a matrix product never are: only what it reads can be out of step.
        """
        if name == "convolution":
            writes = 1 if args[6] else 0
            return self.slots(args[0]) + [slot for slot in self.slots(args[1]) if varying(slot) != (writes,)]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:]
            return self.slots(a) + [slot for slot in self.slots(b) if varying(slot) != (b.ndim - 1,)]
        return [slot for tensor in labelled for slot in self._slots[tensor]]

    # ---- memory written through views --------------------------------------------------------------------------------

    def _reread(self, given: Iterable[Tensor]) -> None:
        """Update the slots of tensors whose memory was written through another view."""
        for tensor in given:
            slots = self._memory.read(tensor)
            if slots is not None and (slots or tensor in self._slots):
                self._slots[tensor] = slots

    def _written(self, slots: list[Slot]) -> list[Slot]:
        """Return the complete slots: memory written in parts has no number of channels before the last part."""
        return [slot for slot in slots if bool(slot.all())] if self._memory else slots

    def _remember(self, written: Iterable[tuple[Tensor, list[Slot]]]) -> None:
        """Record new labels of views in their memory."""
        for tensor, before in written:
            after, base = self.slots(tensor), tensor._base
            same = len(after) == len(before) and all(map(torch.equal, after, before))
            if not same and (base is not None or self._memory.read(tensor) is not None):
                self._memory.write(tensor, after, self.slots(base))


def _moves(name: str) -> bool:
    return name in OPERATORS and OPERATORS[name].moves


def _written_out(op: Any, name: str) -> Callable[..., Any] | None:
    """Return how torch decomposes an operator without a rule into others, such as a loss into differences."""
    if name in OPERATORS or torch.Tag.pointwise in op.tags:
        return None
    return decomposition_table.get(op) or (op.decompose if op._can_decompose() else None)


@contextlib.contextmanager
def _plain_operators(model: nn.Module) -> Iterator[None]:
    """Keep torch from running a whole layer (attention, LSTM) as one operator, which would hide the labels inside."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.LSTM) for module in model.modules()):  # it would only slow other models down
        torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch._C._set_mkldnn_enabled(onednn)


ALIKE = {"clone", "detach", "alias", "_to_copy", "lift_fresh", "contiguous", "masked_fill", "masked_fill_"}
"""Operators that leave elements where they are, beside those that torch marks as elementwise."""

_BY_SHAPE = {
    "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "clone", "copy_", "_to_copy", "contiguous", "cat", "stack",
    "expand", "constant_pad_nd", "as_strided", "as_strided_", "detach", "alias",
}  # fmt: skip
"""Operators among which torch itself chooses by shapes and strides, and which leave channels as they are."""
