"""The cost of a network, parameters and multiply-adds (MACs), from a run that has counted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import conv_flop_count, flop_registry

from adjoined.errors import AdjoinedError


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


def cost_of_run(network: nn.Module, finished: Sequence[str], macs: int) -> Cost:
    """Return a network's cost from a run: the names of modules in the order they finished, and the MACs counted."""
    total = sum(p.numel() for p in network.parameters())
    return Cost(total, total - parameters_of(network, last_linear_of(network, finished)), macs)


def parameters_of(model: nn.Module, name: str | None) -> int:
    """Return the number of parameters of a module; 0 for no module."""
    return 0 if name is None else sum(p.numel() for p in model.get_submodule(name).parameters())


def flops_of(op: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> int:
    """Return twice the multiply-adds of one call of an operator, by torch's formulas; 0 if there is none."""
    packet = op._overloadpacket
    if packet is torch.ops.aten.convolution:  # like torch's own entry, which takes ten times as long
        x, weight, *_ = args
        return conv_flop_count(list(x.shape), list(weight.shape), list(out.shape), transposed=args[6])
    count = flop_registry.get(packet)
    return 0 if count is None else count(*args, **kwargs, out_val=out)


def last_linear_of(model: nn.Module, finished: Sequence[str]) -> str | None:
    """Return the last linear layer of a run from the names of modules in the order they finished; None without any."""
    return _last(model, finished, nn.Linear)


def last_layer_of(model: nn.Module, finished: Sequence[str]) -> str:
    """Return the last linear layer of a run, or the last convolution if there is none.

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
