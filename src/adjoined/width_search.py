"""A width for each channel group: found by how much the loss rises when the group alone is narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import mul
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from adjoined.errors import AdjoinedError
from adjoined.slicing import (
    Inputs,
    Latency,
    Limit,
    Request,
    SlicePlan,
    Slicer,
    WidthChoice,
    duplicate,
    explaining,
    unwrap,
    warn_if_whole,
)

TIMED_NETWORKS = 3
"""Largest number of networks measured for a budget in milliseconds, each with a lower estimate than the one before."""
NOT_FINITE = 1e30
"""A loss that is not finite counts as this."""

Loss = Callable[[Any, Any], Any]
"""A model's output and a target -> the loss, a number or a tensor with one element."""
Progress = Callable[[str, float], None]
"""(what the search does, the share of it that is done, 0 to 1)."""


def search_widths(
    model: nn.Module,
    example_input: Any,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    *,
    order: str | None = "l1",
    alpha: float | None = None,
    keep: Iterable[str] = (),
    round_to: int = 8,
    widths: Mapping[str, str] | None = None,
    compress: float | None = None,
    budget: str | Iterable[str] | None = None,
    latency: Latency | None = None,
    progress: Progress = lambda what, share: None,
) -> SlicePlan:
    """Find a width for each channel group of a trained network, at no more than the cost of one alpha for all.

    1. Narrow each group in turn to a few widths between half and twice the uniform one, and record how much the loss
       rises. Batch norms use the statistics of the batch.
    2. Give every group its smallest width at which the loss rises by less than a threshold, the lowest that fits.
    3. Spend the rest of the budget, step by step, where it lowers the loss most per cost.
    4. Return this network or the uniform one, whichever has the lower loss.

    This runs the network about five times per group on all batches. For a budget in milliseconds it also times two
    networks per group, with this group at its smallest and at its largest width, and takes time to be linear in the
    width of each group. The result is timed as well, and narrowed if it is slower than estimated.

    Args:
        model: the trained network; it is neither run nor changed (a copy is).
        example_input: as for `make_plan`.
        batches: a few batches of held-out data, 100 samples or more in all, on the model's device: pairs of an input,
            as for `example_input` but with at least two samples, and a target for `loss`.
        loss: the loss of an output and a target, lower for better networks.
        order: the order in which channels are dropped, as for `reorder`; pass the same to `adjoin`. "taylor" takes the
            gradients from the batches; None is the model's own order.
        alpha, keep, round_to, widths, compress, budget, latency: as for `make_plan`. What `widths` sets stays. Without
            a budget, MACs and parameters are at most those of the uniform network; with one, only what it names counts.
        progress: called with what the search does and the fraction done, 0 to 1, such as a `ProgressLines`.

    Returns:
        The plan of the small network, for `adjoin(..., plan=...)`; its `alpha` and `widths` make the same plan again.
        `widths` has no new entry if the uniform network is better.

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
    request = Request(alpha, keep, round_to, widths, compress, budget)
    plan = search(model, example_input, batches, loss, request, order=order, latency=latency, progress=progress)
    warn_if_whole(plan, request)
    return plan


def search(
    model: nn.Module,
    example_input: Any,
    batches: Iterable[tuple[Any, Any]],
    loss: Loss,
    request: Request,
    *,
    order: str | None,
    latency: Latency | None = None,
    progress: Progress = lambda what, share: None,
) -> SlicePlan:
    """Do what `search_widths` does for a request, without a warning if the base is within the budget."""
    return _Search(duplicate(unwrap(model)), example_input, list(batches), loss, progress).run(request, order, latency)


class ProgressLines:
    """Prints a line for each quarter of what a search does."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last = file, ("", 0)

    def __call__(self, what: str, share: float) -> None:
        """Print, unless this quarter has been printed."""
        if (now := (what, int(4 * share))) != self._last:
            self._last = now
            print(f"  {what}: {share:.0%}".replace("%", " %"), file=self._file, flush=True)


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

    def __init__(
        self,
        model: nn.Module,
        example_input: Any,
        batches: Sequence[tuple[Any, Any]],
        loss: Loss,
        progress: Progress,
    ) -> None:
        if not batches:
            raise AdjoinedError("no batch to measure the loss on", where="batches", expected="at least one")
        for each in batches:
            if not isinstance(each, (tuple, list)) or len(each) != 2:
                raise AdjoinedError(
                    "not a pair of an input and a target",
                    where="batches",
                    expected="a list of pairs, such as [(images, classes)]",
                    got=f"a {type(each).__name__} in it",
                )
        self.model, self.batches, self.loss, self.progress = model, batches, loss, progress
        self.slicer = Slicer(model, example_input)

    def run(self, request: Request, order: str | None, latency: Latency | None) -> SlicePlan:
        """Return the plan of the best widths found; see `search_widths`."""
        if len(request.alphas) > 1:
            raise AdjoinedError("widths are searched for one small network", where="alpha", got=request.alphas)
        (uniform,) = self.slicer.plans(request, latency=latency)
        if not uniform.tensors:  # as large as the base: there is nothing to choose
            return uniform
        timed = next((limit.most for limit in request.limits if limit.quantity == "ms"), None)
        self.limits = _limits(request, uniform)
        self.request = replace(request, alpha=uniform.alpha, compress=None, budget=None)
        with explaining(self.model, self.batches[0][0]):
            if order is not None:
                self._reorder(uniform, order)
            groups = self._groups(self.slicer.width_choices(self.request))
        if timed is None or latency is None:
            numbers = self._within(groups, None)
            plan = None if numbers is None else self.plan(groups, numbers)
        else:
            plan = self._within_time(groups, uniform, timed, lambda plan: latency(plan.cut(self.model).eval()))
        if plan is None or self._loss(plan) >= self._loss(uniform):
            return uniform
        return self.with_widths(plan.widths, check=True)

    def _within(self, groups: Sequence[_Group], times: _Times | None) -> list[int] | None:
        """Return the numbers of the best widths within the limits, and within a time if one is estimated."""
        candidates = _Candidates(self, groups, times)
        found = candidates.fitting()
        return None if found is None else candidates.spend(found)

    def _within_time(
        self, groups: Sequence[_Group], uniform: SlicePlan, most: float, measure: Callable[[SlicePlan], float]
    ) -> SlicePlan | None:
        """Return the plan of the best widths that is measured to be within a time, ms; None if none is found."""
        slopes = []
        for number, (choice, _) in enumerate(groups):
            self.progress("timing each channel group", number / len(groups))
            narrow, wide = (choice.shares[end] for end in (0, -1))
            first, last = (measure(self.with_widths(choice.widths(share))) for share in (narrow, wide))
            slopes.append(max(last - first, 0.0) / float(wide - narrow))
        present, goal = measure(uniform), most
        for _ in range(TIMED_NETWORKS):
            times = _Times(present, slopes, goal)
            numbers = self._within(groups, times)
            if numbers is None:
                return None
            plan = self.plan(groups, numbers)
            took = measure(plan)
            if took <= most:
                return plan
            goal *= times.used(groups, numbers) * most / took
        return None

    def _reorder(self, plan: SlicePlan, order: str) -> None:
        """Order the channels of the copy."""
        if order == "taylor":
            self.model.eval().zero_grad()
            for inputs, target in self.batches:
                loss = self.loss(Inputs.of(inputs).run(self.model), target)
                if not isinstance(loss, Tensor) or not loss.requires_grad:
                    raise AdjoinedError(
                        "the loss has no gradients to order channels by",
                        where="loss",
                        expected="a differentiable loss for order='taylor'",
                        fix="Use order='l1', or another loss.",
                    )
                loss.backward()
        self.slicer.reorder(plan, order)

    def _groups(self, choices: Sequence[WidthChoice]) -> list[_Group]:
        """Return the groups, with the rise of the loss when each alone is narrow."""
        whole = replace(self.request, alpha=1.0, widths={})
        before = self._loss(*self.slicer.plans(whole, check=False))
        if before == NOT_FINITE:
            raise AdjoinedError("the model's loss is not finite", where="batches", fix="Check model, inputs and loss.")
        found = []
        for number, choice in enumerate(choices):
            self.progress("trying each channel group narrow", number / len(choices))
            narrow = [share for share in choice.shares if share != 1]
            try:
                alone = [
                    self.slicer.plans(replace(whole, widths=choice.widths(share)), check=False)[0] for share in narrow
                ]
            except AdjoinedError:  # the model's code narrows it only with others
                continue
            rises = [self._loss(plan) - before for plan in alone] + [0.0] * (len(choice.shares) - len(narrow))
            found.append(_Group(choice, [max(rises[number:]) for number in range(len(rises))]))
        return found

    def plan(self, groups: Sequence[_Group], numbers: Sequence[int]) -> SlicePlan:
        """Return the plan with each group's width of this number."""
        widths: dict[str, str] = {}
        for (choice, _), number in zip(groups, numbers, strict=True):
            widths |= choice.widths(choice.shares[number])
        return self.with_widths(widths)

    def with_widths(self, widths: Mapping[str, str], *, check: bool = False) -> SlicePlan:
        """Return the plan with these widths, in addition to those requested."""
        request = replace(self.request, widths={**(self.request.widths or {}), **widths})
        return self.slicer.plans(request, check=check)[0]

    def _loss(self, plan: SlicePlan) -> float:
        """Return the mean loss of a small network over the batches, with the statistics of each batch."""
        network = plan.cut(self.model).eval()
        for module in network.modules():
            if isinstance(module, _NormBase):
                module.train()
        with torch.no_grad():
            losses = [_number(self.loss(Inputs.of(x).run(network), y)) for x, y in self.batches]
        mean = sum(losses) / len(losses)
        return mean if math.isfinite(mean) else NOT_FINITE


class _Times(NamedTuple):
    """An estimate of milliseconds, and their limit."""

    present: float
    """Of the uniform network."""
    slopes: list[float]
    """By group: what its full width would cost more than none."""
    most: float

    def used(self, groups: Sequence[_Group], numbers: Sequence[int]) -> float:
        """Return the share of the allowed time that a network with these widths takes."""
        beyond = [
            float(group.choice.shares[n] - group.choice.present) for group, n in zip(groups, numbers, strict=True)
        ]
        return (self.present + sum(map(mul, self.slopes, beyond))) / self.most


class _Candidates:
    """The networks with widths of some groups, by the numbers of these widths, and what they cost."""

    def __init__(self, search: _Search, groups: Sequence[_Group], times: _Times | None) -> None:
        self.search, self.groups, self.times = search, groups, times

    def fitting(self) -> list[int] | None:
        """Return the number of each group's smallest width under the lowest threshold that fits; None if none does."""
        thresholds = sorted({rise for group in self.groups for rise in group.rises})

        def under(number: int) -> list[int]:
            return [group.smallest(thresholds[number]) for group in self.groups]

        low, high = -1, len(thresholds) - 1
        if not self.groups or not _fits(self.used(under(high))):
            return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if _fits(self.used(under(middle))) else (middle, high)
        return under(high)

    def spend(self, numbers: list[int]) -> list[int]:
        """Widen groups step by step, first where the loss falls most per cost, while the network fits."""
        now, wider = sum(self.used(numbers)), dict[int, float]()
        may = {which for which, group in enumerate(self.groups) if numbers[which] + 1 < len(group.rises)}

        def gain(which: int) -> float:
            rises, number = self.groups[which].rises, numbers[which]
            return (rises[number] - rises[number + 1]) / max(wider[which] - now, 1e-12)

        def steps_left() -> int:
            return sum(len(self.groups[which].rises) - 1 - numbers[which] for which in may)

        steps = steps_left()
        while may:
            self.search.progress("widening groups as far as the cost allows", 1 - steps_left() / steps)
            for which in may - wider.keys():
                wider[which] = sum(self.used(_widened(numbers, which)))
            best = max(may, key=gain)
            used = self.used(_widened(numbers, best))  # others have changed since the estimate
            del wider[best]
            if not _fits(used):
                may.remove(best)
                continue
            now, numbers = sum(used), _widened(numbers, best)
            if numbers[best] + 1 == len(self.groups[best].rises):
                may.remove(best)
        return numbers

    def used(self, numbers: Sequence[int]) -> list[float]:
        """Return what share of each limit a network uses."""
        cost = self.search.plan(self.groups, numbers).cost
        assert cost is not None
        timed = [] if self.times is None else [self.times.used(self.groups, numbers)]
        return [*(limit.of(cost) / limit.most for limit in self.search.limits), *timed]


def _fits(used: Sequence[float]) -> bool:
    return all(share <= 1 for share in used)


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
    if request.limits:
        return [limit for limit in request.limits if limit.quantity != "ms"]
    cost = uniform.cost
    assert cost is not None
    return [
        Limit("MACs", cost.macs, "the MACs of the uniform network"),
        Limit("parameters", cost.parameters, "its parameters"),
        Limit("parameters without the last layer", cost.parameters_without_last, "those without its last layer"),
    ]
