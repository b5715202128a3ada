"""Data movement: the very same operator runs on the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from adjoined.slicing.labels import NeedsValues, Slot, compress, varying
from adjoined.slicing.rules.table import Call, rule

if TYPE_CHECKING:
    from adjoined.slicing.flow import CutKey, LabelFlow

RESHAPES = ("view", "_unsafe_view", "reshape", "unflatten", "_reshape_alias", "_reshape_copy")
CUTS = (
    "slice", "split", "split_with_sizes", "select", "unbind", "narrow", "chunk", "index", "unsafe_split",
    "unsafe_split_with_sizes", "tensor_split", "index_select",
)  # fmt: skip


@rule(
    *RESHAPES, *CUTS, "permute", "transpose", "t", "expand", "unsqueeze", "squeeze", "flip", "roll", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "unfold", "movedim", "diagonal",
    "repeat_interleave", "slice_copy", "rot90",
)  # fmt: skip
def move(flow: LabelFlow, call: Call) -> None:
    """Run the operator on every slot; note where a labelled dimension is cut or folded."""
    source, outputs = call.tensors[0], call.outputs
    cut = flow.cut
    others = call.tensors[1:]
    for index in others:
        for slot in flow.slots(index):
            flow.pin(slot, "is used as an index")
    picked = _picked_by_value(flow, call)
    if flow.slots(source) and any(index.is_meta for index in others):
        raise NeedsValues(call.name)
    moved: list[list[Slot]] = [[] for _ in outputs]
    for number, slot in enumerate(flow.slots(source)):
        if picked & set(varying(slot)):
            flow.pin(slot, "is picked from by values that the network computes")
            continue
        results = _run(call, slot.expand(source.shape))
        if results is None:
            flow.pin(slot, f"{call.name} on these shapes")
            continue
        results = [compress(result) for result in results]
        for piece, result in enumerate(results):
            moved[piece].append(flow.renew(cut, len(results) * number + piece, result))
        if call.name in RESHAPES:
            _note_fold(flow, call, cut, slot, results[0])
        elif call.name in CUTS:
            flow.check_cut(cut, number, results)
            _note_cut(flow, call, cut, slot, results, source)
    for out, slots in zip(outputs, moved, strict=True):
        flow.carry(out, slots)


def _run(call: Call, labels: Tensor) -> list[Tensor] | None:
    """Return what the operator makes of the labels, or None if it does not take them."""
    if call.name in RESHAPES:
        return [labels.reshape(call.out.shape)]
    values = dict(call.args)
    values[next(name for name, value in values.items() if isinstance(value, Tensor))] = labels
    values = tree_map(lambda leaf: leaf.cpu() if isinstance(leaf, Tensor) else leaf, values)
    by_name = {argument.name for argument in call.op._schema.arguments if argument.kwarg_only}
    positional = [value for name, value in values.items() if name not in by_name]
    try:
        out: Any = call.op(*positional, **{name: values[name] for name in by_name})
    except (RuntimeError, TypeError, ValueError):
        return None
    return [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _picked_by_value(flow: LabelFlow, call: Call) -> set[int]:
    """Return the dimensions of which values that follow from the input pick elements: other ones in every run."""
    if call.name == "index_select":
        return {call["dim"] % call["self"].ndim} if flow.values.computed(call["index"]) else set()
    picked: set[int] = set()
    if call.name == "index":
        dim = 0
        for index in call["indices"]:
            masks = isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
            behind = dim + (index.ndim if masks else 1)
            if index is not None and flow.values.computed(index):
                picked |= set(range(dim, behind))
            dim = behind
    return picked


def _note_fold(flow: LabelFlow, call: Call, cut: CutKey, before: Slot, after: Slot) -> None:
    """A view that folds a labelled dimension into several, and the numbers that the code has used for it."""
    if flow.strict:
        return
    dims = varying(after)
    if len(dims) > len(varying(before)):
        flow.findings.folds.append((cut, after))
    if not dims:
        return
    last = dims[-1]
    line = after.movedim(last, 0).reshape(after.shape[last], -1)[:, 0]
    flow.note_number(call.out.shape[last], line)
    target = call["size"] or call["shape"]
    if len(dims) == 1 and isinstance(target, (list, tuple)):
        flow.note_number(tuple(target), [line if d == last and n != -1 else int(n) for d, n in enumerate(target)])


def _note_cut(flow: LabelFlow, call: Call, cut: CutKey, before: Slot, pieces: list[Slot], source: Tensor) -> None:
    """A labelled dimension is cut: the pieces' channels are no substitutes for each other."""
    if flow.strict:
        return
    sizes = tuple(piece.numel() for piece in pieces)
    if len(sizes) == 1 and sizes[0] == before.numel():
        return
    flow.note_pieces(cut, 0, pieces)
    for piece in pieces:
        flow.note_number(piece.numel(), piece.reshape(-1))
    flow.note_number(before.numel(), before.reshape(-1))
    if len(sizes) > 1:
        flow.note_number(sizes, [piece.reshape(-1) for piece in pieces])
    if call.name == "slice":
        dim = (call["dim"] or 0) % source.ndim
        if dim in varying(before):
            line = before.movedim(dim, 0).reshape(before.shape[dim], -1)[:, 0]
            for bound in (call["start"], call["end"]):
                if bound is not None and 0 < bound < source.shape[dim]:
                    flow.note_number(bound, line[:bound])
