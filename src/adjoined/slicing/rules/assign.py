"""Writing to picked places of a tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from adjoined.slicing.labels import varying
from adjoined.slicing.rules.pointwise import tie_elementwise, unknown
from adjoined.slicing.rules.table import Call, rule

if TYPE_CHECKING:
    from adjoined.slicing.flow import LabelFlow


@rule("index_put", "index_put_", "_index_put_impl_")
def write_at(flow: LabelFlow, call: Call) -> None:
    """`x[a, b] = values`: what is written is tied to `x` along the dimensions behind the indices.

    Channels that the indices themselves count stay at full width.
    """
    x, values, indices = call["self"], call["values"], [i for i in call["indices"] if i is not None]
    masks = [index.dtype in (torch.bool, torch.uint8) for index in indices]
    if call["indices"][: len(indices)] != indices or any(flow.slots(index) for index in indices):
        return unknown(flow, call)
    picked = sum(index.ndim if mask else 1 for index, mask in zip(indices, masks, strict=True))
    places = max(1 if mask else index.ndim for index, mask in zip(indices, masks, strict=True))
    for slot in flow.slots(x):
        if any(d < picked for d in varying(slot)):
            flow.pin(slot, "are written to at picked places")
    behind = x.ndim - picked
    shape = [1] * (places + behind - values.ndim) + list(values.shape)
    written = torch.empty([1] * picked + shape[places:], device="meta")
    carried = []
    for slot in flow.slots(values):
        slot = slot.reshape([1] * (len(shape) - slot.ndim) + list(slot.shape))
        if any(d < places for d in varying(slot)):
            flow.pin(slot, "are written to picked places")
        else:
            carried.append(slot.reshape([1] * picked + list(slot.shape[places:])))
    flow.carry(written, carried)
    tie_elementwise(flow, [x, written], call.outputs[0])
    return None
