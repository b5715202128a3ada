"""Reductions: the labels along the reduced dimensions end."""

from __future__ import annotations

import torch

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, squeeze_equal, varying
from adjoined.slicing.flow.operators import Statistic, rule
from adjoined.slicing.flow.rules.pointwise import tie_elementwise
from adjoined.slicing.flow.state import State

INDICES = ("max", "min", "argmax", "argmin")
"""Reductions that return indices of the chosen elements, alone or along with them."""


@rule(
    "mean", "sum", "amax", "amin", "aminmax", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm",
    "prod", "logsumexp", "all", "any", "_is_all_true", "_is_any_true", "histc", statistic=Statistic.REDUCTION,
)  # fmt: skip
@rule(*INDICES)
def reduction(state: State, call: Call) -> None:
    """Over a labelled dimension it is a statistic across channels, and the labels end there."""
    x = call.tensors[0]
    if len(call.tensors) > 1:  # max and min of two operands are pointwise
        return tie_elementwise(state, call.tensors, call.outputs[0])
    dim = call["dim"]
    reduced = range(x.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    reduced = {d % x.ndim for d in reduced}
    carried, chosen = [], []
    for slot in state.slots(x):
        if reduced & set(varying(slot)):
            state.note_crossing()
            state.note(state.findings.reduced, slot)
            state.note_statistic([slot], call.outputs)
        if set(varying(slot)) <= reduced or _in_pieces(state, slot, reduced):
            chosen.append(slot)
            continue
        slot = state.collapse(slot, [d for d in range(slot.ndim) if d not in reduced])
        if not call["keepdim"]:
            slot = slot.reshape([size for d, size in enumerate(slot.shape) if d not in reduced])
        carried.append(slot)
    for over in state.slots(x):
        if reduced & set(varying(over)):
            state.note_sum(over, carried, product=False)
    for out in call.outputs:
        state.carry(out, [slot for slot in carried if slot.ndim == out.ndim])
        if chosen and call.name in INDICES and not out.is_floating_point():
            state.choices[out] = chosen  # which channel it is matters once something reads the index
    return None


@rule("equal")
def compared(state: State, call: Call) -> None:
    """torch.equal returns no tensor, and may compare any channels."""


def _in_pieces(state: State, slot: Slot, reduced: set[int]) -> bool:
    """Return whether each channel lies in pieces along the other dimensions, as after a pixel shuffle; tie the pieces.

    There the same labels recur, so no position ever belongs to a single channel.
    """
    slot = squeeze_equal(slot)
    others = [d for d in varying(slot) if d not in reduced]
    if not state.tied_along(slot) & reduced or not all(_repeats(slot, d) for d in others):
        return False
    state.collapse(slot, [d for d in range(slot.ndim) if d in reduced])
    return True


def _repeats(slot: Slot, dim: int) -> bool:
    """Return whether some label occurs twice along a dimension."""
    line = slot.movedim(dim, 0).flatten(1)[:, 0]
    return len(torch.unique(line)) < len(line)
