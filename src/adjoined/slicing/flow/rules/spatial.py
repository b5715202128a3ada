"""Pooling, resampling, Fourier transforms and padding: channels stay, positions change."""

from __future__ import annotations

import torch
from torch import Tensor

from adjoined.slicing.flow.call import Call
from adjoined.slicing.flow.labels import Slot, squeeze_equal, varying
from adjoined.slicing.flow.operators import rule
from adjoined.slicing.flow.state import State
from adjoined.slicing.plan.reasons import Kind, Reason


@rule(
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool2d", "avg_pool1d",
    "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool1d", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_avg_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d",
    "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d",
    "upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa",
    "upsample_trilinear3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d", "fractional_max_pool2d",
)  # fmt: skip
def resample(state: State, call: Call) -> None:
    """Slots along dimensions that keep their size stay; a labelled dimension that is resampled is pinned.

    Features of a linear layer that were folded into small images are tied within each image.
    """
    x = call.tensors[0]
    out = call.outputs[0]  # a second output has the positions of the largest elements
    # Pooling may combine neighbours along its last dimensions, even where sizes stay the same.
    pooled = int(call.name.partition("pool")[2][:1]) if "pool" in call.name else 0
    kernel = list(call["kernel_size"] or [0])
    kernel = [1] * (x.ndim - pooled) + kernel * (pooled // len(kernel))
    dims = [d for d in range(x.ndim) if kernel[d] != 1 or x.shape[d] != out.shape[d]]
    carried = state.outside(state.slots(x), dims, _along_channels(call))
    for out in call.outputs:
        state.carry(out, carried)


@rule("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")
def sample(state: State, call: Call) -> None:
    """Features (N, C, ...) are read at the places of a grid (N, ..., 2 or 3), whose coordinates go together.

    N may hold the heads of an attention, which the features and the grid have in common.
    """
    x, grid, out = call["input"], call["grid"], call.out
    carried = state.outside(state.slots(x), range(2, x.ndim), _along_channels(call))
    coordinates = Reason(Kind.BY_VALUE, "coordinates of the places that are read")
    places = state.outside(state.slots(grid), [grid.ndim - 1], coordinates)
    heads, of_grid = ([slot for slot in slots if 0 in varying(slot)] for slots in (carried, places))
    for slot in of_grid if heads else ():
        state.tie(state.collapse(heads[0], (0,)), state.collapse(slot, (0,)))
    of_grid = [slot for slot in places if not heads or 0 not in varying(slot)]
    state.carry(out, carried + [slot.unsqueeze(1).squeeze(-1) for slot in of_grid])


def _along_channels(call: Call) -> Reason:
    return Reason(Kind.NEIGHBOURS, f"{call.name} along the channel dimension")


@rule("_fft_r2c", "_fft_c2c", "_fft_c2r")
def fourier(state: State, call: Call) -> None:
    """Along positions, channels stay; along channels, each frequency depends on all of them: full width."""
    x = call["self"]
    reason = Reason(Kind.NEIGHBOURS, "a Fourier transform along the channels")
    state.carry(call.out, state.outside(state.slots(x), [d % x.ndim for d in call["dim"]], reason))


@rule("max_unpool2d", "max_unpool3d")
def unpool(state: State, call: Call) -> None:
    """Values return to the positions that they came from; these positions have the channels' labels, too."""
    x, *others = call.tensors
    slots, *of_others = (_of_channels(state, call, tensor) for tensor in (x, *others))
    for slot in (slot for each in of_others for slot in each if slots):
        state.tie(slots[0], slot)
    state.carry(call.outputs[0], slots)


def _of_channels(state: State, call: Call, tensor: Tensor) -> list[Slot]:
    """Return the slots of a tensor (N, C, ...) along its channels alone, and pin the others."""
    return state.pin_others(state.slots(tensor), lambda slot: varying(slot) == (1,), _along_channels(call))


@rule("constant_pad_nd", "pad")
def pad(state: State, call: Call) -> None:
    """Padding with a constant; along the channels it adds channels without labels, as a concatenation would."""
    x, out = call["self"], call.out
    carried = []
    for slot in state.slots(x):
        dims = varying(slot)
        if all(x.shape[d] == out.shape[d] for d in dims):
            carried.append(slot)
            continue
        padded = slot.expand([slot.shape[d] if d in dims else size for d, size in enumerate(x.shape)])
        padded = squeeze_equal(torch.ops.aten.constant_pad_nd(padded, call["pad"], 0))
        if min(call["pad"]) < 0:
            state.pin(slot, Reason(Kind.FIXED_PADDING, "cut off by a padding of fixed size"))
        state.note_padded(slot)
        carried.append(padded)
    state.carry(out, carried)


@rule("roi_align", "roi_pool")
def pool_boxes(state: State, call: Call) -> None:
    """Boxes (K, 5) are cut out of features (N, C, H, W) and resampled to (K, C, height, width): channels stay."""
    state.pin_all(call["rois"], Reason(Kind.BY_VALUE, "coordinates of boxes"))
    state.carry(call.outputs[0], _of_channels(state, call, call["input"]))
