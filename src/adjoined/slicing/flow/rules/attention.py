"""Attention: a head is kept or dropped as a whole, or all heads keep fewer features each."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, along, distinct, varying
from adjoined.slicing.flow.operators import Statistic, rule
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule("scaled_dot_product_attention", statistic=Statistic.SCALE)
def composite(state: State, call: Call) -> None:
    """Torch replaces this operator by others, which have rules; `State.attention_scale` handles its scale."""


def keeps_whole_heads(state: State, slot: Slot, heads: int, features: int) -> bool:
    """Return whether a product between tensors with heads keeps whole heads; the first run decides.

    As for grouped convolutions, the choice is what keeps fewer channels. If it makes no difference, whole heads are
    kept, because then the scale 1/√d does not change. Features that are tied already leave no choice.
    """
    if not state.strict:
        first = slot.movedim((heads, features), (0, 1)).reshape(slot.shape[heads], slot.shape[features], -1)[:, 0, 0]
        count = len(distinct(first))
        tied = features not in state.tied_along(slot)
        if count > 1 and (tied or not state.slices_inside(state.module, count, slot.shape[features])):
            state.findings.whole_heads[state.call_site] = distinct(first)
            state.findings.head_width[state.call_site] = slot.shape[features]
    return state.call_site in state.findings.whole_heads


def heads_of(state: State, slots: Sequence[Slot], heads: int) -> list[Slot]:
    """Tie all features of a head to each other, and equal heads of all slots; return one label for each head."""
    return state.unite(state.collapse(slot, (heads,)) for slot in slots)


@rule(
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention_overrideable", "_scaled_dot_product_attention_math",
)  # fmt: skip
def attention(state: State, call: Call) -> None:
    """Queries and keys (B, heads, L, D) are tied along heads and D; the output carries the values' labels."""
    out = call.outputs[0]
    last, heads = out.ndim - 1, out.ndim - 3
    query, key, value = (
        [(slot, state.spans(number, slot)) for slot in _repeated(state.slots(call[name]), heads, out.shape[heads])]
        for number, name in enumerate(("query", "key", "value"))
    )
    joint = [[slot for slot, dims in slots if {heads, last} <= dims] for slots in (query, key, value)]
    if all(joint) and keeps_whole_heads(state, joint[0][0], heads, last):
        by_head = heads_of(state, [slot for slots in joint for slot in slots], heads)
        _tie_bias(state, call, by_head, heads)
        state.note_read(by_head[0])
        return state.carry(out, joint[2])
    features = [state.vector([slot for slot, dims in slots if last in dims], last) for slots in (query, key, value)]
    tied = state.tie_vectors(features[0], features[1], "attention with features of fixed width")
    state.note_read(tied)
    if tied is not None and call["scale"] is None:
        state.note_crossing()  # the scale 1/√D is that of the narrow D
    alone = [[slot for slot, dims in slots if dims == {heads} and varying(slot)] for slots in (query, key, value)]
    by_head = [state.vector(slots, heads) for slots in alone] if heads >= 0 else []
    carried: list[Slot] = []
    if any(labels is not None for labels in by_head):
        first = by_head[2]
        for labels in by_head[:2]:
            first = state.tie_vectors(first, labels, "attention with a fixed number of heads")
        if first is not None:
            carried.append(along(first, heads, out.ndim))
    _tie_bias(state, call, carried, heads)
    return state.carry_along(out, last, features[2], carried)


def _repeated(slots: Sequence[Slot], heads: int, count: int) -> list[Slot]:
    """Return slots with `count` heads: several query heads may share one head of keys and values (`enable_gqa`)."""
    several = [heads >= 0 and slot.shape[heads] not in (1, count) for slot in slots]
    return [
        slot.repeat_interleave(count // slot.shape[heads], heads) if repeat else slot
        for slot, repeat in zip(slots, several, strict=True)
    ]


def _tie_bias(state: State, call: Call, by_head: Sequence[Slot], heads: int) -> None:
    """Tie a bias or mask on the attention weights: one for each head, or the same for all."""
    for name in ("attn_mask", "attn_bias"):
        bias = call[name]
        if not isinstance(bias, Tensor):
            continue
        for slot in state.slots(bias):
            slot = slot.reshape([1] * (heads + 3 - slot.ndim) + list(slot.shape))
            if by_head and varying(slot) == (heads,):
                state.tie(by_head[0], slot)
            else:
                state.pin(slot, Reason(Kind.FIXED_WIDTH, "attention with a fixed number of heads"))
