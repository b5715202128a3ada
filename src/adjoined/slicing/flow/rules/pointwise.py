"""Pointwise operators: operands are tied element by element, with broadcasting."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, distinct, varying
from adjoined.slicing.flow.operators import UNKNOWN, Statistic, rule
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason

PARTS = Reason(Kind.PLACES, "counts the parts that a sum mixes")


@rule(
    "add", "where", "lerp", "addcmul", "addcdiv", "_prelu_kernel", "prelu", "maximum", "minimum", "hypot",
    "complex", "polar",
)  # fmt: skip
def pointwise(state: State, call: Call) -> None:
    """Tie all tensor operands; the result carries their union."""
    tie_elementwise(state, call.tensors, call.outputs[0])


def tie_elementwise(state: State, operands: Sequence[Tensor], out: Tensor) -> None:
    """Tie operands that broadcast to the shape of `out`, and give the result the union of their slots.

    If one operand has labels along a dimension, and another is larger than 1 there without labels, that dimension has a
    fixed width. Channels that vary along others, too, such as heads with features, are dropped along those only.
    """
    ndim = out.ndim
    slots = [[left_padded(slot, ndim) for slot in state.slots(tensor)] for tensor in operands]
    if sum(map(bool, slots)) > 1:
        slots = _weighed(state, [state.untangle(of_one) for of_one in slots])
        _note_rows(state, operands, slots, out)
    labelled = [{d for slot in of_one for d in varying(slot)} for of_one in slots]
    every = [slot for of_one in slots for slot in of_one]
    united = state.unite(every) if sum(map(bool, slots)) > 1 else every
    for tensor, dims in zip(operands, labelled, strict=True):
        united = beside_fixed(state, united, {d + ndim - tensor.ndim for d in fixed_dims(state, tensor)} - dims)
    state.carry(out, united)


def fixed_dims(state: State, tensor: Tensor) -> set[int]:
    """Return the dimensions along which the elements of a tensor may differ."""
    uneven = state.differs_along(tensor)
    sizes = enumerate(zip(tensor.shape, tensor.stride(), strict=True))  # stride 0: expanded
    return {d for d, (size, stride) in sizes if size > 1 and stride and d in uneven}


def beside_fixed(state: State, slots: list[Slot], fixed: set[int]) -> list[Slot]:
    """Pin the slots along dimensions in which another operand has no labels, and return the others.

    Channels that vary along others, too, such as heads with features, are dropped along those only.
    """
    left: list[Slot] = []
    for slot in slots:
        if not (fixed & set(varying(slot)) and fixed & state.tied_along(slot)):
            left.append(slot)
        elif others := set(varying(slot)) - fixed:
            state.collapse(slot, sorted(others))
            left.append(slot)
        else:  # now of fixed width
            state.pin(slot, Reason(Kind.FIXED_WIDTH, "combined with a tensor of fixed width"))
    return left


def _note_rows(state: State, operands: Sequence[Tensor], slots: Sequence[Sequence[Slot]], out: Tensor) -> None:
    """Record channels that meet several rows of a weight, such as class prototypes: a product, written out."""
    wide = [{d for d in range(-tensor.ndim, 0) if tensor.shape[d] > 1} for tensor in operands]
    for x, of_x, along_x in zip(operands, slots, wide, strict=True):
        for weight, of_weight, along_weight in zip(operands, slots, wide, strict=True):
            if along_weight - along_x and state.values.computed(x) and not state.values.computed(weight):
                both = {d for slot in of_weight for d in varying(slot)}
                for slot in of_x:
                    if both & set(varying(slot)):
                        state.note_read(slot)


def _weighed(state: State, slots: list[list[Slot]]) -> list[list[Slot]]:
    """Keep all parts of a fold that another operand weights, if they cannot be dropped whole.

    One operand has labels along the parts (a gate for each expert), another along the parts and a second dimension at
    once (experts, channels). Usually they are tied, and whole parts are dropped. If a sum over the parts ties all of
    them, the model is traced again, and every part stays, with the same channels.
    """
    site = state.call_site
    if not state.strict and (found := _gate(slots)) is not None:
        operand, gate = found
        (dim,), labels = varying(gate), distinct(gate)
        if state.slices_inside(f"{site}", len(labels), 1):  # parts of one channel each: whole, unless tied
            state.findings.mixed[site] = operand, dim
        else:
            state.findings.weighed[site] = labels
    if site not in state.findings.mixed:
        return slots
    operand, dim = state.findings.mixed[site]
    for slot in slots[operand]:
        if varying(slot) == (dim,):
            state.pin(slot, PARTS)
    inside = [d for d in range(max((slot.ndim for of_one in slots for slot in of_one), default=0)) if d != dim]
    return [
        of_one if number == operand else [state.collapse(slot, inside) for slot in of_one]
        for number, of_one in enumerate(slots)
    ]


def _gate(slots: Sequence[Sequence[Slot]]) -> tuple[int, Slot] | None:
    """Return an operand and its slot along one dimension that another operand's slot combines with a second one."""
    for number, of_one in enumerate(slots):
        others = [varying(slot) for other in slots if other is not of_one for slot in other]
        for slot in of_one:
            dims = varying(slot)
            if len(dims) == 1 and any(len(other) > 1 and dims[0] in other for other in others):
                return number, slot
    return None


def left_padded(slot: Slot, ndim: int) -> Slot:
    """Return a slot with this many dimensions, adding ones of size 1 on the left."""
    return slot.reshape([1] * (ndim - slot.ndim) + list(slot.shape))


@rule(
    "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_", "normal", "normal_", "uniform_",
    "exponential_", "log_normal_", "cauchy_", "geometric_", "random_", "poisson", "binomial", "_standard_gamma",
    "rrelu_with_noise", "rrelu_with_noise_",
)  # fmt: skip
def draw(state: State, call: Call) -> None:
    """Draws an element for each of its operand, by chance or from a generator whose seed may fix them all."""
    if call["generator"] is not None:
        for tensor in call.tensors:
            state.pin_all(tensor, Reason(Kind.FIXED_WIDTH, "drawn from a separate generator"))
    tie_elementwise(state, call.tensors, call.outputs[0])


@rule(
    "clone", "detach", "alias", "_to_copy", "lift_fresh", "dropout", "native_dropout", "zeros_like", "ones_like",
    "full_like", "empty_like", "hardswish", "hardswish_", "hardtanh", "hardtanh_", "zero_", "fill_", "contiguous",
    "_pin_memory", "native_dropout_backward",
)  # fmt: skip
@rule("cumsum", "cumprod", "logcumsumexp", statistic=Statistic.ALONG)
def same(state: State, call: Call) -> None:
    """Operators that change neither the shape nor the position of any element."""
    source = call.tensors[0]
    for out in call.outputs:
        if out.shape == source.shape:
            state.carry(out, state.slots(source))


@rule("tril", "triu", "tril_", "triu_")
def triangle(state: State, call: Call) -> None:
    """Positions stay; which elements become zero depends on the places of rows and columns among the others."""
    x, diagonal = call["self"], call["diagonal"] or 0
    dims = (x.ndim - 2, x.ndim - 1)
    slots = state.pin_others(
        state.slots(x), lambda slot: not set(dims) <= set(varying(slot)), Reason(Kind.TWO_AT_ONCE, "rows and columns")
    )
    lines = [state.vector((slot for slot in slots if d in varying(slot)), d) for d in dims]
    if not state.strict:
        state.findings.triangles[state.call_site] = [
            [0] * x.shape[d] if line is None else line.tolist() for d, line in zip(dims, lines, strict=True)
        ]
    else:
        rows, columns = (
            torch.tensor([place for place, label in enumerate(line) if not label or state.has(label)])
            for line in state.findings.triangles.get(state.call_site, [[0] * x.shape[d] for d in dims])
        )
        here, there = (torch.arange(x.shape[d]) for d in dims)
        agree = (len(rows), len(columns)) == (len(here), len(there)) and torch.equal(
            columns <= rows[:, None] + diagonal, there <= here[:, None] + diagonal
        )
        if not agree:
            labels = [label for line in lines if line is not None for label in distinct(line)]
            state.refuse(f"other places lie beside the diagonal than in the base network, in {state.here}", labels)
    state.carry(call.outputs[0], slots)


@rule("as_strided", "as_strided_")
def restrided(state: State, call: Call) -> None:
    """A change of memory format keeps the positions of elements; the effect of any other call is unknown."""
    x, out = call["self"], call.out
    if out.shape == x.shape and call["storage_offset"] in (None, x.storage_offset()):
        state.carry(out, state.slots(x))
    else:
        unknown(state, call)


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "_safe_softmax", statistic=Statistic.ALONG)
def softmax(state: State, call: Call) -> None:
    """Positions stay; over a labelled dimension it is a statistic across channels."""
    x = call["self"]
    dim = call["dim"] % x.ndim
    for slot in state.slots(x):
        if dim in varying(slot):
            state.note_crossing()
            state.note(state.findings.shares, slot)
            state.note_statistic([slot], call.outputs)
    state.carry(call.outputs[0], state.slots(x))


@rule(UNKNOWN)
def unknown(state: State, call: Call) -> None:
    """No rule: all incoming channels stay at full width, and nothing is known about the results."""
    for tensor in call.tensors:
        state.pin_all(tensor, Reason(Kind.NO_RULE, f"no rule for the operator {call.name}"))
    for out in call.outputs:
        state.carry(out, [])
