"""Matrix products: the inner dimensions are tied, rows and columns go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from adjoined.slicing.labels import Slot, along, varying
from adjoined.slicing.rules.table import Call, rule

if TYPE_CHECKING:
    from adjoined.slicing.flow import LabelFlow


@rule("mm", "bmm")
def product(flow: LabelFlow, call: Call) -> None:
    """(…, n, k) by (…, k, m)."""
    a, b = call["self"], call["mat2"]
    _product(flow, a, flow.slots(a), flow.slots(b), b.ndim, None, call.out)


@rule("addmm", "baddbmm")
def product_and_sum(flow: LabelFlow, call: Call) -> None:
    """A product with a bias."""
    a, b = call["mat1"], call["mat2"]
    if a is None:
        a, b = call["batch1"], call["batch2"]
    _product(flow, a, flow.slots(a), flow.slots(b), b.ndim, call["self"], call.out)


@rule("mv", "addmv")
def product_with_vector(flow: LabelFlow, call: Call) -> None:
    """(n, k) by (k): the rows go on."""
    matrix, vector = call["mat"] if call.name == "addmv" else call["self"], call["vec"]
    inner = [slot for slot in flow.slots(matrix) if 1 in varying(slot)]
    read, weight = flow.vector(inner, 1), flow.vector(flow.slots(vector), 0)
    if read is not None or weight is not None:
        flow.tie_vectors(read, weight, "reads features of fixed width")
        flow.note_crossing()
    flow.carry(call.out, [slot.reshape(-1) for slot in flow.slots(matrix) if varying(slot) == (0,)])


@rule("dot", "vdot")
def inner_product(flow: LabelFlow, call: Call) -> None:
    """(k) by (k): one number, a statistic across channels."""
    a, b = (flow.vector(flow.slots(tensor), 0) for tensor in call.tensors[:2])
    if a is not None or b is not None:
        flow.tie_vectors(a, b, "meets features of fixed width")
        flow.note_crossing()
    flow.carry(call.out, [])


@rule("linear")
def linear(flow: LabelFlow, call: Call) -> None:
    """(…, k) by (m, k)."""
    x, weight = call["input"], call["weight"]
    turned = [slot.transpose(0, 1) for slot in flow.slots(weight)]
    _product(flow, x, flow.slots(x), turned, 2, call["bias"], call.out)


def _product(
    flow: LabelFlow,
    a: Tensor,
    a_slots: Sequence[Slot],
    b_slots: Sequence[Slot],
    b_ndim: int,
    bias: Tensor | None,
    out: Tensor,
) -> None:
    inner_a, inner_b, column = a.ndim - 1, b_ndim - 2, b_ndim - 1
    read = flow.vector([s for s in a_slots if inner_a in varying(s)], inner_a)
    weight_in = flow.vector([s for s in b_slots if inner_b in varying(s)], inner_b)
    if read is not None or weight_in is not None:
        flow.note_read(flow.tie_vectors(read, weight_in, "reads features of fixed width"))
    carried = [
        flow.collapse(slot, range(1, a.ndim)) if len(varying(slot)) > 1 else slot  # alike in every head of an attention
        for slot in a_slots
        if varying(slot) and inner_a not in varying(slot)
    ]
    for slot in b_slots:  # labels along the batch alone go on, where the other factor brings none
        dims = set(varying(slot))
        if b_ndim == 3 and dims == {0} and not any(0 in varying(other) for other in carried):
            carried.append(slot)
    columns = flow.vector([s for s in b_slots if column in varying(s)], column)
    if bias is not None and flow.slots(bias):
        columns = flow.tie_vectors(columns, flow.vector(flow.slots(bias), bias.ndim - 1), "its bias has fixed width")
    flow.carry(out, carried + ([along(columns, out.ndim - 1, out.ndim)] if columns is not None else []))


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
)  # fmt: skip
def attention(flow: LabelFlow, call: Call) -> None:
    """Queries and keys (B, heads, L, D) are tied along heads and D; the output carries the values' labels."""
    query, key, value = (flow.slots(call[name]) for name in ("query", "key", "value"))
    out = call.outputs[0]
    last, heads = out.ndim - 1, out.ndim - 3
    flow.note_read(
        flow.tie_vectors(flow.vector(query, last), flow.vector(key, last), "attention with features of fixed width")
    )
    alone = [[slot for slot in slots if varying(slot) == (heads,)] for slots in (query, key, value)]
    by_head = [flow.vector(slots, heads) for slots in alone] if heads >= 0 else []
    carried = []
    if any(labels is not None for labels in by_head):
        first = by_head[2]
        for labels in by_head[:2]:
            first = flow.tie_vectors(first, labels, "attention with a fixed number of heads")
        if first is not None:
            carried.append(along(first, heads, out.ndim))
    features = flow.vector(value, last)
    if features is not None:
        carried.append(along(features, last, out.ndim))
    flow.carry(out, carried)
