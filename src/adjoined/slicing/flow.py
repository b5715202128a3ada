"""The label flow: run a network once and follow, operator by operator, which channel every element belongs to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.findings import Findings
from adjoined.slicing.inputs import Inputs
from adjoined.slicing.labels import (
    FrozenTies,
    NeedsValues,
    OutOfStep,
    Slot,
    Ties,
    TooNarrow,
    compress,
    distinct,
    varying,
)
from adjoined.slicing.modules import is_norm
from adjoined.slicing.rules import RULES, Call
from adjoined.slicing.sizes import RESHAPES, Mismatch, Site, check_sizes, line_of_code, sizes_in, sizes_of
from adjoined.slicing.values import Values

GroupChoice = Callable[[str, int, int], bool]
"""(module, groups, channels per group) of a grouped convolution -> True: slice inside the groups, False: whole ones."""


class LabelFlow(TorchDispatchMode):
    """One labelled run of a module.

    Args:
        ties: `Ties` for the first run, which ties labels; `FrozenTies` for the second, which checks.
        findings: filled in the first run, read in the second.
        unaligned: cuts behind which the channels count, but not their identity.
        is_kept: label -> whether the small network has it; given in the second run only.
        choose_groups: how grouped convolutions are narrowed.
    """

    def __init__(
        self,
        ties: Ties | FrozenTies,
        findings: Findings,
        *,
        unaligned: Iterable[Site] = (),
        is_kept: Callable[[int], bool] | None = None,
        choose_groups: GroupChoice = lambda module, groups, size: False,
    ) -> None:
        super().__init__()
        self.ties, self.findings = ties, findings
        self.unaligned, self.is_kept, self.choose_groups = frozenset(unaligned), is_kept, choose_groups
        self.stack = [""]
        self.last_op = ""
        self.values = Values()
        self.path: list[str] = []
        self._idle = False  # in a norm that has nothing to do: torch then reads no more than its first element
        self._slots: Any = WeakIdKeyDictionary()
        self._uniform: Any = WeakIdKeyDictionary()
        self._names: Any = WeakIdKeyDictionary()
        self._count: dict[tuple[str, str], int] = defaultdict(int)
        self._train = False
        self.steps = 0
        self._last: list[Slot] = []

    # ---- the run -----------------------------------------------------------------------------------------------------

    @property
    def strict(self) -> bool:
        """Whether this is the second run, which checks the small network."""
        return self.is_kept is not None

    @property
    def module(self) -> str:
        """Name of the module that runs now; "" for the model itself."""
        return self.stack[-1]

    @property
    def here(self) -> str:
        """Where the run is, for messages."""
        return f"'{self.module}' ({self.last_op})" if self.module else f"the model's own forward ({self.last_op})"

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
        self.values.start((inputs.args, inputs.kwargs))
        try:
            with torch.no_grad(), self, _Calls(self):
                return model(*inputs.args, **inputs.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
            for module, mode in modes:
                module.training = mode

    def _enter(self, name: str, module: nn.Module, args: Any) -> None:
        self.stack.append(name)
        self._idle = is_norm(module) and any(isinstance(each, Tensor) and not each.numel() for each in args)
        if not self._train and next(module.children(), None) is None:
            self.path.append(name)

    def last_labels(self) -> tuple[int, ...]:
        """Return the channels of what the last operator with labels has returned."""
        return tuple(label for slot in self._last for label in distinct(slot))

    def _leave(self) -> None:
        self._idle = False
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, then let its rule carry the labels on."""
        kwargs = kwargs or {}
        self.last_op = name = func._schema.name.split("::")[1]
        self.steps += 1
        self._count[self.module, _family(name)] += 1
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
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
            self._rule(call)(self, call)
            self._last = [slot for tensor in call.outputs for slot in self.slots(tensor)]
            self._note_sizes(call, read)
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

    def is_uniform(self, tensor: Tensor) -> bool:
        """Whether every element has the same value by construction (zeros, ones): such a tensor fits any width."""
        return tensor in self._uniform and tensor not in self._slots

    # ---- ties --------------------------------------------------------------------------------------------------------

    def tie(self, a: Slot, b: Slot) -> Slot:
        """Tie two slots that broadcast to each other; return their union, labels of `a` first."""
        self.ties.tie(a, b, self.here)
        a, b = torch.broadcast_tensors(a, b)
        return torch.where(a == 0, b, a)

    def tie_vectors(self, a: Tensor | None, b: Tensor | None, why: str) -> Tensor | None:
        """Tie the labels of two dimensions that must agree; one without labels keeps the other at full width."""
        if a is None or b is None:
            known = b if a is None else a
            if known is not None:
                self.pin(known, why)
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
        roots = torch.tensor([self.ties.find(label) for label in slot.reshape(-1).tolist()]).view(slot.shape)
        return set(varying(compress(roots)))

    def pin(self, slot: Slot, why: str) -> None:
        """Keep the channels of a slot at full width."""
        self.ties.pin(slot, f"{why}, in {self.here}")

    def collapse(self, slot: Slot, keep: Sequence[int]) -> Slot:
        """Tie everything along the dimensions outside `keep`; return the slot that varies along `keep` only."""
        for d in varying(slot):
            if d not in keep:
                first = slot.narrow(d, 0, 1)
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
                    self.pin(found, "each element belongs to two channels at once")
                    self.pin(labels, "each element belongs to two channels at once")
                found = labels if found is None else self.tie(found, labels)
        return found

    def attention_scale(self, query: Tensor) -> float | None:
        """Return the scale for an attention that is given none; 1/√D of its features is that of the narrow D."""
        if any(query.ndim - 1 in varying(slot) for slot in self.slots(query)):
            self.note_crossing()
        return None

    # ---- notes for the repair ----------------------------------------------------------------------------------------

    def _note_sizes(self, call: Call, read: list[Slot]) -> None:
        """Note the sizes that code handed to an operator, with the channels that they count."""
        if not self.strict and sizes_in(call.name, call.args):
            outputs = [self.slots(out) for out in call.outputs]
            self.findings.sizes[self.cut] = sizes_of(call.name, call.args, read, outputs)

    def check_sizes(self, site: Site, asked: Sequence[int | None]) -> None:
        """In the small network, code must ask for as many channels as are left of those that it asked for."""
        sizes = self.findings.sizes.get(site)
        if sizes is None or site in self.unaligned or self.is_kept is None:
            return
        position = check_sizes(asked, sizes, self.is_kept)
        if position is not None:
            size, value = sizes[position], asked[position]
            here = f"{self.here}{line_of_code(LabelFlow.run)}"
            raise Mismatch(site, position, value or 0, size.left(self.is_kept) or 0, size, here)

    def note_read(self, labels: Tensor | None) -> None:
        """Note that the current operator sums over these channels: they matter to what comes behind it."""
        if labels is not None and not self.strict:
            self.findings.read.update(distinct(labels))

    def note_crossing(self) -> None:
        """Note that the current operator computes a statistic across channels."""
        if not self.strict:
            self.findings.crossing.setdefault(self.module, self.last_op)

    @property
    def cut(self) -> Site:
        """The key of the current operator: equal in both runs, as long as the module's code runs the same way."""
        return self.site(_family(self.last_op))

    def site(self, family: str, ahead: int = 0) -> Site:
        """Return the key of the latest operator of a family, or of one that is still ahead."""
        return Site(self.module, family, self._count[self.module, family] + ahead, self._train)

    def note_pieces(self, cut: Site, dim: int, pieces: Sequence[Slot]) -> None:
        """Note which piece of a cut every label went into."""
        if not self.strict:
            for number, piece in enumerate(pieces):
                for label in distinct(piece):
                    self.findings.cuts[label].add((cut, dim, number))

    def check_cut(self, cut: Site, number: int, pieces: Sequence[Slot]) -> None:
        """Remember which channels go into which piece of a cut; in the small network it must be the same ones."""
        if cut in self.unaligned:
            return
        for piece, slot in enumerate(pieces):
            labels = slot.reshape(-1).tolist()
            if self.is_kept is None:
                self.findings.pieces[cut, number, piece] = labels
            else:
                before = self.findings.pieces.get((cut, number, piece), [])
                expected = [label for label in before if label == 0 or self.is_kept(label)]
                if labels != expected and self._any_narrowed([*before, *labels]):
                    message = f"other channels than in the base network are cut off in {self.here}"
                    raise OutOfStep(message, [*before, *labels])

    def check_neighbours(self, number: int, slot: Slot) -> None:
        """Remember the channels that the current operator sees side by side; of these the first ones must be kept.

        Beyond the last one it then sees padding where the base network with its dropped channels at zero sees zeros.
        """
        key, labels = (self.cut, number, 0), slot.reshape(-1).tolist()
        if self.is_kept is None:
            self.findings.pieces[key] = labels
        elif labels != self.findings.pieces.get(key, labels)[: len(labels)] and self._any_narrowed(labels):
            before = self.findings.pieces[key]
            raise OutOfStep(f"other channels become neighbours than in the base network, in {self.here}", before)

    def _any_narrowed(self, labels: Iterable[int]) -> bool:
        return isinstance(self.ties, FrozenTies) and self.ties.any_narrowed(labels)

    def renew(self, cut: Site, piece: int, slot: Slot) -> Slot:
        """Give the channels behind an unaligned cut fresh labels: their number must agree from here on, no more."""
        if cut not in self.unaligned or slot.numel() <= 1:
            return slot
        key = (cut, piece)
        if self.is_kept is None:
            assert isinstance(self.ties, Ties)
            labels = self.ties.new(f"{cut.module}#{cut.operator}{cut.number}", piece, slot.numel())
            self.findings.fresh[key] = labels
            return labels.view(slot.shape)
        expected = self.findings.fresh.get(key)
        kept = [] if expected is None else [label for label in expected.tolist() if self.is_kept(label)]
        if len(kept) != slot.numel():
            message = f"{slot.numel()} channels arrive where {len(kept)} are expected in {self.here}"
            labels = [] if expected is None else expected.tolist()
            raise TooNarrow(message, kept + distinct(slot), labels, slot.numel())
        return torch.tensor(kept).view(slot.shape)


class _Calls(TorchFunctionMode):
    """Looks at calls that torch answers, wholly or in part, before any operator runs.

    `reshape` refuses a wrong target by itself; attention takes its scale from the features' number by itself.
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
        return func(*args, **kwargs)


_CREATE = {
    "zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty",
    "empty_strided", "new_empty_strided", "scalar_tensor",
}  # fmt: skip


def _family(name: str) -> str:
    """Return what an operator counts as: torch chooses between the ways to reshape by strides, which may differ."""
    return "view" if name in RESHAPES else name


def _bound_to_names(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    schema = func._schema.arguments
    given = {a.name: value for a, value in zip(schema, args, strict=False)}
    return {a.name: kwargs.get(a.name, a.default_value) for a in schema} | given


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0][:160] if text else type(error).__name__
