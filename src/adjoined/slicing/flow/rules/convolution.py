"""Convolutions: the output carries the weight's output channels; input channels are tied to what the weight reads."""

from __future__ import annotations

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, along, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason

FIXED_INPUT = "reads channels of fixed width"
BANK = Reason(Kind.PLACES, "counts the kernels in a bank")
INSIDE_GROUPS = Reason(
    Kind.INSIDE_GROUPS, "channels inside the groups of a grouped convolution, which keeps whole groups"
)


@rule("convolution", "_convolution", "mkldnn_convolution", "cudnn_convolution")
def convolution(state: State, call: Call) -> None:
    """Tie the input's channels to the weight's, the bias to the output's; grouped convolutions have other rules."""
    x, weight, out = call["input"], call["weight"], call.out
    if x.ndim < weight.ndim:  # unbatched input (C, ...), which no training step uses, has no dimension 1
        return _give_up(state, call)
    transposed = bool(call["transposed"])
    reads, writes = (0, 1) if transposed else (1, 0)
    channels = state.vector([s for s in state.slots(x) if 1 in varying(s)], 1)
    weight_slots = [s for s in state.slots(weight) if {0, 1} & set(varying(s))]
    weight_in = state.vector([s for s in weight_slots if reads in varying(s)], reads)
    weight_out = state.vector([s for s in weight_slots if writes in varying(s)], writes)
    if weight_in is not None and weight_out is not None and any({0, 1} <= set(varying(s)) for s in weight_slots):
        why = "each element of the weight belongs to an output and an input channel at once"
        state.pin(weight_in, Reason(Kind.TWO_AT_ONCE, why))
    if call["groups"] < x.shape[1]:  # otherwise it only sums over positions
        state.note_read(channels)
    state.note_channels(channels, weight_in, weight_out)
    if not state.strict and any(varying(slot) for slot in state.slots(weight)) and not state.is_stored(weight):
        state.findings.kernels.append([(d, slot) for slot in state.slots(weight) for d in varying(slot)])
    groups = call["groups"]
    if groups == 1 and state.module not in state.findings.conv_groups:
        if channels is None and weight_in is not None:
            weight_in = state.of_fixed_input(weight_in, x, 1)
        state.tie_vectors(channels, weight_in, FIXED_INPUT)
        result = weight_out
    elif transposed:
        result = _grouped_transposed(state, weight, groups, channels, weight_in, weight_out)
    else:
        result = _grouped(state, weight, groups, channels, weight_in, weight_out)
    bias = call["bias"]
    if bias is not None and state.slots(bias):
        result = state.tie_vectors(result, state.vector(state.slots(bias), 0), "its bias has fixed width")
    return state.carry_along(out, 1, result, _along_space(state, x, weight, out))


def _grouped(
    state: State, weight: Tensor, groups: int, channels: Tensor | None, weight_in: Tensor | None, out: Tensor | None
) -> Tensor | None:
    """Return the output's labels of a grouped or depthwise convolution.

    Whole groups are dropped, as for depthwise convolutions; or, if that keeps fewer channels, all groups stay and each
    is sliced inside.
    """
    if channels is not None and weight_in is None and out is None and groups == channels.numel():
        return channels.view(-1, 1).expand(groups, weight.shape[0] // groups).reshape(-1)  # a fixed kernel: a blur
    if channels is not None and out is not None and _repeats(out, groups) and not _repeats(channels, groups):
        state.pin(out, BANK)
        state.pin(weight_in, INSIDE_GROUPS)
        return _of_bank(state, groups, channels, weight.shape[0] // groups)
    size = weight.shape[1]
    if channels is not None and weight_in is not None and out is None and size > 1 and _repeats(channels, groups):
        state.findings.sliced_inside.add(state.module)  # each image is compared with a kernel that is an image, too
        state.tie(channels.view(groups, -1)[0], weight_in)
        return None
    if channels is None or out is None:
        for labels in (channels, out, weight_in):
            state.pin(labels, Reason(Kind.FIXED_WIDTH, "grouped convolution with channels of fixed width"))
        return out
    inside = state.module in state.findings.sliced_inside
    rows = channels.view(groups, -1)
    if not state.strict:
        state.findings.blocks.append((state.call_site, rows))
        batch = size > 1 and _repeats(channels, groups)
        inside = batch or (size > 1 and weight_in is not None and state.slices_inside(state.module, groups, size))
    if inside:  # if the weight has no labels, each group has one channel left
        state.findings.sliced_inside.add(state.module)
        per_group = state.collapse(channels.view(groups, -1), (1,)).reshape(-1)
        if weight_in is not None:
            state.tie_vectors(per_group, weight_in, FIXED_INPUT)
        state.note_pieces(state.call_site, 0, list(out.view(groups, -1)))
        return out
    if weight_in is not None:
        state.pin(weight_in, INSIDE_GROUPS)
        state.findings.whole_by_choice.add(state.module)
    return _whole_groups(state, groups, channels, out)


def _repeats(labels: Tensor, groups: int) -> bool:
    """Return whether all groups have the same labels: images of a batch, or groups that share one bank."""
    rows = labels.view(groups, -1)
    return groups > 1 and bool((rows == rows[:1]).all())


def _of_bank(state: State, groups: int, channels: Tensor, kernels: int) -> Tensor:
    """Return the output's labels where each group, kept or dropped whole, is convolved with the kernels of one bank."""
    one_each = state.collapse(channels.view(groups, -1), (0,))
    state.note_groups(one_each.reshape(-1))
    return one_each.expand(groups, kernels).reshape(-1)


def _grouped_transposed(
    state: State, weight: Tensor, groups: int, channels: Tensor | None, weight_in: Tensor | None, out: Tensor | None
) -> Tensor | None:
    """Return the output's labels of a grouped transposed convolution; its weight is (in, out / groups, ...)."""
    if channels is None or weight_in is None:
        reason = Reason(Kind.FIXED_WIDTH, "grouped transposed convolution with channels of fixed width")
        for labels in (channels, weight_in, out):
            state.pin(labels, reason)
        return out
    if _repeats(weight_in, groups) and not _repeats(channels, groups):
        state.pin(weight_in, BANK)
        state.pin(out, INSIDE_GROUPS)
        return _of_bank(state, groups, channels, weight.shape[1])
    state.tie_vectors(channels, weight_in, FIXED_INPUT)
    if not state.strict and _repeats(channels, groups):
        state.findings.sliced_inside.add(state.module)
    if state.module in state.findings.sliced_inside:
        return None if out is None else out.repeat(groups)
    state.pin(out, INSIDE_GROUPS)
    one_each = _whole_groups(state, groups, channels, weight_in).view(groups, -1)[:, :1]
    return one_each.expand(groups, weight.shape[1]).reshape(-1)


def _whole_groups(state: State, groups: int, channels: Tensor, out: Tensor) -> Tensor:
    """Tie all channels of a group, input and output, to each other, and record the groups."""
    read = state.collapse(channels.view(groups, -1), (0,))
    written = state.collapse(out.view(groups, -1), (0,))
    state.tie(read, written)
    state.note_groups(written.reshape(-1))
    return out


def _along_space(state: State, x: Tensor, weight: Tensor, out: Tensor) -> list[Slot]:
    """Return the input's slots along dimensions that the operator leaves alone, without the channels."""
    kept = []
    for number, slot in enumerate(state.slots(x)):
        dims = varying(slot)
        if 1 in dims:
            continue
        if all(out.shape[d] == x.shape[d] for d in dims):
            if any(d > 1 and weight.shape[d] > 1 for d in dims):
                state.check_neighbours(number, slot)
            kept.append(slot)
        else:
            state.pin(slot, Reason(Kind.NEIGHBOURS, "convolution along the channel dimension"))
    return kept


def _give_up(state: State, call: Call) -> None:
    for tensor in call.tensors:
        state.pin_all(tensor, Reason(Kind.NO_RULE, f"no rule for {call.name} on these shapes"))
    state.carry(call.out, [])


@rule("deform_conv2d")
def deformable(state: State, call: Call) -> None:
    """torchvision's deformable convolution: a convolution whose kernel moves by offsets of a fixed number."""
    for tensor in (call["offset"], call["mask"]):
        state.pin_all(tensor, Reason(Kind.BY_VALUE, "offsets and weights of a deformable kernel"))
    fields = call["n_offset_grps"] or call["offset_groups"] or 1
    channels = state.vector([s for s in state.slots(call["input"]) if 1 in varying(s)], 1)
    if channels is not None and fields > 1 and channels.numel() % fields == 0:
        state.note_pieces(state.call_site, 1, list(channels.view(fields, -1)))
        state.check_cut(state.call_site, 1, list(channels.view(fields, -1)))
    groups = call["n_weight_grps"] or call["groups"] or 1
    convolution(state, Call(call.op, call.name, {**call.args, "transposed": False, "groups": groups}, call.out))


@rule("im2col")
def patches(state: State, call: Call) -> None:
    """F.unfold: channels (N, C, H, W) become rows (N, C·kh·kw, L), each channel repeated for every kernel position."""
    x, out = call["self"], call.out
    channels = state.vector(state.slots(x), x.ndim - 3)
    if channels is None:
        return
    kernel = out.shape[-2] // channels.numel()
    rows = channels.view(-1, 1).expand(-1, kernel).reshape(-1)
    state.carry(out, [along(torch.as_tensor(rows), out.ndim - 2, out.ndim)])


@rule("col2im")
def fold(state: State, call: Call) -> None:
    """F.fold: rows (N, C·kh·kw, L) are summed to channels (N, C, H, W); the rows of one channel are tied."""
    x, out = call["self"], call.out
    rows = state.vector([slot for slot in state.slots(x) if x.ndim - 2 in varying(slot)], x.ndim - 2)
    if rows is None:
        return
    channels = state.collapse(rows.view(out.shape[-3], -1), (0,)).reshape(-1)
    state.carry(out, [along(channels, out.ndim - 3, out.ndim)])
