"""Concatenation and stacking."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import LABEL, Slot, squeeze_equal, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.rules.pointwise import beside_fixed, fixed_dims
from adjoined.slicing.flow.state import State


@rule("cat", "concat")
def concatenate(state: State, call: Call) -> None:
    """Labels along the dimension are joined; labels along the others are tied across the parts."""
    tensors = [t for t in call["tensors"] if not (t.ndim == 1 and t.numel() == 0)]
    dim = (call["dim"] or 0) % call.out.ndim
    fixed = [fixed_dims(state, t) - {dim} for t in tensors]
    _join(state, [state.slots(t) for t in tensors], [t.shape[dim] for t in tensors], dim, call.out, fixed)


@rule("stack")
def stack(state: State, call: Call) -> None:
    """Like concatenation along a new dimension, in which every part has size 1."""
    dim = (call["dim"] or 0) % call.out.ndim
    slots = [[slot.unsqueeze(dim) for slot in state.slots(t)] for t in call["tensors"]]
    fixed = [{d + (d >= dim) for d in fixed_dims(state, t)} for t in call["tensors"]]
    _join(state, slots, [1] * len(slots), dim, call.out, fixed)


def _join(
    state: State,
    slots: Sequence[Sequence[Slot]],
    sizes: Sequence[int],
    dim: int,
    out: Tensor,
    fixed: Sequence[set[int]],
) -> None:
    """`fixed` has the dimensions along which the elements of each part may differ; some of them have labels."""
    across: list[Slot] = []
    parts: list[Slot | None] = []
    for of_one in slots:
        part: Slot | None = None
        for slot in of_one:
            if dim in varying(slot):
                part = slot if part is None else state.tie(part, slot)
            else:
                across.append(slot)
        parts.append(part)
    across = state.unite(across)
    for of_one, dims in zip(slots, fixed, strict=True):
        across = beside_fixed(state, across, dims - {d for slot in of_one for d in varying(slot)})
    if all(part is None for part in parts):
        state.carry(out, across)
        return
    known = [part for part in parts if part is not None]
    joined = []
    for part, size in zip(parts, sizes, strict=True):
        shape = [max(p.shape[d] for p in known) for d in range(out.ndim)]
        shape[dim] = size
        joined.append(torch.zeros(shape, dtype=LABEL) if part is None else part.expand(shape))
    state.carry(out, [*across, squeeze_equal(torch.cat(joined, dim))])
