"""Sorting, selection by value, and moves by tables of indices along one dimension."""

from __future__ import annotations

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import LABEL, NeedsValues, Slot, along, squeeze_equal, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.rules.pointwise import tie_elementwise
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("sort", "topk", "kthvalue", "mode", "median", "nanmedian", "argsort", "msort", "cummax", "cummin")
def ordered(state: State, call: Call) -> None:
    """Along positions, each channel is sorted on its own; along all channels, values decide their order: full width.

    Groups of channels that are sorted each in itself, such as pairs, are kept or dropped whole.
    """
    x = call.tensors[0]
    dim = call["dim"]
    dims = range(x.ndim) if dim is None and call.name in ("median", "nanmedian") else [-1 if dim is None else dim]
    dims = {0 if call.name == "msort" else d % x.ndim for d in dims}
    carried = []
    for slot in state.slots(x):
        if varying(slot) and set(varying(slot)) <= dims:
            state.pin(slot, Reason(Kind.BY_VALUE, "sorted by value"))
        else:
            carried.append(state.collapse(slot, [d for d in range(slot.ndim) if d not in dims]))
    for out in call.outputs:
        gone = x.ndim - out.ndim
        state.carry(out, [slot.squeeze(sorted(dims)[0]) if gone == 1 else slot for slot in carried] if gone < 2 else [])


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def look_up(state: State, call: Call) -> None:
    """Rows of a table (words, features): the features are channels, the words are not."""
    weight, indices, out = call["weight"], call["indices"], call.outputs[0]
    for slot in state.slots(indices):
        state.pin(slot, Reason(Kind.BY_VALUE, "used as indices"))
    features = state.vector([slot for slot in state.slots(weight) if 1 in varying(slot)], 1)
    state.carry(out, [] if features is None else [along(features, out.ndim - 1, out.ndim)])


@rule("gather")
def gather(state: State, call: Call) -> None:
    """out[i][j] = self[i][index[i][j]]: labels along the dimension follow the indices, the others stay."""
    x, index, dim = call["self"], call["index"], call["dim"] % max(call["self"].ndim, 1)
    moved = [slot for slot in state.slots(x) if dim in varying(slot)]
    stay = [slot for slot in state.slots(x) if dim not in varying(slot)]
    chosen = [slot for slot in state.slots(index) if dim not in varying(slot)]
    if moved and not _constant(state, index):
        for slot in moved:
            state.pin(slot, Reason(Kind.BY_VALUE, "selected by value"))
        moved = []
    carried = state.unite(stay + chosen)
    for slot in moved:
        rows = slot.expand([slot.shape[d] if d == dim else size for d, size in enumerate(index.shape)])
        carried.append(squeeze_equal(rows.gather(dim, index.cpu())))
    state.carry(call.out, [slot for slot in carried if _fits(slot, call.out)])


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(state: State, call: Call) -> None:
    """self[i][index[i][j]] = src[i][j]: along positions, channels stay; along channels, they move to the indices."""
    x, index, dim = call["self"], call["index"], call["dim"] % max(call["self"].ndim, 1)
    src = call["src"] if isinstance(call["src"], Tensor) else None
    sources = [slot for tensor in (src, index) if tensor is not None for slot in state.slots(tensor)]
    across = [slot for slot in [*state.slots(x), *sources] if dim in varying(slot)]
    if across and not (_constant(state, index) and src is not None):
        for slot in across:
            state.pin(slot, Reason(Kind.BY_VALUE, "scattered to positions that depend on values"))
        across = []
    carried = state.unite([slot for slot in [*state.slots(x), *sources] if dim not in varying(slot)])
    if across and src is not None:
        labels = [_first(state, tensor, dim) for tensor in (x, src)]
        base = x.new_zeros(x.shape, dtype=labels[0].dtype, device="cpu") + labels[0]
        put = labels[1].expand(src.shape)[tuple(slice(0, size) for size in index.shape)]
        if call.name.startswith(("scatter_add", "scatter_reduce")):
            state.tie(base.gather(dim, index.cpu()), put)
        carried.append(squeeze_equal(base.scatter(dim, index.cpu(), put)))
    state.carry(call.outputs[0], carried)


@rule("index_add", "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_")
def put_rows(state: State, call: Call) -> None:
    """self[:, index] = source along one dimension."""
    x, index, source, dim = call["self"], call["index"], call["source"], call["dim"] % max(call["self"].ndim, 1)
    across = [slot for slot in [*state.slots(x), *state.slots(source)] if dim in varying(slot)]
    carried = state.unite([s for s in [*state.slots(x), *state.slots(source)] if dim not in varying(s)])
    if across and not _constant(state, index):
        for slot in across:
            state.pin(slot, Reason(Kind.BY_VALUE, "placed at positions that depend on values"))
    elif across:
        base, put = (_first(state, tensor, dim) for tensor in (x, source))
        shape = [max(a, b) for a, b in zip(base.shape, put.shape, strict=True)]
        base = base.expand([x.shape[d] if d == dim else size for d, size in enumerate(shape)])
        put = put.expand([source.shape[d] if d == dim else size for d, size in enumerate(shape)])
        if not call.name.startswith("index_copy"):
            state.tie(base.index_select(dim, index.cpu()), put)
            base, put = base, put.where(put != 0, base.index_select(dim, index.cpu()))
        carried.append(squeeze_equal(base.index_copy(dim, index.cpu(), put)))
    state.carry(call.outputs[0], carried)


@rule("index_fill", "index_fill_", "masked_fill", "masked_fill_")
def filled(state: State, call: Call) -> None:
    """Some elements get one value; positions stay, and a mask is tied to what it covers."""
    masks = [call["mask"]] if isinstance(call["mask"], Tensor) else []
    for slot in state.slots(call["index"]):
        state.pin(slot, Reason(Kind.BY_VALUE, "used as indices"))
    tie_elementwise(state, [call["self"], *masks], call.outputs[0])


def _constant(state: State, index: Tensor) -> bool:
    """Return whether an index is the same in both networks, as it depends on no channel; its values are needed then."""
    for slot in state.slots(index):
        state.pin(slot, Reason(Kind.BY_VALUE, "used as indices"))
    if state.slots(index) or state.values.computed(index):
        return False
    if index.is_meta:
        raise NeedsValues("index")
    return True


def _first(state: State, tensor: Tensor, dim: int) -> Slot:
    """Return the labels of a tensor along a dimension, zeros where it has none."""
    found = [slot for slot in state.slots(tensor) if dim in varying(slot)]
    return found[0] if found else torch.zeros([1] * tensor.ndim, dtype=LABEL)


def _fits(slot: Slot, out: Tensor) -> bool:
    return all(size in (1, out.shape[d]) for d, size in enumerate(slot.shape))
