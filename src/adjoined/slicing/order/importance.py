"""The importance of every channel of a group, by its weights or by how the loss depends on them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.flow.labels import Axis
from adjoined.slicing.model.modules import filters, full_name, named_tensors, owner_of
from adjoined.slicing.solve.groups import Group

ORDERS = ("l1", "l2", "bn", "taylor")
"""Channels are ordered by a norm of the filters that write them, by the scale of their batch norms, or by the change of
the loss without them, to first order."""


def check_order(order: str) -> str:
    """Return the order.

    Raises:
        AdjoinedError: the order is unknown.
    """
    if order not in ORDERS:
        raise AdjoinedError(
            "unknown order of channels",
            where="order",
            expected="l1 or l2 (norms of the filters), bn (scales of the batch norms) or taylor (gradients)",
            got=repr(order),
        )
    return order


class Importance:
    """The importance of the channels of a model.

    A channel's importance is the sum over the layers that write it. Within each layer it is divided by the mean over
    the group's channels, so that layers with large weights or many inputs count no more than others.

    Args:
        model: the model, in eval mode, with its weights.
        order: "l1" or "l2": the norm of a filter over all its weights; "bn": the absolute scale of a batch norm. Groups
            that no batch norm with a scale normalises are then ordered by "l1"; groups that no known layer writes, by
            all weights that have their channels. "taylor": the absolute sum of weight times gradient over a channel's
            slice of a tensor, summed over the tensors, with the gradients that the parameters hold.

    Raises:
        AdjoinedError: "bn" for a model that has no batch norm with a scale, "taylor" for one without gradients.

    Source of "taylor": Molchanov et al., "Importance estimation for neural network pruning", arXiv 1906.10771.
    """

    def __init__(self, model: nn.Module, order: str) -> None:
        power = 2 if order == "l2" else 1
        self._by_filter = _filter_norms(model, power)
        self._by_scale = _scales(model) if order == "bn" else {}
        self._tensors, self._power = named_tensors(model), power
        self._by_loss = _first_order(self._tensors) if order == "taylor" else None
        if self._by_loss is not None and not any(value.count_nonzero() for value in self._by_loss.values()):
            raise AdjoinedError(
                "the parameters have no gradients to order channels by",
                where="order='taylor'",
                fix="Call backward() on the loss of a few batches first, in eval mode.",
            )
        if order == "bn" and not self._by_scale:
            raise AdjoinedError(
                "the model has no batch norm with a scale to order its channels by",
                where="order='bn'",
                fix="Use order='l1', the norm of the filters that write a channel.",
            )

    def of(self, group: Group, labels: Mapping[str, Sequence[Tensor | None]], roots: Sequence[int]) -> list[float]:
        """Return the importance of every root of a group; [] if no layer shows it.

        The mean over the group is 1 in each layer, except for "taylor".
        """
        if self._by_loss is not None:
            total: dict[int, float] = defaultdict(float)
            for axis in group.axes:
                vector = labels[axis.tensor][axis.dim] if axis in self._by_loss else None
                if vector is not None:
                    for label, value in zip(vector.tolist(), self._by_loss[axis].tolist(), strict=True):
                        total[roots[label]] += value
            return [total[root] for root in group.roots] if any(total.values()) else []
        for known in (self._by_scale, self._by_filter, self._by_weight(group)):
            found = [self._in_layer(group, known[a], labels[a.tensor][a.dim], roots) for a in group.axes if a in known]
            layers = [layer for layer in found if layer]
            if layers:
                return [sum(of_one) for of_one in zip(*layers, strict=True)]
        return []

    def _by_weight(self, group: Group) -> dict[Axis, Tensor]:
        """Return the norms of all weights with channels of a group: raw matrices do not show what they write."""
        weights = {axis: self._tensors[axis.tensor] for axis in group.axes if self._tensors[axis.tensor].ndim > 1}
        return {axis: _norms(weight, axis.dim, self._power) for axis, weight in weights.items()}

    def _in_layer(
        self, group: Group, values: Tensor, vector: Tensor | None, roots: Sequence[int]
    ) -> list[float] | None:
        if vector is None:
            return None
        total: dict[int, float] = defaultdict(float)
        for label, value in zip(vector.tolist(), values.tolist(), strict=True):
            total[roots[label]] += value
        mean = sum(total[root] for root in group.roots) / len(group.roots)
        if not 0 < mean < float("inf"):  # initially zero (the last norm of a residual branch), or not finite
            return None
        return [total[root] / mean for root in group.roots]


def _filter_norms(model: nn.Module, power: int) -> dict[Axis, Tensor]:
    tensors, norms = named_tensors(model), {}
    for name, dim in filters(model).items():
        module = model.get_submodule(owner_of(name))
        # Parametrised and weight-normalised layers compute their filters, so stored tensors do not show the norms.
        computed = getattr(module, "weight", None) if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) else None
        filter_ = computed if isinstance(computed, Tensor) else tensors[name]
        if filter_.shape == tensors[name].shape:
            norms[Axis(name, dim)] = _norms(filter_, dim, power)
    return norms


def _norms(weight: Tensor, dim: int, power: int) -> Tensor:
    """Return the norm over all dimensions but one."""
    return torch.linalg.vector_norm(weight.detach().movedim(dim, 0).flatten(1), power, dim=1)


def _first_order(tensors: Mapping[str, Tensor]) -> dict[Axis, Tensor]:
    """Return |sum of weight times gradient| for every index of every dimension of all parameters."""
    products = {name: tensor.detach() * tensor.grad for name, tensor in tensors.items() if tensor.grad is not None}
    return {
        Axis(name, dim): product.movedim(dim, 0).reshape(product.shape[dim], -1).sum(1).abs()
        for name, product in products.items()
        for dim in range(product.ndim)
    }


def _scales(model: nn.Module) -> dict[Axis, Tensor]:
    """Return the scales of all batch norms, torch's own and others, frozen or not."""
    found = {}
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if "batchnorm" in type(module).__name__.lower() and isinstance(weight, Tensor) and weight.ndim == 1:
            found[Axis(full_name(prefix, "weight"), 0)] = weight.detach().abs()
    return found
