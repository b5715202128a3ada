"""Fake quantisation, as in quantisation-aware training: channels keep their places; each may have its own scale."""

from __future__ import annotations

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.rules.norm import per_channel
from adjoined.slicing.flow.state import State


@rule(
    "_fused_moving_avg_obs_fq_helper", "fake_quantize_per_channel_affine_cachemask",
    "fake_quantize_per_tensor_affine_cachemask", "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)  # fmt: skip
def fake_quantised(state: State, call: Call) -> None:
    """Numbers are rounded as for integers, with one scale per channel or one for all."""
    x, axis = call["self"], call["ch_axis"] if call["axis"] is None else call["axis"]
    vectors = [call[name] for name in ("scale", "zero_point", "running_min", "running_max")]
    if call.name == "_fused_moving_avg_obs_fq_helper":  # its scales depend on the largest elements
        state.note_crossing()
    if any(state.slots(each) for each in vectors):
        per_channel(state, x, vectors, call.outputs[0], axis % x.ndim)
    else:
        state.carry(call.outputs[0], state.slots(x))
