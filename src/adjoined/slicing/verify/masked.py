"""The masked base: the base network at full width, with the channels that the small network lacks at zero.

It defines what the small network computes, and checks its slices: all its tensors have full width, so a wrong slice
shows. It uses only a slice plan's kept indices of each tensor. Labels tell which elements of an activation belong to
dropped channels; these are set to zero after every operator that may have changed them.

In the small network a statistic across channels (a mean, a softmax, a layer norm) is taken over the kept channels. The
same happens here: the operator runs on the kept channels, and its result is written back to their positions. Factors
that code computes from widths, such as 1/√d, are the small network's, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.call import bound_to_names
from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import Slot, Ties
from adjoined.slicing.flow.operators import OPERATORS, Statistic, understood
from adjoined.slicing.flow.run import ALIKE, LabelFlow
from adjoined.slicing.flow.trace import label_tensors
from adjoined.slicing.model.modules import kernel_names, named_tensors
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.verify.liven import repeatable
from adjoined.slicing.verify.numbers import RANGE, NumberedCall, Numbers, numbers_in

_JOINS = ("cat", "stack", "copy_")
"""Operators that put a tensor as it is into another one; as an operand of others, whole numbers are places."""


class MaskedBase(LabelFlow):
    """One run of the base network with its dropped channels at zero.

    Args:
        model: a copy of the base network, whose tensors are masked in place.
        plan: the kept indices of each tensor.
        numbers: those that the small network's code passes to operators, if they are to replace the base's.

    Attributes:
        not_computed: module -> operator whose statistic across channels is not computed over the kept ones here.
        not_factors: calls whose replaced numbers do more than multiply or add: they choose places, or decide.
    """

    innermost = staticmethod(repeatable)

    def __init__(self, model: nn.Module, plan: SlicePlan, numbers: Numbers | None = None) -> None:
        ties = Ties()
        super().__init__(ties, Findings())
        self.not_computed: dict[str, str] = {}
        self.not_factors: set[NumberedCall] = set()
        self._numbers = {} if numbers is None else numbers.of
        self._calls = Counter[Any]()
        self._made_of: Any = WeakIdKeyDictionary()  # tensor without labels -> the calls that put their numbers into it
        tensors = named_tensors(model)
        labels = label_tensors(self, tensors, ties, kernels=kernel_names(model))
        self._kept = torch.ones(len(ties.axes), dtype=torch.bool, device="cpu")
        for name, vectors in labels.items():
            for vector, index in zip(vectors, plan.indices(name), strict=True):
                if vector is not None and index is not None:
                    self._kept[vector] = False
                    self._kept[vector[index.tensor(vector.device)]] = True
        with torch.no_grad():
            for tensor in tensors.values():
                self._mask(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator, with statistics across channels over the kept ones only; zero the dropped ones."""
        own = self._with_own_numbers(func, args)
        out = super().__torch_dispatch__(func, types, own, kwargs)
        self._note_numbers(func, own, kwargs, out, replaced=own is not args)
        args = own
        name = self.last_op
        if name not in OPERATORS or not OPERATORS[name].moves:
            outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            self._restrict(func, name, bound_to_names(func, args, kwargs or {}), outputs)
            for tensor in outputs:
                self._mask(tensor)
        return out

    # ---- numbers of the small network --------------------------------------------------------------------------------

    def _with_own_numbers(self, func: Any, args: Any) -> Any:
        """Return the arguments with the small network's numbers; the same object if they are equal."""
        if func not in self._numbers or not (numbers := numbers_in(func, args)):
            return args
        number, known = self._calls[func], self._numbers[func]
        self._calls[func] += 1
        others = known[number] if number < len(known) else {}
        if all(value == others.get(n, value) for n, value in numbers.items()):
            return args
        own = [others.get(n, value) if n in numbers else value for n, value in enumerate(args)]
        return args if func is RANGE and len(RANGE(*own)) != len(RANGE(*args)) else own  # else it counts channels

    def _note_numbers(self, func: Any, args: Any, kwargs: Any, out: Any, *, replaced: bool) -> None:
        """Follow the small network's numbers through what is made of them, until they scale an activation or choose."""
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)] if self._made_of else []
        made = [tensor for tensor in operands if tensor in self._made_of]
        calls = {call for tensor in made for call in self._made_of[tensor]}
        if replaced:
            calls.add((func, self._calls[func] - 1))
        if not calls:
            return
        elementwise = torch.Tag.pointwise in func.tags or self.last_op in ALIKE
        joins = self.last_op in _JOINS
        places = any(tensor is not args[0] and not tensor.is_floating_point() for tensor in made)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        if not results or (places and not elementwise and not joins):
            self.not_factors |= calls
        for tensor in results:
            number = tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool
            activation = self.knows(tensor) or self.values.computed(tensor)
            if activation and elementwise and number:
                continue
            if tensor.dtype == torch.bool or (activation and not replaced):
                self.not_factors |= calls
            for each in (tensor, tensor._base):  # a part of a tensor may be written
                if each is not None:
                    self._made_of[each] = calls | self._made_of.get(each, set())

    # ---- masks -------------------------------------------------------------------------------------------------------

    def keeps(self, slot: Slot) -> Tensor:
        """Return whether the small network has each element of a slot: bool, of the slot's shape."""
        return torch.where(slot < len(self._kept), self._kept[slot.clamp(max=len(self._kept) - 1)], True)

    def _mask(self, tensor: Tensor) -> None:
        """Set the elements that belong to dropped channels to zero."""
        if tensor.is_floating_point() or tensor.is_complex():
            for slot in self.slots(tensor):
                kept = self.keeps(slot)
                if not bool(kept.all()):
                    tensor.masked_fill_(~kept.to(tensor.device), 0)

    def kept_along(self, tensor: Tensor, dims: Sequence[int]) -> dict[int, Tensor]:
        """Return the kept indices of a tensor along those of these dimensions in which the small network lacks some."""
        kept = self.blocks(tensor)
        if kept is None:
            self.not_computed.setdefault(self.module, self.last_op)
            return {}
        return {d: index for d, index in kept.items() if d in dims}

    def blocks(self, tensor: Tensor) -> dict[int, Tensor] | None:
        """Return the kept indices of a tensor along every dimension in which the small network lacks some.

        None if the kept elements are not all combinations of such indices, as when two dimensions share a label.
        """
        found: dict[int, Tensor] = {}
        for slot in self.slots(tensor):
            kept = self.keeps(slot)
            if bool(kept.all()):
                continue
            block = torch.ones_like(kept)
            for d, size in enumerate(kept.shape):
                if size > 1:
                    line = kept.movedim(d, 0).reshape(size, -1).any(1)
                    block &= line.view([-1 if e == d else 1 for e in range(kept.ndim)])
                    if not bool(line.all()):
                        found[d] = line.nonzero().flatten()
            if not torch.equal(block, kept):
                return None
        return found

    # ---- statistics across channels ----------------------------------------------------------------------------------

    def note_crossing(self) -> None:
        """Record a statistic across channels that is not computed over the kept ones here."""
        if not understood(self.last_op):
            self.not_computed.setdefault(self.module, self.last_op)

    def attention_scale(self, query: Tensor) -> float | None:
        """Return 1/√D for the kept features of an attention."""
        last = query.ndim - 1
        index = self.kept_along(query, [last]).get(last)
        return None if index is None else len(index) ** -0.5

    def _restrict(self, func: Any, name: str, bound: dict[str, Any], outputs: list[Tensor]) -> None:
        """Write the result over the kept channels into the outputs of an operator that computes across channels."""
        x = bound.get("self", bound.get("input"))
        if not isinstance(x, Tensor) or not self.slots(x):
            return
        statistic = OPERATORS[name].statistic if name in OPERATORS else None
        if statistic is Statistic.REDUCTION:
            dim = bound.get("dim")
            dims = range(x.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
            if kept := self.kept_along(x, [d % x.ndim for d in dims]):
                _rerun(func, bound | {"self": narrow(x, kept)}, outputs, {})
        elif statistic is Statistic.ALONG:
            if kept := self.kept_along(x, [bound["dim"] % x.ndim]):
                _rerun(func, bound | {"self": narrow(x, kept)}, outputs, kept)
        elif statistic is Statistic.LAYER_NORM:
            self._layer_norm(func, bound, outputs[:1])
        elif statistic is Statistic.GROUP_NORM:
            self._group_norm(func, bound, outputs[:1])
        elif statistic is Statistic.BATCH_NORM and (bound.get("training") or bound.get("running_mean") is None):
            kept = self.kept_along(x, [d for d in range(x.ndim) if d != 1])  # channels there: x is a weight
            if kept:
                _rerun(func, bound | {"input": narrow(x, kept)}, outputs[:1], kept)

    def _layer_norm(self, func: Any, bound: dict[str, Any], outputs: list[Tensor]) -> None:
        x, shape = bound["input"], bound["normalized_shape"]
        first = x.ndim - len(shape)
        if kept := self.kept_along(x, range(first, x.ndim)):
            affine = {d - first: index for d, index in kept.items()}
            fewer: dict[str, Any] = {"input": narrow(x, kept)}
            fewer["normalized_shape"] = list(fewer["input"].shape[first:])
            fewer |= {each: narrow(bound[each], affine) for each in ("weight", "bias") if bound.get(each) is not None}
            _rerun(func, bound | fewer, outputs, kept)

    def _group_norm(self, func: Any, bound: dict[str, Any], outputs: list[Tensor]) -> None:
        x = bound["input"]
        if kept := self.kept_along(x, [1]):
            left = torch.bincount(kept[1] // (x.shape[1] // bound["group"]))
            left = left[left > 0]
            if bool((left != left[0]).any()):
                self.not_computed.setdefault(self.module, self.last_op)
                return
            fewer = {"input": narrow(x, kept).contiguous(), "C": len(kept[1]), "group": len(left)}
            fewer |= {each: narrow(bound[each], {0: kept[1]}) for each in ("weight", "bias") if bound[each] is not None}
            _rerun(func, bound | fewer, outputs, kept)


def narrow(tensor: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """Return the part of a tensor with these indices along these dimensions."""
    for d, index in kept.items():
        tensor = tensor.index_select(d, index.to(tensor.device))
    return tensor


def _rerun(func: Any, bound: dict[str, Any], outputs: list[Tensor], kept: dict[int, Tensor]) -> None:
    """Run an operator on other arguments and write its results into its outputs, at the kept indices."""
    by_name = {a.name for a in func._schema.arguments if a.kwarg_only}
    positional = [value for name, value in bound.items() if name not in by_name]
    result = func(*positional, **{name: value for name, value in bound.items() if name in by_name})
    parts = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
    for out, part in zip(outputs, parts, strict=False):
        for d, index in kept.items():
            shape = [out.shape[d] if e == d else size for e, size in enumerate(part.shape)]
            part = part.new_zeros(shape).index_copy_(d, index.to(part.device), part)
        out.copy_(part)
