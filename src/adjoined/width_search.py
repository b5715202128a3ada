"""A width for each channel group: found by how much the loss rises when the group alone is narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from adjoined.errors import AdjoinedError
from adjoined.slicing import Inputs, Latency, Limit, Request, SlicePlan, Slicer, WidthChoice, duplicate, unwrap

LARGEST = 1e30
"""A loss that is not finite counts as this."""

Loss = Callable[[Any, Any], Any]
"""A model's output and a target -> the loss, a number or a tensor with one element."""


def search_widths(
    model: nn.Module,
    example_input: Any,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    *,
    order: str | None = "l1",
    alpha: float = 4.0,
    keep: Iterable[str] = (),
    round_to: int = 8,
    widths: Mapping[str, str] | None = None,
    compress: float | None = None,
    budget: str | Iterable[str] | None = None,
    latency: Latency | None = None,
) -> SlicePlan:
    """Find a width for each channel group of a trained network, at no more than the cost of one alpha for all.

    1. Each group alone is narrowed to a few widths between half and twice the uniform one, and the rise of the loss is
       noted. Batch norms use the statistics of the batch.
    2. Every group gets its smallest width at which the loss rises by less than a threshold: the lowest that fits.
    3. What is left is given, step by step, where the loss falls most per cost.
    4. Of this network and the uniform one, the one with the lower loss is returned.

    It runs the network about five times per group on all batches.

    Args:
        model: the trained network; it is neither run nor changed (a copy is).
        example_input: as for `make_plan`.
        batches: a few batches that the model was not trained on, or at least 100 images: pairs of an input, as for
            `example_input`, with two samples or more, and a target for `loss`; on the model's device.
        loss: the loss of an output and a target, lower for better networks.
        order: the order in which channels are dropped, as for `reorder`; give `adjoin` the same. "taylor" takes the
            gradients from the batches; None is the model's own order.
        alpha, keep, round_to, widths, compress, budget, latency: as for `make_plan`. What `widths` sets stays. Without
            a budget, MACs and parameters are at most those of the uniform network.

    Returns:
        The plan of the small network, for `adjoin(..., plan=...)`; its `alpha` and `widths` make the same plan again.
        `widths` has no new entry where the uniform network is better.

    Raises:
        AdjoinedError: `batches` is empty, the loss is NaN or infinite, or `make_plan` refuses the model or settings.

    Source: the threshold is that of FastNAS in NVIDIA's Model-Optimizer.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(), nn.Linear(512, 5))
        >>> x, y = torch.randn(8, 3, 8, 8), torch.randint(5, (8,))
        >>> plan = search_widths(model, x, [(x, y)], nn.functional.cross_entropy, alpha=2)
        >>> uniform = Slicer(model, x).plans(Request(alpha=2))[0]
        >>> plan.cost.macs <= uniform.cost.macs
        True
    """
    search = _Search(duplicate(unwrap(model)), example_input, list(batches), loss)
    return search.run(Request(alpha, keep, round_to, widths, compress, budget), order, latency)


class _Group(NamedTuple):
    """One channel group: its widths to choose from, and how much the loss rises at each of them."""

    choice: WidthChoice
    rises: list[float]
    """For each share, ascending; they do not rise."""

    def smallest(self, threshold: float) -> int:
        """Return the number of the smallest width at which the loss rises by at most a threshold; the last of none."""
        last = len(self.rises) - 1
        return next((number for number, rise in enumerate(self.rises) if rise <= threshold), last)


class _Search:
    """The plans of one network, and their losses."""

    def __init__(self, model: nn.Module, example_input: Any, batches: Sequence[tuple[Any, Any]], loss: Loss) -> None:
        if not batches:
            raise AdjoinedError("no batch to measure the loss on", where="batches", expected="at least one")
        self.model, self.batches, self.loss = model, batches, loss
        self.slicer = Slicer(model, example_input)

    def run(self, request: Request, order: str | None, latency: Latency | None) -> SlicePlan:
        """Return the plan of the best widths found; see `search_widths`."""
        if len(request.alphas) > 1:
            raise AdjoinedError("widths are searched for one small network", where="alpha", got=request.alphas)
        (uniform,) = self.slicer.plans(request, latency=latency)
        self.limits = _limits(request, uniform)
        self.request = replace(request, alpha=uniform.alpha, compress=None, budget=None)
        if order is not None:
            self._reorder(uniform, order)
        groups = self._groups(self.slicer.width_choices(self.request))
        found = self._fitting(groups)
        if found is None:
            return uniform
        plan = self._plan(groups, self._spend(groups, found))
        timed = next((limit for limit in request.limits if limit.quantity == "ms"), None)
        if timed and latency and latency(plan.cut(self.model).eval()) > timed.most:
            return uniform
        return plan if self._loss(plan) < self._loss(uniform) else uniform

    def _reorder(self, plan: SlicePlan, order: str) -> None:
        """Order the channels of the copy."""
        if order == "taylor":
            self.model.eval().zero_grad()
            for inputs, target in self.batches:
                self.loss(Inputs.of(inputs).run(self.model), target).backward()
        self.slicer.reorder(plan, order)

    def _groups(self, choices: Sequence[WidthChoice]) -> list[_Group]:
        """Return the groups, with the rise of the loss when each alone is narrow."""
        whole = replace(self.request, alpha=1.0, widths={})
        before = self._loss(*self.slicer.plans(whole))
        if before == LARGEST:
            raise AdjoinedError("the model's loss is not finite", where="batches", fix="Check model, inputs and loss.")
        found = []
        for choice in choices:
            try:
                alone = [self.slicer.plans(replace(whole, widths=choice.widths(share)))[0] for share in choice.shares]
            except AdjoinedError:  # the model's code narrows it with others only
                continue
            rises = [self._loss(plan) - before for plan in alone]
            found.append(_Group(choice, [max(rises[number:]) for number in range(len(rises))]))
        return found

    def _fitting(self, groups: Sequence[_Group]) -> list[int] | None:
        """Return the number of each group's smallest width under the lowest threshold that fits; None if none does."""
        thresholds = sorted({rise for group in groups for rise in group.rises})

        def under(number: int) -> list[int]:
            return [group.smallest(thresholds[number]) for group in groups]

        low, high = -1, len(thresholds) - 1
        if not groups or not self._fits(self._plan(groups, under(high))):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._fits(self._plan(groups, under(middle))) else (middle, high)
        return under(high)

    def _spend(self, groups: Sequence[_Group], numbers: list[int]) -> list[int]:
        """Widen groups step by step, first where the loss falls most per cost, while the network fits."""
        now, wider = self._plan(groups, numbers), dict[int, SlicePlan]()
        may = {which for which, group in enumerate(groups) if numbers[which] + 1 < len(group.rises)}

        def gain(which: int) -> float:
            rises, number = groups[which].rises, numbers[which]
            return (rises[number] - rises[number + 1]) / max(self._used(wider[which]) - self._used(now), 1e-12)

        while may:
            for which in may - wider.keys():
                wider[which] = self._plan(groups, _widened(numbers, which))
            best = max(may, key=gain)
            plan = self._plan(groups, _widened(numbers, best))  # others have changed since the estimate
            del wider[best]
            if not self._fits(plan):
                may.remove(best)
                continue
            now, numbers = plan, _widened(numbers, best)
            if numbers[best] + 1 == len(groups[best].rises):
                may.remove(best)
        return numbers

    def _plan(self, groups: Sequence[_Group], numbers: Sequence[int]) -> SlicePlan:
        widths = dict(self.request.widths or {})
        for (choice, _), number in zip(groups, numbers, strict=True):
            widths |= choice.widths(choice.shares[number])
        return self.slicer.plans(replace(self.request, widths=widths))[0]

    def _fits(self, plan: SlicePlan) -> bool:
        return plan.cost is not None and all(limit.of(plan.cost) <= limit.most for limit in self.limits)

    def _used(self, plan: SlicePlan) -> float:
        """Return how much of what is allowed a network costs, summed over the limits."""
        assert plan.cost is not None
        return sum(limit.of(plan.cost) / limit.most for limit in self.limits)

    def _loss(self, plan: SlicePlan) -> float:
        """Return the mean loss of a small network over the batches, with the statistics of each batch."""
        network = plan.cut(self.model).eval()
        for module in network.modules():
            if isinstance(module, _NormBase):
                module.train()
        with torch.no_grad():
            losses = [_number(self.loss(Inputs.of(x).run(network), y)) for x, y in self.batches]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else LARGEST


def _number(loss: Any) -> float:
    if isinstance(loss, torch.Tensor) and loss.numel() == 1:
        return loss.item()
    if isinstance(loss, (int, float)):
        return loss
    got = f"a tensor {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
    raise AdjoinedError("not a loss", where="loss", expected="a number, or a tensor with one element", got=got)


def _widened(numbers: Sequence[int], which: int) -> list[int]:
    """Return the numbers with one more for one group."""
    return [number + (each == which) for each, number in enumerate(numbers)]


def _limits(request: Request, uniform: SlicePlan) -> list[Limit]:
    """Return what the network may cost: the budget, or what the uniform network costs."""
    counted = [limit for limit in request.limits if limit.quantity != "ms"]
    cost = uniform.cost
    assert cost is not None
    return counted or [
        Limit("MACs", cost.macs, "the MACs of the uniform network"),
        Limit("parameters", cost.parameters, "its parameters"),
        Limit("parameters without the last layer", cost.parameters_without_last, "those without its last layer"),
    ]
