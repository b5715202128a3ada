"""Which tensors without labels have equal elements by construction, such as zeros and ones: they fit any width."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing.flow.labels import squeeze_equal, varying

_CREATED = {"zeros": 0, "new_zeros": 0, "ones": 1, "new_ones": 1, "empty": None, "new_empty": None}
_CREATED |= {"empty_strided": None, "new_empty_strided": None}
"""Operator that makes a tensor of equal elements -> their value; None if it is not known."""

_FILLED = {"full": 1, "new_full": 2, "scalar_tensor": 0}
"""The same for operators that get the value -> position of the argument."""

CREATE = {*_CREATED, *_FILLED}

NOISE = {"rand", "randn", "randint"}
"""Operators whose elements differ only by chance."""

_LARGEST_PATTERN = 1 << 24
"""Most elements of a pattern: the tensors of a trace take no memory, but patterns do."""

_JOINS = ("cat", "concat", "stack", "constant_pad_nd", "pad")

_UNEVEN = {
    "tril", "triu", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin", "sort", "argsort", "msort", "topk",
    "repeat_interleave", "slice_scatter", "select_scatter", "diagonal_scatter", "as_strided_scatter", "index_put",
    "_index_put_impl", "_unsafe_index_put", "index_fill", "scatter", "scatter_add", "scatter_reduce", "index_add",
    "index_copy", "index_reduce", "_fft_r2c", "_fft_c2c", "_fft_c2r", "convolution", "max_unpool2d", "max_unpool3d",
    "grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler", "roi_align", "roi_pool",
}  # fmt: skip
"""Operators that make elements differ by their places."""


class Uniform:
    """The tensors of a run without labels whose elements are all equal, or differ along some dimensions only.

    Equal ones have a value, or an object for one that is unknown. Others, such as a causal mask for several heads, have
    a pattern: numbers, with size 1 along the dimensions in which nothing changes.
    """

    def __init__(self) -> None:
        self._value: Any = WeakIdKeyDictionary()
        self._pattern: Any = WeakIdKeyDictionary()
        self._filled: Any = WeakIdKeyDictionary()

    def __contains__(self, tensor: Tensor) -> bool:
        """Return whether all elements are equal."""
        return self._of(tensor) is not None

    def differs_along(self, tensor: Tensor) -> set[int] | None:
        """Return the dimensions along which elements may differ; None if nothing is known."""
        pattern = self._pattern_of(tensor)
        return None if pattern is None else set(varying(pattern))

    def note(
        self,
        name: str,
        args: Sequence[Any],
        given: Sequence[Tensor],
        results: Sequence[Tensor],
        *,
        understood: bool,
        elementwise: bool,
        move: Callable[[Tensor], Sequence[Tensor] | None] | None,
    ) -> None:
        """Follow equal elements through an operator whose operands `given` have no labels.

        `understood` is whether it has a rule, `move` runs it on a pattern if it only moves elements.
        """
        value = self._result(name, args, given, understood, move is not None)
        patterns = [None] * len(results)
        if value is None and given and results:
            patterns = self._patterns(name, args, given, results, elementwise, move)
        if value is None and name == "cat":
            self._note_filled(given, args[1] if len(args) > 1 else 0, results[0])
        self.set(name, results, value)
        for tensor, pattern in zip(results, patterns, strict=False):
            if pattern is not None:
                self._pattern[tensor] = pattern

    def set(self, name: str, results: Sequence[Tensor], value: Any = None) -> None:
        """Record the value of an operator's results; None if their elements may differ."""
        for tensor in results:
            self._pattern.pop(tensor, None)
            if value is not None:
                self._value[tensor] = value
            else:  # an in-place operator may have changed it
                self._value.pop(tensor, None)
            base = tensor._base if name.endswith("_") else None
            if base is not None and (value is None or tensor.shape != base.shape):
                self._value.pop(base, None)  # a part may differ from the rest now
                self._pattern.pop(base, None)

    def filled(self, tensor: Tensor, dim: int) -> Tensor | None:
        """Return which places of a concatenation hold one value, such as the zeros of a ConvLSTM's first state."""
        at, places = self._filled.get(tensor, (None, None))
        return places if at == dim else None

    def _of(self, tensor: Tensor) -> Any:
        """Return the value of all elements; a view of memory that was written in parts has none."""
        value, base = self._value.get(tensor), tensor._base
        return value if base is None or base in self._value else None

    def _pattern_of(self, tensor: Tensor) -> Tensor | None:
        if self._of(tensor) is not None:
            return torch.zeros([1] * tensor.ndim, dtype=torch.int32, device="cpu")
        known = tensor._base is None or tensor._base in self._pattern or tensor._base in self._value
        return self._pattern.get(tensor) if known else None

    def _result(self, name: str, args: Sequence[Any], given: Sequence[Tensor], understood: bool, moves: bool) -> Any:
        if name in _CREATED:
            value = _CREATED[name]
            return object() if value is None else value
        if name in _FILLED:
            return args[_FILLED[name]]
        values = [self._of(tensor) for tensor in given]
        if not values or None in values:
            return None
        if name in _JOINS:
            values += [args[3] if len(args) > 3 else args[2] if len(args) > 2 else 0] if "pad" in name else []
            return values[0] if all(value == values[0] for value in values) else None
        if name.rstrip("_") in _UNEVEN or not understood:
            return None
        return values[0] if moves and len(values) == 1 else object()

    def _patterns(
        self,
        name: str,
        args: Sequence[Any],
        given: Sequence[Tensor],
        results: Sequence[Tensor],
        elementwise: bool,
        move: Callable[[Tensor], Sequence[Tensor] | None] | None,
    ) -> Sequence[Tensor | None]:
        """Return the patterns of the results if those of all operands are known."""
        patterns = [self._pattern_of(tensor) for tensor in given]
        nothing = [None] * len(results)
        if any(pattern is None for pattern in patterns):
            return nothing
        out, known = results[0], [pattern for pattern in patterns if pattern is not None]
        dims = {d + out.ndim - pattern.ndim for pattern in known for d in varying(pattern)}
        if name in ("tril", "triu", "tril_", "triu_"):
            dims |= {out.ndim - 2, out.ndim - 1}
        elif name in ("cumsum", "cumprod", "logcumsumexp"):
            dims.add(args[1] % out.ndim)
        elif name == "constant_pad_nd":
            dims |= {out.ndim - 1 - place // 2 for place, pad in enumerate(args[1]) if pad}
        elif move is not None and len(given) == 1 and name not in _UNEVEN:
            return [squeeze_equal(each) for each in move(known[0]) or ()] or nothing
        elif not elementwise:
            return nothing
        if (places := math.prod(out.shape[d] for d in dims)) > _LARGEST_PATTERN:
            return nothing
        pattern = torch.arange(places, dtype=torch.int32, device="cpu")
        return [pattern.view([size if d in dims else 1 for d, size in enumerate(out.shape)])]

    def _note_filled(self, parts: Sequence[Tensor], dim: int, out: Tensor) -> None:
        values = [self._of(part) for part in parts]
        known = [value for value in values if value is not None]
        if known and all(value == known[0] for value in known):
            sizes = zip(parts, values, strict=True)
            places = [torch.full((part.shape[dim],), value is not None, device="cpu") for part, value in sizes]
            self._filled[out] = dim % out.ndim, torch.cat(places)
