"""How much every channel of a group matters, from the weights alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.modules import filters, named_tensors, owner_of
from adjoined.slicing.solve.groups import Group

ORDERS = ("l1", "l2", "bn")
"""What channels can be ordered by: a norm of the filters that write them, or the scale of their batch norms."""

Place = tuple[str, int]
"""(tensor name, dimension)."""


def check_order(order: str) -> str:
    """Return the order.

    Raises:
        AdjoinedError: there is no such order.
    """
    if order not in ORDERS:
        raise AdjoinedError(
            "channels cannot be ordered by this",
            where="order",
            expected="l1 or l2 (norms of the filters) or bn (scales of the batch norms)",
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
            that no batch norm with a scale normalises are ordered by "l1" then; groups that no known layer writes, by
            all weights that their channels stand in.

    Raises:
        AdjoinedError: "bn" for a model that has no batch norm with a scale.
    """

    def __init__(self, model: nn.Module, order: str) -> None:
        power = 2 if order == "l2" else 1
        self._by_filter = _filter_norms(model, power)
        self._by_scale = _scales(model) if order == "bn" else {}
        self._tensors, self._power = named_tensors(model), power
        if order == "bn" and not self._by_scale:
            raise AdjoinedError(
                "the model has no batch norm with a scale to order its channels by",
                where="order='bn'",
                fix="Use order='l1', the norm of the filters that write a channel.",
            )

    def of(self, group: Group, labels: Mapping[str, Sequence[Tensor | None]], roots: Sequence[int]) -> list[float]:
        """Return the importance of every root of a group, mean 1 for each layer; [] if no layer tells.

        Args:
            group: the channel group.
            labels: tensor name -> labels of its indices for every dimension.
            roots: label -> root.
        """
        for known in (self._by_scale, self._by_filter, self._by_weight(group)):
            found = [self._in_one_place(group, known[p], labels[p[0]][p[1]], roots) for p in group.places if p in known]
            layers = [layer for layer in found if layer]
            if layers:
                return [sum(of_one) for of_one in zip(*layers, strict=True)]
        return []

    def _by_weight(self, group: Group) -> dict[Place, Tensor]:
        """Return the norms of all weights with channels of a group: raw matrices do not say what they write."""
        weights = {(name, dim): self._tensors[name] for name, dim in group.places if self._tensors[name].ndim > 1}
        return {place: _norms(weight, place[1], self._power) for place, weight in weights.items()}

    def _in_one_place(
        self, group: Group, values: Tensor, vector: Tensor | None, roots: Sequence[int]
    ) -> list[float] | None:
        if vector is None:
            return None
        total: dict[int, float] = defaultdict(float)
        for label, value in zip(vector.tolist(), values.tolist(), strict=True):
            total[roots[label]] += value
        mean = sum(total[root] for root in group.roots) / len(group.roots)
        if not 0 < mean < float("inf"):  # zero at the start (the last norm of a residual branch), or not finite
            return None
        return [total[root] / mean for root in group.roots]


def _filter_norms(model: nn.Module, power: int) -> dict[Place, Tensor]:
    tensors, norms = named_tensors(model), {}
    for name, dim in filters(model).items():
        module = model.get_submodule(owner_of(name))
        # Parametrised and weight-normalised layers compute their filters; their norms are those that count.
        computed = getattr(module, "weight", None) if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) else None
        filter_ = computed if isinstance(computed, Tensor) else tensors[name]
        if filter_.shape == tensors[name].shape:
            norms[name, dim] = _norms(filter_, dim, power)
    return norms


def _norms(weight: Tensor, dim: int, power: int) -> Tensor:
    """Return the norm over all dimensions but one."""
    return torch.linalg.vector_norm(weight.detach().movedim(dim, 0).flatten(1), power, dim=1)


def _scales(model: nn.Module) -> dict[Place, Tensor]:
    """Return the scales of all batch norms, by torch or by others, frozen or not."""
    found = {}
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if "batchnorm" in type(module).__name__.lower() and isinstance(weight, Tensor) and weight.ndim == 1:
            found[f"{prefix}.weight" if prefix else "weight", 0] = weight.detach().abs()
    return found
