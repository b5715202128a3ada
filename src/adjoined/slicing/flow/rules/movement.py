"""Data movement: the same operator runs on the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import NeedsValues, Slot, reshaped, squeeze_equal, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.sizes import RESHAPES
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason

_MASKS = (torch.bool, torch.uint8)

AS_INDICES = Reason(Kind.BY_VALUE, "used as indices")

CUTS = (
    "slice", "split", "split_with_sizes", "select", "unbind", "narrow", "chunk", "index", "unsafe_split",
    "unsafe_split_with_sizes", "tensor_split", "index_select",
)  # fmt: skip


@rule(
    *RESHAPES, *CUTS, "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "flip", "roll", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold", "movedim", "diagonal",
    "repeat_interleave", "slice_copy", "rot90", moves=True,
)  # fmt: skip
def move(state: State, call: Call) -> None:
    """Run the operator on every slot; record where a labelled dimension is cut or folded."""
    source, outputs = call.tensors[0], call.outputs
    cut = state.call_site
    others = call.tensors[1:]
    for index in others:
        state.pin_all(index, AS_INDICES)
    picked = _picked_by_value(state, call)
    if state.slots(source) and any(index.is_meta for index in others):
        raise NeedsValues(call.name)
    carried: list[list[Slot]] = [[] for _ in outputs]
    for number, slot in enumerate(state.slots(source)):
        if picked & set(varying(slot)):
            state.pin(slot, Reason(Kind.BY_VALUE, "indexed by values that the network computes"))
            continue
        results = moved(call, slot, source)
        if results is None:
            state.check_wide(slot)
            state.pin(slot, Reason(Kind.NO_RULE, f"no rule for {call.name} on these shapes"))
            continue
        results = [squeeze_equal(result) for result in results]
        for piece, result in enumerate(results):
            carried[piece].append(state.renew(cut, len(results) * number + piece, result))
        if call.name in RESHAPES:
            folds = len(varying(results[0])) > len(varying(slot))
            if folds or (cut, number) in state.findings.folded:
                state.check_fold(cut, number, results[0])
            if folds and not state.strict:
                state.findings.folds.append((cut, results[0]))
        elif call.name in CUTS:
            state.check_cut(cut, number, results, slot)
            if len(results) > 1 or results[0].numel() != slot.numel():  # otherwise nothing is cut off
                state.note_pieces(cut, 0, results)
    for out, slots in zip(outputs, carried, strict=True):
        state.carry(out, slots)


@rule("transpose_", "t_", "unsqueeze_", "swapdims_", "swapaxes_")
def move_in_place(state: State, call: Call) -> None:
    """The tensor's dimensions have changed in place; its slots still have the old ones."""
    numbers = [value for name, value in call.args.items() if name != "self"]
    name = call.name.rstrip("_")
    state.carry(call.out, [getattr(slot, name)(*numbers) for slot in state.slots(call["self"])])


@rule("view_as_complex", "view_as_real")
def pairs(state: State, call: Call) -> None:
    """(…, 2) real numbers are (…) complex ones; the two parts of a number are not channels."""
    x, out = call["self"], call.out
    carried = []
    for slot in state.slots(x):
        if out.ndim > x.ndim:
            carried.append(slot.unsqueeze(-1))
        elif x.ndim - 1 in varying(slot):
            state.pin(slot, Reason(Kind.TWO_AT_ONCE, "real and imaginary parts"))
        else:
            carried.append(slot.squeeze(-1))
    state.carry(out, carried)


@rule("_pack_padded_sequence")
def pack(state: State, call: Call) -> None:
    """Steps of sequences (N, T, …) or (T, N, …) become rows (all steps, …); features stay."""
    along_sequences = Reason(Kind.NO_RULE, "packed along the sequences")
    kept = state.pin_others(state.slots(call["input"]), lambda slot: not {0, 1} & set(varying(slot)), along_sequences)
    state.carry(call.outputs[0], [slot[0] for slot in kept])


def moved(call: Call, slot: Slot, source: Tensor) -> list[Tensor] | None:
    """Return the operator's results on the labels; None if it does not accept them."""
    if call.name in RESHAPES:
        return [reshaped(slot, source.shape, call.out.shape)]
    labels = slot.expand(source.shape)
    values = dict(call.args)
    values[next(name for name, value in values.items() if isinstance(value, Tensor))] = labels
    values = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, values)
    for name in {"indices", "index"} & values.keys():
        values[name] = tree_map(_that_picks, values[name])
    by_name = {argument.name for argument in call.op._schema.arguments if argument.kwarg_only}
    positional = [value for name, value in values.items() if name not in by_name]
    try:
        out: Any = call.op(*positional, **{name: values[name] for name in by_name})
    except (RuntimeError, TypeError, ValueError):
        return None
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _that_picks(index: Any) -> Any:
    """Return an index that picks one place instead of none, which would hide labels along other dimensions."""
    if not isinstance(index, Tensor) or bool(index.any() if index.dtype in _MASKS else index.numel()):
        return index
    first = torch.arange(index.numel()).view(index.shape) == 0
    return first if index.dtype in _MASKS else index.new_zeros([1] * index.ndim)


def _picked_by_value(state: State, call: Call) -> set[int]:
    """Return the dimensions along which input-dependent values pick elements."""
    if call.name == "index_select":
        return {call["dim"] % call["self"].ndim} if state.values.computed(call["index"]) else set()
    picked: set[int] = set()
    if call.name == "index":
        dim = 0
        for index in call["indices"]:
            masks = isinstance(index, Tensor) and index.dtype in _MASKS
            behind = dim + (index.ndim if masks else 1)
            if index is not None and state.values.computed(index):
                picked |= set(range(dim, behind))
            dim = behind
    return picked
