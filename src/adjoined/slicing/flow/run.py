"""The label flow: run a network once and follow, operator by operator, which channel every element belongs to."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.checks import Checks, family_of
from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import FrozenTies, NeedsValues, OutOfStep, Slot, Ties, compress, distinct, varying
from adjoined.slicing.flow.memory import Memory
from adjoined.slicing.flow.rules import RULES, Call
from adjoined.slicing.flow.sizes import Site, sizes_in
from adjoined.slicing.flow.values import Values
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import is_norm, sizes_by_input
from adjoined.slicing.model.original import Original
from adjoined.slicing.plan.reasons import Kind, Reason

GroupChoice = Callable[[str, int, int], bool]
"""(module, groups, channels per group) of a grouped convolution -> True: slice inside the groups, False: whole ones."""


class LabelFlow(Checks, TorchDispatchMode):
    """One labelled run of a module.

    Args:
        ties: `Ties` for the first run, which ties labels; `FrozenTies` for the second, which checks.
        findings: filled in the first run, read in the second.
        unaligned: cuts behind which the channels count, but not their identity.
        is_kept: label -> whether the small network has it; given in the second run only.
        choose_groups: how grouped convolutions are narrowed.
        original: the model of which a copy is run; a copy that reads the original's tensors is refused.
    """

    def __init__(
        self,
        ties: Ties | FrozenTies,
        findings: Findings,
        *,
        unaligned: Iterable[Site] = (),
        is_kept: Callable[[int], bool] | None = None,
        choose_groups: GroupChoice = lambda module, groups, size: False,
        original: Original | None = None,
    ) -> None:
        super().__init__()
        self.ties, self.findings = ties, findings
        self.unaligned, self.is_kept, self.choose_groups = frozenset(unaligned), is_kept, choose_groups
        self.original = original
        self.stack = [""]
        self.in_linear = False
        self.last_op = ""
        self.values = Values()
        self.path: list[str] = []
        self.called_with: tuple[Any, ...] = ()
        self._idle = False  # in a norm that has nothing to do: torch then reads no more than its first element
        self._slots: Any = WeakIdKeyDictionary()
        self._uniform: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()
        self._memory = Memory()
        self._stored: set[int] = set()
        self._buffers: set[int] = set()
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._train = False
        self.steps = 0
        self._last: list[Slot] = []

    # ---- the run -----------------------------------------------------------------------------------------------------

    def run(self, model: nn.Module, inputs: Inputs, *, train: bool = False) -> Any:
        """Run the module without gradients and return its output; its mode and hooks are as before afterwards."""
        hooks = []
        for name, module in model.named_modules(remove_duplicate=True):
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.append(module.register_forward_pre_hook(lambda *call, name=name: self._enter(name, *call)))
                hooks.append(module.register_forward_hook(lambda *_: self._leave()))
        modes = [(module, module.training) for module in model.modules()]
        model.train(train)
        self.stack = [""]
        self._count.clear()
        self._train = train
        inputs = inputs.apart()
        self.values.start((inputs.args, inputs.kwargs))
        try:
            with torch.no_grad(), _plain_operators(model), self, _Calls(self):
                return model(*inputs.args, **inputs.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes:
                module.training = mode

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.stack.append(name)
        self.called_with = args
        if not self.strict:
            self.findings.ran.add(name)
            self._note_sizes_by_input(name, module, args)
        self.in_linear = isinstance(module, nn.Linear)
        self._idle = is_norm(module) and any(isinstance(each, Tensor) and not each.numel() for each in args)
        if not self._train and next(module.children(), None) is None:
            self.path.append(name)

    def _note_sizes_by_input(self, name: str, module: nn.Module, args: Any) -> None:
        """Note the channels that a norm without tensors is called with: it keeps their number."""
        x = args[0] if args else None
        for dim, (attribute, element) in sizes_by_input(module, x.ndim).items() if isinstance(x, Tensor) else ():
            for slot in self.slots(x):
                if varying(slot) == (dim,):
                    self.findings.by_input[name, attribute, element] = slot

    def knows(self, tensor: Tensor) -> bool:
        """Tell whether a tensor carries labels."""
        return tensor in self._slots

    def last_labels(self) -> tuple[int, ...]:
        """Return the channels of what the last operator with labels has returned."""
        return tuple(label for slot in self._last for label in distinct(slot))

    def _leave(self) -> None:
        self._idle = self.in_linear = False
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then let its rule carry the labels on."""
        kwargs = kwargs or {}
        self.last_op = name = func._schema.name.split("::")[1]
        self.steps += 1
        self._count[self.module, family_of(name)] += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if self.original is not None:
            self.original.check_not_read(given, self.module)
        if self._memory:
            self._reread(given)
        labelled = [tensor for tensor in given if tensor in self._slots]
        bound = _bound_to_names(func, args, kwargs) if labelled else {}
        if self.strict and labelled:
            self.check_sizes(self.cut, sizes_in(name, bound))
        try:
            out = func(*args, **kwargs)
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            if isinstance(error, NotImplementedError) and any(t.is_meta for t in given):
                raise NeedsValues(str(func)) from error
            if not self.strict:
                raise
            concerned = (label for slot in self._concerned(name, args, labelled) for label in distinct(slot))
            raise OutOfStep(f"{_first_line(error)} in {self.here}", concerned) from error
        for tensor in labelled:
            if tensor in self._names:
                self.findings.readers[self._names[tensor]].add(name)
                if name == "t":  # how linear layers read their weight
                    self._names[out] = self._names[tensor]
        self.values.note(func, name, given, out, self.module)
        alike = name in _CREATE or (bool(given) and not labelled and all(tensor in self._uniform for tensor in given))
        if labelled and name not in _CREATE and not (self._idle and name == "select"):
            call = Call(func, name, bound, out)
            read = self.slots(labelled[0])
            written = [(t, self.slots(t)) for a, t in zip(func._schema.arguments, args, strict=False) if _changes(a, t)]
            self._rule(call)(self, call)
            self._last = [slot for tensor in call.outputs for slot in self.slots(tensor)]
            self._remember(written)
            self.note_sizes(call, self._written(read), [self._written(self.slots(leaf)) for leaf in call.outputs])
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                if alike:
                    self._uniform[leaf] = True
                else:  # an operator in place may end it
                    self._uniform.pop(leaf, None)
        return out

    def _rule(self, call: Call) -> Callable[[LabelFlow, Call], None]:
        if call.name in RULES:
            return RULES[call.name]
        if torch.Tag.pointwise in call.op.tags:
            return RULES["add"]
        return RULES["unknown"]

    def _concerned(self, name: str, args: Any, labelled: Sequence[Tensor]) -> list[Slot]:
        """Return the slots that can be to blame for an operator that does not accept its operands' shapes.

        What a convolution or a matrix product writes is not: only what it reads can be out of step.
        """
        if name == "convolution":
            writes = 1 if args[6] else 0
            return self.slots(args[0]) + [slot for slot in self.slots(args[1]) if varying(slot) != (writes,)]
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            a, b = args[-2:]
            return self.slots(a) + [slot for slot in self.slots(b) if varying(slot) != (b.ndim - 1,)]
        return [slot for tensor in labelled for slot in self._slots[tensor]]

    # ---- memory that is written through views ------------------------------------------------------------------------

    def _reread(self, given: Iterable[Tensor]) -> None:
        """Bring the slots of tensors up to date whose memory was written through another view."""
        for tensor in given:
            slots = self._memory.read(tensor)
            if slots is not None and (slots or tensor in self._slots):
                self._slots[tensor] = slots

    def _written(self, slots: list[Slot]) -> list[Slot]:
        """Return the slots that are complete: what is written in parts has no number of channels before the last."""
        return [slot for slot in slots if bool(slot.all())] if self._memory else slots

    def _remember(self, written: Iterable[tuple[Tensor, list[Slot]]]) -> None:
        """Note new labels of views with the memory behind them."""
        for tensor, before in written:
            after, base = self.slots(tensor), tensor._base
            same = len(after) == len(before) and all(map(torch.equal, after, before))
            if not same and (base is not None or self._memory.read(tensor) is not None):
                self._memory.write(tensor, after, self.slots(base))

    # ---- slots of tensors --------------------------------------------------------------------------------------------

    def slots(self, tensor: Any) -> list[Slot]:
        """Return the slots of a tensor; none for a tensor without labels, and for None."""
        return self._slots.get(tensor, []) if isinstance(tensor, Tensor) else []

    def carry(self, tensor: Any, slots: Iterable[Slot]) -> None:
        """Give a tensor its slots."""
        if isinstance(tensor, Tensor):
            self._slots[tensor] = [slot for slot in slots if slot.numel() > 1]

    def name(self, tensor: Tensor, name: str) -> None:
        """Remember what a parameter is called, so that its readers can be noted."""
        self._names[tensor] = name
        memory = tensor.untyped_storage()._cdata
        self._stored.add(memory)
        if not isinstance(tensor, nn.Parameter):
            self._buffers.add(memory)

    def is_uniform(self, tensor: Tensor) -> bool:
        """Whether every element has the same value by construction (zeros, ones): such a tensor fits any width."""
        return tensor in self._uniform and tensor not in self._slots

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._stored

    def is_buffer(self, tensor: Tensor) -> bool:
        """Whether a tensor is a buffer, or a view of one."""
        return tensor.untyped_storage()._cdata in self._buffers

    # ---- ties --------------------------------------------------------------------------------------------------------

    def tie(self, a: Slot, b: Slot) -> Slot:
        """Tie two slots that broadcast to each other; return their union, labels of `a` first."""
        self.ties.tie(a, b, self.here)
        a, b = torch.broadcast_tensors(a, b)
        return torch.where(a == 0, b, a)

    def unite(self, slots: Iterable[Slot]) -> list[Slot]:
        """Tie the slots that vary along the same dimensions; return one for each set of dimensions."""
        united: list[Slot] = []
        for slot in slots:
            for i, other in enumerate(united):
                if set(varying(slot)) & set(varying(other)):
                    united[i] = self.tie(other, slot)
                    break
            else:
                united.append(slot)
        return united

    def tie_vectors(self, a: Tensor | None, b: Tensor | None, why: str) -> Tensor | None:
        """Tie the labels of two dimensions that must agree; one without labels keeps the other at full width: `why`."""
        if a is None or b is None:
            known = b if a is None else a
            if known is not None:
                self.pin(known, Reason(Kind.FIXED_WIDTH, why))
            return known
        if a.numel() != b.numel():
            if 1 in (a.numel(), b.numel()):
                return b if a.numel() == 1 else a
            raise OutOfStep(f"{a.numel()} channels meet {b.numel()} in {self.here}", distinct(a) + distinct(b))
        return self.tie(a, b)

    def tied_along(self, slot: Slot) -> set[int]:
        """Return the dimensions along which a slot changes from one set of tied channels to another."""
        if not varying(slot):
            return set()
        labels, places = torch.unique(slot, return_inverse=True)
        roots = torch.tensor([self.ties.find(label) for label in labels.tolist()])
        return set(varying(compress(roots[places])))

    def pin(self, slot: Slot, reason: Reason) -> None:
        """Keep the channels of a slot at full width; the reason's text is completed by where this is."""
        self.ties.pin(slot, replace(reason, text=f"{reason.text}, in {self.here}"))

    def collapse(self, slot: Slot, keep: Sequence[int]) -> Slot:
        """Tie everything along the dimensions outside `keep`; return the slot that varies along `keep` only."""
        for d in varying(slot):
            if d not in keep:
                first = slot.narrow(d, 0, 1)
                first = torch.where(first == 0, slot.amax(d, keepdim=True), first)  # 0: not written
                self.tie(first, slot)
                slot = first
        return slot

    def vector(self, slots: Iterable[Slot], dim: int) -> Tensor | None:
        """Return the labels along one dimension as a vector, or None where it has none."""
        found: Tensor | None = None
        for slot in slots:
            if slot.shape[dim] > 1:
                labels = self.collapse(slot, (dim,)).reshape(-1)
                if found is not None and not torch.equal(found, labels):
                    self.pin(found, Reason(Kind.TWO_AT_ONCE, "each element belongs to two channels at once"))
                    self.pin(labels, Reason(Kind.TWO_AT_ONCE, "each element belongs to two channels at once"))
                found = labels if found is None else self.tie(found, labels)
        return found

    def attention_scale(self, query: Tensor) -> float | None:
        """Return the scale for an attention that is given none; 1/√D of its features is that of the narrow D.

        Where whole heads are kept, D is what it was.
        """
        last, heads = query.ndim - 1, query.ndim - 3
        for slot in self.slots(query):
            by_head = heads >= 0 and heads in varying(slot)
            inside = not by_head or self.choose_groups(self.module, query.shape[heads], query.shape[last])
            if last in varying(slot) and inside:
                self.note_crossing()
        return None


@contextlib.contextmanager
def _plain_operators(model: nn.Module) -> Iterator[None]:
    """Keep torch from running a whole layer (attention, LSTM) as one operator, inside which no labels can be seen."""
    fast, onednn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn.set_flags(_fp32_precision=None)[0]
    torch.backends.mha.set_fastpath_enabled(False)
    if any(isinstance(module, nn.LSTM) for module in model.modules()):  # others would only run slower
        torch.backends.mkldnn.set_flags(False, _fp32_precision=None)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        torch.backends.mkldnn.set_flags(onednn, _fp32_precision=None)


class _Calls(TorchFunctionMode):
    """Looks at calls that torch answers, wholly or in part, before any operator runs.

    `reshape` refuses a wrong target by itself; attention takes its scale from the features' number by itself; reading
    and setting `tensor.data` are no operators, though they hand channels on: `detach` and `copy_` stand in for them.
    """

    def __init__(self, flow: LabelFlow) -> None:
        super().__init__()
        self.flow = flow

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.flow.strict and func in (torch.Tensor.reshape, torch.reshape):
            target = kwargs.get("shape", args[1:])
            target = target[0] if len(target) == 1 and not isinstance(target[0], int) else target
            self.flow.last_op = "reshape"
            self.flow.check_sizes(self.flow.site("view", ahead=1), sizes_in("view", {"size": target}))
        elif func is F.scaled_dot_product_attention and kwargs.get("scale") is None:
            self.flow.last_op = "scaled_dot_product_attention"
            kwargs = kwargs | {"scale": self.flow.attention_scale(kwargs.get("query", args[0] if args else None))}
        elif func == _GET_DATA and self.flow.knows(args[0]):
            return args[0].detach()
        elif func == _SET_DATA and args[0].shape == args[1].shape and self.flow.knows(args[1]):
            args[0].copy_(args[1])
            return None
        return func(*args, **kwargs)


_GET_DATA, _SET_DATA = torch.Tensor.data.__get__, torch.Tensor.data.__set__  # pyright: ignore

_CREATE = {
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty",
    "empty_strided", "new_empty_strided", "scalar_tensor",
}  # fmt: skip


def _bound_to_names(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    schema = func._schema.arguments
    given = {a.name: value for a, value in zip(schema, args, strict=False)}
    return {a.name: kwargs.get(a.name, a.default_value) for a in schema} | given


def _changes(argument: Any, value: Any) -> bool:
    """Whether an operator changes this argument in place."""
    return isinstance(value, Tensor) and argument.alias_info is not None and argument.alias_info.is_write


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
