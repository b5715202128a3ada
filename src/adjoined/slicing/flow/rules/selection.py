"""Sorting, and selection and writes by tables of indices along one dimension."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.rules.movement import AS_INDICES
from adjoined.slicing.flow.rules.pointwise import tie_elementwise
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("sort", "topk", "kthvalue", "mode", "median", "nanmedian", "argsort", "msort", "cummax", "cummin")
def ordered(state: State, call: Call) -> None:
    """Along positions, each channel is sorted on its own; along all channels, values decide their order: full width.

    Groups of channels that are each sorted separately, such as pairs, are kept or dropped whole.
    """
    x = call.tensors[0]
    dim = call["dim"]
    dims = range(x.ndim) if dim is None and call.name in ("median", "nanmedian") else [-1 if dim is None else dim]
    dims = {0 if call.name == "msort" else d % x.ndim for d in dims}
    carried = state.outside(state.slots(x), dims, Reason(Kind.BY_VALUE, "sorted by value"))
    for out in call.outputs:
        gone = x.ndim - out.ndim
        state.carry(out, [slot.squeeze(sorted(dims)[0]) if gone == 1 else slot for slot in carried] if gone < 2 else [])


@rule("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def look_up(state: State, call: Call) -> None:
    """A table (words, features) is read row by row: the features are channels, the words are not."""
    weight, indices, out = call["weight"], call["indices"], call.outputs[0]
    state.pin_all(indices, AS_INDICES)
    rows = Reason(Kind.BY_VALUE, "rows of a table, read by their numbers")
    features = state.vector(state.outside(state.slots(weight), [0], rows), 1)
    state.carry_along(out, out.ndim - 1, features)


@rule("gather")
def gather(state: State, call: Call) -> None:
    """out[i][j] = self[i][index[i][j]]: along positions, channels stay; along channels, the indices decide."""
    x, index, dim = call["self"], call["index"], call["dim"] % max(call["self"].ndim, 1)
    slots = _along_positions(state, [*state.slots(x), *state.slots(index)], dim, "selected by value")
    state.carry(call.out, [slot for slot in slots if _fits(slot, call.out)])


@rule(
    "scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "index_add",
    "index_add_", "index_copy", "index_copy_", "index_reduce", "index_reduce_",
)  # fmt: skip
def scatter(state: State, call: Call) -> None:
    """self[i][index[i][j]] = src[i][j]: along positions, channels stay; along channels, the indices decide."""
    tensors = [call[name] for name in ("self", "src", "source") if isinstance(call[name], Tensor)]
    if call["index"].ndim == call["self"].ndim:
        tensors.append(call["index"])
    else:
        state.pin_all(call["index"], AS_INDICES)
    slots = [slot for tensor in tensors for slot in state.slots(tensor)]
    dim = call["dim"] % max(call["self"].ndim, 1)
    state.carry(call.outputs[0], _along_positions(state, slots, dim, "written to positions that depend on values"))


def _along_positions(state: State, slots: Sequence[Slot], dim: int, otherwise: str) -> list[Slot]:
    """Return the union of the slots that do not vary along a dimension; the others stay at full width."""
    return state.unite(state.pin_others(slots, lambda s: dim not in varying(s), Reason(Kind.BY_VALUE, otherwise)))


@rule("masked_fill", "masked_fill_")
def filled(state: State, call: Call) -> None:
    """Some elements get one value; positions stay, and the mask is tied to what it covers."""
    tie_elementwise(state, [call["self"], call["mask"]], call.outputs[0])


def _fits(slot: Slot, out: Tensor) -> bool:
    return all(size in (1, out.shape[d]) for d, size in enumerate(slot.shape))
