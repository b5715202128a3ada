"""Normalisation: tie the input's channels to scale, shift and running statistics."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import varying
from adjoined.slicing.flow.operators import Statistic, rule
from adjoined.slicing.flow.rules.pointwise import tie_elementwise
from adjoined.slicing.flow.sizes import LAYER_NORMS
from adjoined.slicing.flow.state import State

FIXED = "normalises channels of fixed width"


@rule(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional", "_batch_norm_no_update",
    statistic=Statistic.BATCH_NORM,
)  # fmt: skip
def batch_norm(state: State, call: Call) -> None:
    """Every channel has its own statistics: the channels of input, affine parameters and statistics are the same."""
    x = call["input"]
    affine = [call[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if any(varying(slot) and 1 not in varying(slot) for slot in state.slots(x)):
        state.note_crossing()  # a weight, standardised as if it were an image
    per_channel(state, x, affine, call.outputs[0])


@rule("native_group_norm", statistic=Statistic.GROUP_NORM)
def group_norm(state: State, call: Call) -> None:
    """Statistics over a group: whole groups are kept or dropped, so those of kept groups do not change."""
    x, groups = call["input"], call["group"]
    channels = per_channel(state, x, [call["weight"], call["bias"]], call.outputs[0])
    if channels is None:
        return
    if groups == 1:
        state.note_crossing()
        return
    rows = channels.view(groups, -1)
    state.collapse(rows, (0,))
    state.note_groups(rows[:, 0].reshape(-1))


@rule(*LAYER_NORMS, statistic=Statistic.LAYER_NORM)
def layer_norm(state: State, call: Call) -> None:
    """Statistics over the last dimensions; scale and shift broadcast against the input from the right."""
    x = call["input"]
    operands = [t for t in (x, call["weight"], call["bias"]) if isinstance(t, Tensor)]
    shape = call["normalized_shape"]
    first = x.ndim - (len(shape) if shape is not None else 1)
    if any(d >= first for slot in state.slots(x) for d in varying(slot)):
        state.note_crossing()
    tie_elementwise(state, operands, call.outputs[0])


def per_channel(state: State, x: Tensor, affine: list[Any], out: Tensor, axis: int = 1) -> Tensor | None:
    """Tie a dimension of the input to vectors with an entry for each of its channels, and return the tied labels."""
    channels = state.vector([s for s in state.slots(x) if axis in varying(s)], axis)
    for parameter in affine:
        if state.slots(parameter):
            channels = state.tie_vectors(channels, state.vector(state.slots(parameter), 0), FIXED)
    state.carry_along(out, axis, channels, [slot for slot in state.slots(x) if axis not in varying(slot)])
    return channels
