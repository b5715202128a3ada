"""Shared weights: one autograd node hands a weight to the base network and its slices to the small ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from adjoined.slicing.plan.index import Index, add_at, take

Indices = tuple[Index | None, ...]


def share(weight: Tensor, slices: Sequence[Indices], *, fresh_gradient: bool) -> tuple[Tensor, ...]:
    """Return a weight for the base network, and its slice for every small network.

    A plain slice's backward makes a gradient of full size for every small network and adds it up. Here the slices'
    gradients are added into the base's gradient at their place, and the weight receives one gradient a step, so that
    hooks of data-parallel training fire once.

    Args:
        weight: a parameter of the base network.
        slices: kept indices for each dimension, one entry for every small network.
        fresh_gradient: the base's gradient of this weight is a tensor that nothing else refers to (that of a
            convolution's or linear layer's weight), so it may be added to in place; otherwise it is copied first.

    Returns:
        The weight itself, and a tensor for every small network: a view where the indices are consecutive.
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and weight.requires_grad):
        return (weight, *(take(weight, indices) for indices in slices))
    return _Share.apply(weight, tuple(slices), fresh_gradient)  # pyright: ignore[reportReturnType]


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, slices: tuple[Indices, ...], fresh_gradient: bool) -> tuple[Tensor, ...]:
        ctx.slices, ctx.fresh_gradient, ctx.shape = slices, fresh_gradient, weight.shape
        ctx.set_materialize_grads(False)
        return (weight.view_as(weight), *(take(weight, indices).view_as(take(weight, indices)) for indices in slices))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None]:
        total, *parts = gradients
        arrived = [(indices, part) for indices, part in zip(ctx.slices, parts, strict=True) if part is not None]
        if not arrived:
            return total, None, None
        if total is None:
            total = arrived[0][1].new_zeros(ctx.shape)
        elif torch.is_grad_enabled() or not ctx.fresh_gradient:  # a gradient of the gradient needs the one before
            total = total.clone()
        for indices, part in arrived:
            add_at(total, indices, part)
        return total, None, None
