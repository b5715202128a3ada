"""Matrix products: the inner dimensions are tied, rows and columns keep their labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, along, in_order, varying
from adjoined.slicing.flow.operators import Statistic, rule
from adjoined.slicing.flow.rules.attention import heads_of, keeps_whole_heads
from adjoined.slicing.flow.rules.pointwise import PARTS
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("mm", "bmm")
def product(state: State, call: Call) -> None:
    """(…, n, k) by (…, k, m)."""
    a, b = call["self"], call["mat2"]
    _product(state, a, b, state.slots(a), state.slots(b), None, call.out)


@rule("addmm", "baddbmm")
def product_and_sum(state: State, call: Call) -> None:
    """A product with a bias."""
    a, b = call["mat1"], call["mat2"]
    if a is None:
        a, b = call["batch1"], call["batch2"]
    _product(state, a, b, state.slots(a), state.slots(b), call["self"], call.out)


@rule("mv", "addmv", statistic=Statistic.SUM)
def product_with_vector(state: State, call: Call) -> None:
    """(n, k) by (k): the rows keep their labels."""
    matrix, vector = call["mat"] if call.name == "addmv" else call["self"], call["vec"]
    spans = [(slot, state.spans(0, slot)) for slot in state.slots(matrix)]
    rest = state.slots(vector)
    if _folded(state, 0, spans, 1, 0):
        spans = _mixed(state, 0, spans, 1, 0)
        state.pin_all(vector, PARTS)
    read, weight = state.vector([slot for slot, dims in spans if 1 in dims], 1), state.vector(rest, 0)
    if state.tie_vectors(read, weight, "reads features of fixed width") is not None:
        state.note_crossing()
    state.carry(call.out, [slot.reshape(-1) for slot, _ in spans if varying(slot) == (0,)])


@rule("linear")
def linear(state: State, call: Call) -> None:
    """(…, k) by (m, k)."""
    x, weight = call["input"], call["weight"]
    turned = [slot.transpose(0, 1) for slot in state.slots(weight)]
    _product(state, x, weight, state.slots(x), turned, call["bias"], call.out)


Spans = Sequence[tuple[Slot, set[int]]]
"""The slots of a factor, with the dimensions along which each varies in the base."""


def _product(
    state: State,
    a: Tensor,
    b: Tensor,
    a_slots: Sequence[Slot],
    b_slots: Sequence[Slot],
    bias: Tensor | None,
    out: Tensor,
) -> None:
    """Tie what (…, n, k) and (…, k, m) are summed over; the result has the first's rows and the second's columns."""
    spans_a = [(slot, state.spans(0, slot)) for slot in a_slots]
    spans_b = [(slot, state.spans(1, slot)) for slot in b_slots]
    carried = _whole_heads(state, a, b, spans_a, spans_b)
    if not carried:
        spans_a, spans_b = _tie_inner(state, a, b, spans_a, spans_b)
    for slot, dims in spans_a:
        if varying(slot) and a.ndim - 1 not in dims:  # the same in every head of an attention
            carried.append(state.collapse(slot, range(1, a.ndim)) if len(varying(slot)) > 1 else slot)
    of_a = len(carried)
    for slot, dims in spans_b:  # labels along the batch alone: the first factor may have the same channels there
        if b.ndim == 3 and dims == {0}:
            same = next((n for n, other in enumerate(carried[:of_a]) if _in_same_places(other, slot)), None)
            if same is not None:
                carried[same] = state.tie(carried[same], slot)
            elif not any(0 in varying(other) for other in carried):
                carried.append(slot)
    state.carry(out, _with_columns(state, b, spans_b, carried, bias, out))


def _whole_heads(state: State, a: Tensor, b: Tensor, spans_a: Spans, spans_b: Spans) -> list[Slot]:
    """If the heads of an attention are kept or dropped whole, tie them and return their slots."""
    by_head = [_both(spans_a, 0, a.ndim - 1), _both(spans_b, 0, b.ndim - 2)] if b.ndim == 3 else [[]]
    if not all(by_head) or not keeps_whole_heads(state, by_head[0][0], 0, a.ndim - 1):
        return []
    heads = heads_of(state, [slot for slots in by_head for slot in slots], 0)
    state.note_read(heads[0])
    return heads


def _tie_inner(state: State, a: Tensor, b: Tensor, spans_a: Spans, spans_b: Spans) -> tuple[Spans, Spans]:
    """Tie the labels along the inner dimensions of two factors, and return the remaining slots of each."""
    row, inner_a, inner_b, column = a.ndim - 2, a.ndim - 1, b.ndim - 2, b.ndim - 1
    # A weight that all rows of `a` share reads what lies along them; a graph's matrices (kinds, nodes) mix them.
    weight = state.values.computed(a) and not state.values.computed(b) and b.shape[column] > 1
    shared = weight and sum(inner_b in dims for _, dims in spans_b) < 2
    in_rows = not state.in_linear and not shared and _folded(state, 0, spans_a, inner_a, row)
    if in_rows or _folded(state, 1, spans_b, inner_b, column):
        spans_a = _mixed(state, 0, spans_a, inner_a, row)
        spans_b = _mixed(state, 1, spans_b, inner_b, column)
    read = state.vector([slot for slot, dims in spans_a if inner_a in dims], inner_a)
    weight_in = state.vector([slot for slot, dims in spans_b if inner_b in dims], inner_b)
    if weight_in is not None and read is None:
        state.note_read(weight_in)
        state.tie_vectors(None, state.of_fixed_input(weight_in, a, inner_a), "reads features of fixed width")
    else:
        state.note_read(state.tie_vectors(read, weight_in, "reads features of fixed width"))
    rows, columns = ([s for s, _ in spans if d in varying(s)] for spans, d in ((spans_a, row), (spans_b, column)))
    if not state.in_linear:
        state.note_sum(weight_in if read is None else read, [*rows, *columns], product=True)
    _note_channels(state, _Factor(a, read, rows), _Factor(b, weight_in, columns))
    return spans_a, spans_b


def _in_same_places(a: Slot, b: Slot) -> bool:
    """Return whether two slots change along the batch alone, and at the same places; several may be folded into it."""
    return a.shape == b.shape and varying(a) == (0,) and torch.equal(in_order(a)[1], in_order(b)[1])


def _with_columns(
    state: State, b: Tensor, spans_b: Spans, carried: list[Slot], bias: Tensor | None, out: Tensor
) -> list[Slot]:
    """Return the slots of the result: those carried so far, and the columns of `b`, tied to the bias."""
    column = b.ndim - 1
    of_heads = [slot for slot in carried if varying(slot) == (0,)]
    values = _both(spans_b, 0, column) if b.ndim == 3 and of_heads else []
    if values:  # attention weights have a label for each head, and so have the values and the result
        heads_of(state, [*of_heads, *values], 0)
        return [slot for slot in carried if varying(slot) != (0,)] + values
    across = [slot for slot, dims in spans_b if column in dims and column in varying(slot)]
    if len(across) > 1 and (bias is None or not state.slots(bias)):  # several dimensions folded into one
        lines = [state.collapse(slot, (column,)).reshape(-1) for slot in across]
        return carried + [along(line, out.ndim - 1, out.ndim) for line in lines]
    columns = state.vector(across, column)
    if bias is not None and state.slots(bias):
        columns = state.tie_vectors(columns, state.vector(state.slots(bias), bias.ndim - 1), "its bias has fixed width")
    return carried + ([along(columns, out.ndim - 1, out.ndim)] if columns is not None else [])


def _folded(state: State, operand: int, spans: Spans, inner: int, other: int) -> bool:
    """Return whether labels vary along the summed dimension and another one at once, as in (experts, channels)."""
    return any(state.is_folded(operand, slot, {inner, other}) for slot, _ in spans)


def _mixed(state: State, operand: int, spans: Spans, inner: int, other: int) -> Spans:
    """Keep all parts of a fold that a product adds up, such as experts that one convolution computes.

    Every part keeps the same channels.
    """
    stay: list[tuple[Slot, set[int]]] = []
    for slot, dims in spans:
        if state.is_folded(operand, slot, {inner, other}):
            stay.append((state.collapse(slot, [d for d in range(slot.ndim) if d != inner]), dims - {inner}))
            continue
        if inner in dims:
            state.pin(slot, PARTS)
        stay.append((slot, dims))
    return stay


class _Factor(NamedTuple):
    """A factor of a product: the labels that are summed over, and its slots along the remaining dimension."""

    tensor: Tensor
    read: Tensor | None
    written: Sequence[Slot]


def _note_channels(state: State, a: _Factor, b: _Factor) -> None:
    """Record which dimensions of a product with a weight are channels, and which are positions.

    The other factor depends on the input. If both have labels along the inner dimension, the product sums over channels
    and writes channels. If the other factor's channels lie along another dimension, it sums over positions and writes
    positions, unless the weight is a linear layer's, which turns whatever it reads into features.
    """
    if state.in_linear:
        if not state.is_buffer(a.tensor):  # a table of coordinates has no channels
            state.note_channels(a.read, b.read)
        return state.note_channels(*b.written)
    if state.values.computed(a.tensor) == state.values.computed(b.tensor):
        return None
    weight, other = (b, a) if state.values.computed(a.tensor) else (a, b)
    state.note_channels(a.read, b.read)
    if other.read is not None:
        state.note_channels(*(weight.written if state.is_stored(weight.tensor) else ()))
    elif any(varying(slot) for slot in state.slots(other.tensor)):
        for slot in weight.written:
            state.pin(slot, Reason(Kind.PLACES, "a matrix product along positions"))
    return None


def _both(spans: Spans, first: int, second: int) -> list[Slot]:
    """Return the slots that vary along both dimensions."""
    return [slot for slot, dims in spans if {first, second} <= dims]


@rule("_trilinear")
def trilinear(state: State, call: Call) -> None:
    """nn.Bilinear: a product of three tensors, each with new dimensions, summed over some of them."""
    slots: list[Slot] = []
    for name, new in (("i1", "expand1"), ("i2", "expand2"), ("i3", "expand3")):
        for slot in state.slots(call[name]):
            for dim in sorted(call[new]):
                slot = slot.unsqueeze(dim)
            slots.append(slot)
    slots = state.unite(slots)
    summed = sorted(call["sumdim"], reverse=True)
    carried = []
    for slot in slots:
        if set(varying(slot)) & set(summed):
            state.note_read(slot)
        if not set(varying(slot)) <= set(summed):
            for dim in summed:
                slot = state.collapse(slot, [d for d in range(slot.ndim) if d != dim]).squeeze(dim)
            carried.append(slot)
    state.carry(call.out, carried)
