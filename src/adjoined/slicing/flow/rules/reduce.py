"""Reductions: the labels along the reduced dimensions go away."""

from __future__ import annotations

from typing import TYPE_CHECKING

from adjoined.slicing.flow.call import Call, rule
from adjoined.slicing.flow.labels import varying
from adjoined.slicing.flow.rules.pointwise import tie_elementwise

if TYPE_CHECKING:
    from adjoined.slicing.flow.run import LabelFlow


@rule(
    "mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm", "max", "min",
    "argmax", "argmin", "prod", "logsumexp", "all", "any",
)  # fmt: skip
def reduction(flow: LabelFlow, call: Call) -> None:
    """Over a labelled dimension it is a statistic across channels, and the labels end there."""
    x = call.tensors[0]
    if len(call.tensors) > 1:  # the two-operand overload of max and min is pointwise
        return tie_elementwise(flow, call.tensors, call.outputs[0])
    dim = call["dim"]
    reduced = range(x.ndim) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    reduced = {d % x.ndim for d in reduced}
    carried = []
    for slot in flow.slots(x):
        if reduced & set(varying(slot)):
            flow.note_crossing()
            flow.note_read(slot)
        if set(varying(slot)) <= reduced:
            continue
        slot = flow.collapse(slot, [d for d in range(slot.ndim) if d not in reduced])
        if not call["keepdim"]:
            slot = slot.reshape([size for d, size in enumerate(slot.shape) if d not in reduced])
        carried.append(slot)
    for out in call.outputs:
        flow.carry(out, [slot for slot in carried if slot.ndim == out.ndim])
    return None
