"""The cost of a network and of each of its modules, counted in a run without labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from adjoined.slicing.flow.findings import Findings
from adjoined.slicing.flow.labels import Ties
from adjoined.slicing.flow.run import LabelFlow
from adjoined.slicing.model.cost import Cost, last_linear_of, parameters_of
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import is_inside


def measure_cost(model: nn.Module, example_input: Any) -> Cost:
    """Count a network's parameters and MACs.

    Args:
        model: any module; it is neither run nor changed (a copy on the meta device is, in eval mode).
        example_input: as for `make_plan`; MACs are divided by the size of its first dimension.

    Returns:
        The cost for one sample. A MAC is a multiplication and an addition; papers often call it a FLOP.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 4, 10))
        >>> measure_cost(net, torch.zeros(1, 3, 4, 4))  # 8 * 27 weights at 2 x 2 positions; 32 * 10 + 10
        Cost(parameters=546, parameters_without_last=216, macs=1184)
    """
    return cost_by_module(model, example_input)[""]


def cost_by_module(model: nn.Module, example_input: Any) -> dict[str, Cost]:
    """Count parameters and MACs of every module by its name; "" is the whole network.

    Arguments are those of `measure_cost`. A module's cost includes its children's, whoever calls them.
    """
    inputs = Inputs.of(example_input)
    run = _run(model, inputs)
    last = last_linear_of(model, run.finished)
    costs = {}
    for name, module in model.named_modules():
        total = sum(p.numel() for p in module.parameters())
        head = parameters_of(model, last if last is not None and is_inside(last, name) else None)
        flops = sum(count for of, count in run.flops.items() if is_inside(of, name))
        costs[name] = Cost(total, total - head, flops // 2 // inputs.batch_size)
    return costs


def last_linear(model: nn.Module, example_input: Any) -> str | None:
    """Return the name of the last linear layer in the order of execution, or None."""
    return last_linear_of(model, _run(model, Inputs.of(example_input)).finished)


@torch.inference_mode(False)  # inference mode would run whole layers as one operator
def _run(model: nn.Module, inputs: Inputs) -> LabelFlow:
    """Run a copy of the model, on the meta device if possible."""
    flow = LabelFlow(Ties(), Findings())
    try:
        flow.run(copy.deepcopy(model).to("meta"), inputs.map(lambda t: t.to("meta")))
    except Exception:  # data-dependent code, or a module that does not know the meta device
        flow = LabelFlow(Ties(), Findings())
        flow.run(copy.deepcopy(model), inputs)
    return flow
