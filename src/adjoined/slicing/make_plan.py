"""The public functions that turn a model into slice plans and order its channels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.cost import last_layer_of
from adjoined.slicing.model.original import has_functions
from adjoined.slicing.order.reorder import reorder_channels, select_channels
from adjoined.slicing.plan.plan import SlicePlan
from adjoined.slicing.solve.find_alpha import Latency, find_alpha
from adjoined.slicing.solve.request import Request
from adjoined.slicing.solve.solve import solve
from adjoined.slicing.solve.traces import Traces
from adjoined.slicing.solve.unread import with_unread_sizes
from adjoined.slicing.solve.width_choices import WidthChoice, width_choices
from adjoined.slicing.verify.check import Checked, Checker
from adjoined.slicing.verify.widen import checked_plan
from adjoined.warn import warn


class Slicer:
    """A model and everything derived from its trace, which is made once: plans, the channels' order, the last layer.

    Args:
        model: any module with convolutions; it is neither run nor changed (a copy is), except by `reorder`.
        example_input: an input of the model: a tensor such as float32 (1, 3, 224, 224), a tuple of positional
            arguments, or a dict of keyword arguments.

    Raises:
        AdjoinedError: `model` is not a model, or has no weights to narrow.

    Attributes:
        checks: the results of the check, for each of the plans returned last.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 1)), torch.zeros(1, 3, 8, 8)
        >>> slicer = Slicer(net, x)
        >>> [plan.cost.parameters for plan in slicer.plans(Request(alpha=(2, 4)))], slicer.last_layer()
        ([1226, 618], '2')
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._traces = Traces(model, example_input)
        self.checks: list[Checked] = []

    def plans(self, request: Request, *, latency: Latency | None = None, check: bool = True) -> list[SlicePlan]:
        """Return the plan of every requested small network.

        Args:
            request: the settings of the small networks.
            latency: measures a candidate in milliseconds; needed for a budget in milliseconds.
            check: compare every small network with the masked base (see `check_plan`), and keep channels at full width
                where they differ; where they cannot be compared, a warning says why.

        Raises:
            AdjoinedError: the model does not run on the example input, cannot meet the request, or none of its small
                networks passes the check.
        """
        traces = self._traces
        makers = [partial(solve, traces, request, alpha) for alpha in request.alphas]
        if request.chooses_alpha:
            makers = [partial(find_alpha, traces, request, latency)]
        self.checks = []
        if check:
            checker = Checker(traces.model, traces.inputs)
            pairs = [checked_plan(make, traces, request, checker) for make in makers]
            plans, self.checks = [plan for plan, _ in pairs], [checked for _, checked in pairs]
            for checked in self.checks:
                checked.warn()
        else:
            plans = [make() for make in makers]
        return with_unread_sizes(traces.model, traces.inputs, plans)

    def width_choices(self, request: Request) -> list[WidthChoice]:
        """Return the widths that can be chosen one by one, near those that one alpha gives.

        Raises:
            AdjoinedError: as for `plans`.

        Example:
            >>> import torch
            >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 10, 1))
            >>> (choice,) = Slicer(net, torch.zeros(1, 3, 8, 8)).width_choices(Request(alpha=4))
            >>> choice.modules, [str(share) for share in choice.shares]
            (('0',), ['1/8', '1/4', '3/8', '1/2'])
        """
        solve(self._traces, request, *request.alphas)
        return width_choices(self._traces.model, self._traces.latest[1].groups, request.round_to)

    def reorder(self, plans: SlicePlan | Sequence[SlicePlan], order: str = "l1") -> list[SlicePlan]:
        """Reorder the model's channels in place; see `adjoined.slicing.reorder`."""
        return reorder_channels(self._traces, [plans] if isinstance(plans, SlicePlan) else list(plans), order)

    def check_copies(self) -> None:
        """Raise AdjoinedError if copies of the model still run it; a model without functions is not traced for that."""
        if has_functions(self._traces.model):
            self._traces.latest  # noqa: B018

    def last_layer(self) -> str:
        """Return the name of the last linear layer to run, or of the last convolution if there is none.

        Raises:
            AdjoinedError: there is neither.
        """
        return last_layer_of(self._traces.model, self._traces.latest[0].finished)


@contextmanager
def explaining(model: nn.Module, example_input: Any) -> Iterator[None]:
    """Run a block that calls a model; if the input does not fit the model, raise an error that names the layer.

    Args:
        model, example_input: as for `Slicer`.

    Raises:
        AdjoinedError: the block raised an exception, and the model does not run on this input.
    """
    try:
        yield
    except AdjoinedError:
        raise
    except Exception:
        Traces(model, example_input).latest  # noqa: B018 - a trace knows where the model fails
        raise


def make_plan(
    model: nn.Module,
    example_input: Any,
    *,
    alpha: float | None = None,
    keep: Iterable[str] = (),
    round_to: int = 8,
    compress: float | None = None,
    widths: Mapping[str, str] | None = None,
    budget: str | Iterable[str] | None = None,
    latency: Latency | None = None,
    check: bool = True,
) -> SlicePlan:
    """Work out which slices of a model's tensors make up its small network.

    Args:
        model, example_input: as for `Slicer`.
        alpha, keep, round_to, compress, widths, budget: as for `Request`.
        latency: measures a candidate in milliseconds; needed for a budget in milliseconds.
        check: compare the small network with the masked base (see `check_plan`), and keep channels at full width where
            they differ.

    Returns:
        The plan of one small network that runs, with a reason for every group at full width.

    Raises:
        AdjoinedError: a setting is invalid or cannot be met, or the model does not run on the example input.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 10, 1))
        >>> print(make_plan(net, torch.zeros(1, 3, 8, 8), alpha=4))  # doctest: +ELLIPSIS
        slice plan: alpha 4, widths in multiples of 8
        channel group  layers  base  small
        0                   3    64     16
        ...
        >>> make_plan(net, torch.zeros(1, 3, 8, 8), budget="3 kB").cost.bytes
        2600
    """
    slicer = Slicer(model, example_input)
    request = Request(alpha, keep, round_to, widths, compress, budget)
    if len(request.alphas) > 1:
        raise AdjoinedError("one plan has one alpha", where="alpha", got=request.alphas, fix="Make a plan for each.")
    (plan,) = slicer.plans(request, latency=latency, check=check)
    warn_if_whole(plan, request)
    return plan


def warn_if_whole(plan: SlicePlan, request: Request) -> None:
    """Warn if the base network already meets the budget, so that the small network is as large."""
    if request.budget is not None and not plan.tensors:
        text = f"the base network fits into {', '.join(request.budget)}, so the small network is as large as the base"
        warn(text)


def reorder(
    model: nn.Module, example_input: Any, plans: SlicePlan | Sequence[SlicePlan], order: str = "l1"
) -> list[SlicePlan]:
    """Reorder a model's channels in place, so that the small networks keep the most important ones.

    The model's function stays the same. Parameters and buffers remain the same objects, so an existing optimizer
    remains valid; but once it has taken steps, its momentum belongs to the old order.

    Args:
        model: the base network; importance is computed from its weights.
        example_input: an input of the model, as for `make_plan`.
        plans: the slice plan of the small network, or of every network of a family. They stay valid.
        order: "l1" or "l2": the norm of the filters that write a channel, divided by the layer's mean over the group,
            summed over the layers; "bn": the same with the absolute scale of the batch norms, and "l1" for groups
            without them; "taylor": the change of the loss without the channel, to first order, from the gradients that
            the parameters hold after `backward()` on a few batches. Channels that are kept together (groups of a
            convolution, heads) are ordered as one.

    Returns:
        The plans with the order recorded, and the reason for every group that keeps its order.

    Raises:
        AdjoinedError: the order is unknown, "bn" has no batch norm, a plan is of another model, or the model does not
            run.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.zeros(1, 1, 2, 2)
        >>> _ = net[0].weight.data.copy_(torch.tensor([1.0, -4.0, 2.0, 3.0]).view(4, 1, 1, 1))
        >>> (plan,) = reorder(net, x, make_plan(net, x, alpha=2, round_to=1))
        >>> net[0].weight.flatten().tolist(), plan.order
        ([-4.0, 3.0, 2.0, 1.0], 'l1')
    """
    return Slicer(model, example_input).reorder(plans, order)


def select(model: nn.Module, example_input: Any, plan: SlicePlan, order: str = "l1") -> SlicePlan:
    """Return the plan of the small network that keeps the most important channels instead of the first ones.

    The small network computes the same as after `reorder`, but the model stays as it is.

    Args:
        model, example_input, order: as for `reorder`.
        plan: the slice plan of the small network.

    Raises:
        AdjoinedError: as for `reorder`.

    Example:
        >>> import torch
        >>> net, x = nn.Sequential(nn.Conv2d(1, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)), torch.zeros(1, 1, 2, 2)
        >>> _ = net[0].weight.data.copy_(torch.tensor([1.0, -4.0, 2.0, 3.0]).view(4, 1, 1, 1))
        >>> plan = select(net, x, make_plan(net, x, alpha=2, round_to=1))
        >>> plan.indices("0.weight")[0].tolist(), plan.indices("2.weight")[1].tolist()
        ([1, 3], [1, 3])
    """
    return select_channels(Traces(model, example_input), plan, order)
