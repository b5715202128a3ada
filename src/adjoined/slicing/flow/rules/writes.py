"""Writes into tensors: the target gets the labels of what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import LABEL, NeedsValues, Slot, squeeze_equal, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.rules.movement import AS_INDICES
from adjoined.slicing.flow.rules.pointwise import left_padded, tie_elementwise
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("copy_")
def copy(state: State, call: Call) -> None:
    """The target gets the labels of what is copied; a parameter or buffer keeps its own, tied to them."""
    target, source = call["self"], call["src"]
    if state.slots(source) and not state.is_stored(target):
        state.carry(target, [left_padded(slot, target.ndim) for slot in state.slots(source)])
    else:
        tie_elementwise(state, [target, source], target)


@rule("resize_")
def resize(state: State, call: Call) -> None:
    """A resized tensor is written next, and gets its labels then."""
    x = call["self"]
    state.carry(x, [slot for slot in state.slots(x) if torch.broadcast_shapes(slot.shape, x.shape) == x.shape])


@rule("slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter")
def scatter_part(state: State, call: Call) -> None:
    """Like `copy_`, out of place."""
    positional = [value for name, value in call.args.items() if name not in ("self", "src")]

    def put(base: Tensor, part: Tensor) -> Tensor:
        return call.op(base, part, *positional)

    _write(state, call, call["src"], put)


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def put_by_index(state: State, call: Call) -> None:
    """`x[a, b] = values`, where neither indices nor values of the input say which channels are meant.

    A mask that covers all of `x` is tied to it. What is written is tied to `x` along the dimensions after the indices;
    along those of the indices, it goes where they point.
    """
    x, values, indices = call["self"], call["values"], [i for i in call["indices"] if i is not None]
    masks = [index.dtype in (torch.bool, torch.uint8) for index in indices]
    if any(state.slots(index) for index in indices):
        if masks == [True] and indices[0].shape == x.shape and values.numel() == 1:
            return tie_elementwise(state, [x, indices[0]], call.outputs[0])
        for slot in (slot for tensor in call.tensors for slot in state.slots(tensor)):
            state.pin(slot, Reason(Kind.BY_VALUE, "written to positions that depend on channels"))
        return state.carry(call.outputs[0], [])
    # The indices replace `picked` dimensions of x, and run along `places` dimensions of the values.
    picked = sum(index.ndim if mask else 1 for index, mask in zip(indices, masks, strict=True))
    places = max(1 if mask else index.ndim for index, mask in zip(indices, masks, strict=True))
    shape = [1] * (places + x.ndim - picked - values.ndim) + list(values.shape)
    slots = [slot.reshape([1] * (len(shape) - slot.ndim) + list(slot.shape)) for slot in state.slots(values)]
    leading = call["indices"][: len(indices)] == indices
    across = [s for s in state.slots(x) if not leading or any(d < picked for d in varying(s))]
    across += [s for s in slots if not leading or any(d < places for d in varying(s))]
    if across and any(map(state.values.computed, indices)):
        return _keep_wide(state, call, across)
    if across:
        if any(index.is_meta for index in indices):
            raise NeedsValues(call.name)
        where = [None if index is None else index.cpu() for index in call["indices"]]
        if values.numel() == 1 and not call["accumulate"]:
            return _fill(state, call, where)
        return _write(state, call, values, lambda base, part: torch.ops.aten.index_put(base, where, part))
    written = torch.empty([1] * picked + shape[places:], device="meta")
    state.carry(written, [slot.reshape([1] * picked + list(slot.shape[places:])) for slot in slots])
    return tie_elementwise(state, [x, written], call.outputs[0])


@rule("index_fill", "index_fill_")
def fill_by_index(state: State, call: Call) -> None:
    """`x[:, a] = 1`, to which torch turns some assignments: the target keeps its labels."""
    x, index, dim = call["self"], call["index"], call["dim"] % call["self"].ndim
    state.pin_all(index, AS_INDICES)
    across = [slot for slot in state.slots(x) if dim in varying(slot)]
    if not across:
        return state.carry(call.outputs[0], state.slots(x))
    if state.values.computed(index):
        return _keep_wide(state, call, across)
    if index.is_meta:
        raise NeedsValues(call.name)
    return _fill(state, call, [None] * dim + [index.cpu()])


def _keep_wide(state: State, call: Call, across: Sequence[Slot]) -> None:
    """Pin the labels along which values pick the places; the target keeps the others."""
    for slot in across:
        state.pin(slot, Reason(Kind.BY_VALUE, "written to positions picked by values"))
    state.carry(call.outputs[0], [s for s in state.slots(call["self"]) if not any(s is other for other in across)])


def _fill(state: State, call: Call, where: list[Tensor | None]) -> None:
    """Let the target keep its labels where one number is written; the small network must write it into their places."""
    x = call["self"]
    _check_places(state, x, lambda labels: torch.ops.aten.index(labels, where))
    state.carry(call.outputs[0], state.slots(x))


def _check_places(state: State, x: Tensor, places: Callable[[Tensor], Tensor]) -> None:
    """Record which channels of a tensor are written into; the small network must write into the same ones."""
    for number, slot in enumerate(state.slots(x)):
        state.check_cut(state.call_site, number, [torch.unique(places(slot.expand(x.shape)))], slot)


def _write(state: State, call: Call, values: Tensor, put: Callable[[Tensor, Tensor], Tensor]) -> None:
    x = call["self"]
    old, new = (sorted(state.slots(tensor), key=varying) for tensor in (x, values))
    here = put(torch.zeros(x.shape, dtype=torch.bool), torch.ones(values.shape, dtype=torch.bool))
    _check_places(state, x, lambda labels: labels[here])
    written = []
    for base, part in zip_longest(old, new, fillvalue=torch.zeros((), dtype=LABEL)):
        result = put(base.expand(x.shape).clone(), part.expand(values.shape))
        if call["accumulate"]:
            state.tie(base, result)
        written.append(squeeze_equal(result))
    state.carry(call.outputs[0], written)
