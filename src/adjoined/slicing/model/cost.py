"""What a network costs: parameters and multiply-adds (MACs)."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.inputs import Inputs


@dataclass(frozen=True)
class Cost:
    """Size and work of a network or a layer."""

    parameters: int
    """Trainable numbers, shared ones once; buffers such as running statistics do not count."""
    parameters_without_last: int
    """The same without the last linear layer, as the paper counts."""
    macs: int
    """Multiply-adds of convolutions and matrix products for one sample."""


def measure_cost(model: nn.Module, example_input: Any) -> Cost:
    """Count a network's parameters and MACs.

    Args:
        model: any module; it is neither run nor changed (a copy on the meta device is, in eval mode).
        example_input: as for `make_plan`; MACs are divided by the size of its first dimension.

    Returns:
        The cost for one sample. "MACs" counts a multiplication with its addition once; papers often call that FLOPs.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten(), nn.Linear(8 * 4, 10))
        >>> measure_cost(net, torch.zeros(1, 3, 4, 4))  # 8 * 27 weights on 2 x 2 places; 32 * 10 + 10
        Cost(parameters=546, parameters_without_last=216, macs=1184)
    """
    return cost_by_module(model, example_input)[""]


def cost_by_module(model: nn.Module, example_input: Any) -> dict[str, Cost]:
    """Count parameters and MACs of every module by its name; "" is the whole network.

    Arguments as in `measure_cost`. A module's cost includes its children's.
    """
    inputs = Inputs.of(example_input)
    order, counter = _run(model, inputs)
    # The counter names modules by their path below the class of the model: "ResNet.layer1.0".
    flops = {path.partition(".")[2]: sum(ops.values()) for path, ops in counter.flop_counts.items() if path != "Global"}
    last = _last_linear(model, order)
    costs = {}
    for name, module in model.named_modules():
        total = sum(p.numel() for p in module.parameters())
        inside = last is not None and (not name or last == name or last.startswith(f"{name}."))
        without = total - sum(p.numel() for p in model.get_submodule(last or "").parameters()) if inside else total
        costs[name] = Cost(total, without, flops.get(name, 0) // 2 // inputs.batch_size)
    whole = sum(counter.flop_counts["Global"].values()) // 2 // inputs.batch_size
    costs[""] = Cost(costs[""].parameters, costs[""].parameters_without_last, whole)
    return costs


def last_linear(model: nn.Module, example_input: Any) -> str | None:
    """Return the name of the last linear layer in the order of execution, or None where there is none."""
    order, _ = _run(model, Inputs.of(example_input))
    return _last_linear(model, order)


def last_layer(model: nn.Module, example_input: Any) -> str:
    """Return the name of the last linear layer in the order of execution, of the last convolution where there is none.

    Raises:
        AdjoinedError: there is neither.
    """
    order, _ = _run(model, Inputs.of(example_input))
    name = _last_linear(model, order) or _last(model, order, nn.modules.conv._ConvNd)
    if not name:
        raise AdjoinedError(
            "no last layer is found",
            where=type(model).__name__,
            expected="a model that runs a linear layer or a convolution among its modules",
            fix="Leave out the private head.",
        )
    return name


def _last_linear(model: nn.Module, order: list[str]) -> str | None:
    return _last(model, order, nn.Linear)


def _last(model: nn.Module, order: list[str], kind: type[nn.Module]) -> str | None:
    return next((name for name in reversed(order) if isinstance(model.get_submodule(name), kind)), None)


def _run(model: nn.Module, inputs: Inputs) -> tuple[list[str], FlopCounterMode]:
    """Run a copy of the model, on the meta device where that works; return its modules in order, and the counts."""
    try:
        return _run_it(copy.deepcopy(model).to("meta"), inputs.map(lambda t: t.to("meta")))
    except Exception:  # data-dependent code, or a module that does not know the meta device
        return _run_it(copy.deepcopy(model), inputs)


def _run_it(model: nn.Module, inputs: Inputs) -> tuple[list[str], FlopCounterMode]:
    order: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(lambda *_, name=name: order.append(name))
    model.requires_grad_(False)  # torch's counter stumbles over parameters that are handed to a module as its input
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        inputs.run(model.eval())
    return order, counter
