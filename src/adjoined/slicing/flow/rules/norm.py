"""Normalisation: tie the input's channels to scale, shift and running statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from adjoined.slicing.flow.call import Call, rule
from adjoined.slicing.flow.labels import along, varying
from adjoined.slicing.flow.rules.pointwise import tie_elementwise

if TYPE_CHECKING:
    from adjoined.slicing.flow.run import LabelFlow

FIXED = "normalises channels of fixed width"


@rule(
    "native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update",
    "_native_batch_norm_legit_no_training", "_native_batch_norm_legit_functional", "_batch_norm_no_update",
)  # fmt: skip
def batch_norm(flow: LabelFlow, call: Call) -> None:
    """Every channel has its own statistics: the channels of input, affine parameters and statistics are the same."""
    x = call["input"]
    affine = [call[name] for name in ("weight", "bias", "running_mean", "running_var")]
    if any(varying(slot) and 1 not in varying(slot) for slot in flow.slots(x)):
        flow.note_crossing()  # a weight that is standardised as if it were an image
    _per_channel(flow, x, affine, call.outputs[0])


@rule("native_group_norm")
def group_norm(flow: LabelFlow, call: Call) -> None:
    """Statistics over a group: whole groups are kept or dropped, so the statistics of the kept ones do not change."""
    x, groups = call["input"], call["group"]
    channels = _per_channel(flow, x, [call["weight"], call["bias"]], call.outputs[0])
    if channels is None:
        return
    if groups == 1:
        flow.note_crossing()
        return
    rows = channels.view(groups, -1)
    flow.collapse(rows, (0,))
    if not flow.strict:
        flow.findings.conv_groups[flow.module] = rows[:, 0].reshape(-1)


@rule("_weight_norm_interface", "_weight_norm")
def weight_norm(flow: LabelFlow, call: Call) -> None:
    """A weight as direction times length: the length is a statistic across the channels that the weight reads."""
    flow.note_crossing()
    tie_elementwise(flow, [call["v"], call["g"]], call.outputs[0])
    flow.carry(call.outputs[-1] if len(call.outputs) > 1 else None, flow.slots(call["g"]))


@rule("native_layer_norm", "_fused_rms_norm", "rms_norm")
def layer_norm(flow: LabelFlow, call: Call) -> None:
    """Statistics over the last dimensions; scale and shift broadcast against the input from the right."""
    x = call["input"]
    operands = [t for t in (x, call["weight"], call["bias"]) if isinstance(t, Tensor)]
    shape = call["normalized_shape"]
    first = x.ndim - (len(shape) if shape is not None else 1)
    if any(d >= first for slot in flow.slots(x) for d in varying(slot)):
        flow.note_crossing()
    tie_elementwise(flow, operands, call.outputs[0])


def _per_channel(flow: LabelFlow, x: Tensor, affine: list[Any], out: Tensor) -> Tensor | None:
    channels = flow.vector([s for s in flow.slots(x) if 1 in varying(s)], 1)
    for parameter in affine:
        if flow.slots(parameter):
            channels = flow.tie_vectors(channels, flow.vector(flow.slots(parameter), 0), FIXED)
    rest = [slot for slot in flow.slots(x) if 1 not in varying(slot)]
    flow.carry(out, rest + ([along(channels, 1, out.ndim)] if channels is not None else []))
    return channels
