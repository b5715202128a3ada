"""The cost of a network: parameters and multiply-adds (MACs)."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import conv_flop_count, flop_registry

from adjoined.errors import AdjoinedError
from adjoined.slicing.model.inputs import Inputs
from adjoined.slicing.model.modules import is_inside


@dataclass(frozen=True)
class Cost:
    """Size and work of a network or a layer."""

    parameters: int
    """Number of parameters, shared ones counted once; buffers such as running statistics do not count."""
    parameters_without_last: int
    """The same without the last linear layer, as the paper counts."""
    macs: int
    """Multiply-adds of convolutions and matrix products for one sample."""

    @property
    def bytes(self) -> int:
        """Size of the parameters as float32 numbers."""
        return 4 * self.parameters


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
        head = _parameters_of(model, last if last is not None and is_inside(last, name) else None)
        flops = sum(count for of, count in run.flops.items() if is_inside(of, name))
        costs[name] = Cost(total, total - head, flops // 2 // inputs.batch_size)
    return costs


def last_linear(model: nn.Module, example_input: Any) -> str | None:
    """Return the name of the last linear layer in the order of execution, or None where there is none."""
    return last_linear_of(model, _run(model, Inputs.of(example_input)).finished)


def cost_of_run(network: nn.Module, finished: Sequence[str], macs: int) -> Cost:
    """Return a network's cost from a run: the names of modules in the order they finished, and the MACs counted."""
    total = sum(p.numel() for p in network.parameters())
    return Cost(total, total - _parameters_of(network, last_linear_of(network, finished)), macs)


def _parameters_of(model: nn.Module, name: str | None) -> int:
    return 0 if name is None else sum(p.numel() for p in model.get_submodule(name).parameters())


def flops_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Return twice the multiply-adds of one call of an operator, by torch's formulas; 0 where there is none."""
    packet = op._overloadpacket
    if packet is torch.ops.aten.convolution:  # as torch's own entry does, which takes ten times as long
        x, weight, *_ = args
        return conv_flop_count(list(x.shape), list(weight.shape), list(out.shape), transposed=args[6])
    count = flop_registry.get(packet)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def last_linear_of(model: nn.Module, finished: Sequence[str]) -> str | None:
    """Return the last linear layer of a run from the names of modules in the order they finished; None without any."""
    return _last(model, finished, nn.Linear)


def last_layer_of(model: nn.Module, finished: Sequence[str]) -> str:
    """Return the last linear layer of a run, or the last convolution where there is none.

    Raises:
        AdjoinedError: there is neither.
    """
    name = last_linear_of(model, finished) or _last(model, finished, nn.modules.conv._ConvNd)
    if not name:
        raise AdjoinedError(
            "no last layer was found",
            where=type(model).__name__,
            expected="a model that runs a linear layer or a convolution among its modules",
            fix="Leave out the private head.",
        )
    return name


def _last(model: nn.Module, finished: Sequence[str], kind: type[nn.Module]) -> str | None:
    return next((name for name in reversed(finished) if isinstance(model.get_submodule(name), kind)), None)


def _run(model: nn.Module, inputs: Inputs) -> _Run:
    """Run a copy of the model, on the meta device where that works."""
    try:
        return _run_it(copy.deepcopy(model).to("meta"), inputs.map(lambda t: t.to("meta")))
    except Exception:  # data-dependent code, or a module that does not know the meta device
        return _run_it(copy.deepcopy(model), inputs)


def _run_it(model: nn.Module, inputs: Inputs) -> _Run:
    run = _Run()
    for name, module in model.named_modules():
        if not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_pre_hook(lambda *_, name=name: run.running.append(name))
            module.register_forward_hook(lambda *_: run.finished.append(run.running.pop()))
    fast = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # its fused operator's work is unknown
        with torch.no_grad(), run:
            inputs.run(model.eval())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return run


class _Run(TorchDispatchMode):
    """Counts the work of every operator for the innermost module that runs.

    Attributes:
        running: names of the modules that run, innermost last.
        finished: names of the modules in the order in which they finished.
        flops: module -> twice the multiply-adds of its own operators, those of its children not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.running = [""]
        self.finished: list[str] = []
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, or the operators that it decomposes into, and count their work."""
        kwargs = kwargs or {}
        if func._overloadpacket not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        out = func(*args, **kwargs)
        self.flops[self.running[-1]] += flops_of(func, args, kwargs, out)
        return out
