"""Numbers that code passes to operators and that count no channels: strides, kernel sizes, shifts, places.

Code may compute them from the number of channels that arrive: `x.roll(x.shape[1] // 16, 2)`. The small network has
fewer, and would do something else. Factors of elementwise operators, such as 1/√d, are not compared: they may differ.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor

from adjoined.slicing.flow.sizes import GROUPED, LAYER_NORMS, RESHAPES

SHAPED = (
    *RESHAPES, "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "chunk", "tensor_split",
    "repeat", "repeat_interleave",
)  # fmt: skip
"""Operators whose numbers may count channels, and show in the shapes of their results."""

_COUNTING = (
    *SHAPED, *LAYER_NORMS, "expand", "as_strided", "as_strided_", "resize_", "native_group_norm", "bincount",
    "channel_shuffle", "native_channel_shuffle",
)  # fmt: skip
"""Operators whose numbers may count channels."""

_OTHERS = (
    "fill_", "full_like", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "permute", "transpose", "squeeze",
    "unsqueeze", "movedim",
)  # fmt: skip
"""Operators that get values, as elementwise ones do, or dimensions that torch itself may choose by shapes."""

_OF_ONE_DIM = ("slice", "select", "narrow", "unfold", "slice_scatter", "select_scatter", "topk", "kthvalue")
"""Operators whose numbers belong to one dimension, and count channels there."""

_OF_LAST_TWO = ("tril", "triu", "tril_", "triu_")
"""Operators whose number belongs to the last two dimensions; rows and columns may be channels."""

_OF_NORMS = ("ord", "eps")
"""Settings of norms, which need not be whole; other such numbers are factors, or rates, or come from values."""


def settings_of(name: str, args: dict[str, Any], channels: Collection[int]) -> tuple[Any, ...]:
    """Return the numbers that an operator gets, without those that count channels, which lie along `channels`.

    Example:
        >>> settings_of("roll", {"shifts": [1, 4], "dims": [2, 1]}, [1])
        ((1,), (2,))
        >>> settings_of("view", {"size": [1, 4]}, [1])
        ()
    """
    if name in _COUNTING or name in _OTHERS:
        return ()
    x = args.get("self")
    ndim = x.ndim if isinstance(x, Tensor) else 0
    if name in _OF_ONE_DIM:
        dim = args["dim"] if args.get("dim") is not None else args["dimension"]
        if dim % max(ndim, 1) in channels:
            return ()
    if name in _OF_LAST_TWO and not {ndim - 2, ndim - 1}.isdisjoint(channels):
        return ()
    if name in ("roll", "constant_pad_nd"):
        args = _of_other_dims(name, args, ndim, channels)
    found = (value for key, value in args.items() if key != GROUPED.get(name) and (_whole(value) or key in _OF_NORMS))
    return tuple(tuple(value) if isinstance(value, (list, tuple)) else value for value in found)


def places_of(results: Sequence[Tensor], channels: Collection[int]) -> frozenset[tuple[int, ...]]:
    """Return the sizes of an operator's results along other dimensions than `channels`.

    Example:
        >>> import torch
        >>> places_of([torch.zeros(2, 32, 4, 4)], [1])
        frozenset({(2, 4, 4)})
    """
    return frozenset(tuple(size for d, size in enumerate(out.shape) if d not in channels) for out in results)


def _of_other_dims(name: str, args: dict[str, Any], ndim: int, channels: Collection[int]) -> dict[str, Any]:
    if name == "roll":
        shifts, dims = (each if isinstance(each, (list, tuple)) else [each] for each in (args["shifts"], args["dims"]))
        pairs = [(s, d) for s, d in zip(shifts, dims, strict=False) if (d % ndim if ndim else d) not in channels]
        return {"shifts": [s for s, _ in pairs], "dims": [d for _, d in pairs]}
    pads = list(args["pad"])
    return {"pad": [0 if ndim - 1 - place // 2 in channels else pad for place, pad in enumerate(pads)]}


def _whole(value: Any) -> bool:
    return isinstance(value, int) or (
        isinstance(value, (list, tuple)) and bool(value) and all(isinstance(each, int) for each in value)
    )
