"""Refusals of other tools' ways to change or run weights that networks share: sharding, exchanged gradients, states."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing import full_name


def refuse_sharded(tensor: Tensor | None, name: str) -> None:
    """Raise AdjoinedError if a tensor is sharded over processes: small networks are slices of whole weights."""
    distributed = sys.modules.get("torch.distributed.tensor")  # imported if weights are sharded
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        raise AdjoinedError(
            "the weight is sharded over processes, and small networks are slices of whole weights",
            where=f"'{name}'",
            fix="Train with fully_shard(net), the joint network as one, without sharding its layers. To extract, "
            "load its full state (full_state_dict=True) into a joint network that is not sharded.",
        )


def refuse_per_sample(layer: nn.Module, where: str, name: str) -> None:
    """Raise AdjoinedError if Opacus or BackPACK has marked a weight, or its layer, for gradients per sample.

    Their hooks on the layer see the base network's calls only.
    """
    if hasattr(layer._parameters[name], "grad_sample") or "_backpack_extend" in vars(layer):
        raise AdjoinedError(
            "Opacus and BackPACK compute gradients per sample in hooks on layers, which miss the small networks' part",
            where=f"'{full_name(where, name)}'",
            fix="Compute them with torch.func, or use these tools on a copy of the model or on net.extract().",
        )


def exchanges_gradients() -> bool:
    """Return whether this process trains together with others."""
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def refuse_base_alone(base: nn.Module) -> None:
    """Raise AdjoinedError if processes exchange the gradients of the base network, and not of its small networks."""
    contract = sys.modules.get("torch.distributed._composable.contract")  # imported if a function below was called
    called = () if contract is None or torch.compiler.is_compiling() else contract._get_registry(base) or ()
    if isinstance(base, nn.parallel.DistributedDataParallel) or "fully_shard" in called or "replicate" in called:
        raise AdjoinedError(
            "the base network exchanges gradients with other processes, and its small networks would drift apart",
            where="base",
            expected="the joint network in DistributedDataParallel, or sharded as one",
            fix="Pass net, and not net.base: DistributedDataParallel(net), whose result you call, or fully_shard(net).",
        )


def refuse_other_state(names: Sequence[str], prefix: str) -> None:
    """Raise AdjoinedError if a state with these names is not that of a joint network with this prefix."""
    if names and not any(name.startswith((f"{prefix}base.", f"{prefix}smalls.")) for name in names):
        wrapped = next((found for name in names if (found := re.match(r"(.*?\.)smalls\.\d+\.", name))), None)
        raise AdjoinedError(
            "not the state of a joint network",
            where="load_state_dict()",
            expected=f"tensors of names such as {prefix}base.NAME",
            got=names[0],
            fix=f"Leave out '{wrapped[1]}' in front of all names."
            if wrapped
            else "Load the weights of a model before calling adjoin.",
        )


def not_recorded(by: str) -> AdjoinedError:
    """Return the error for a tool that would record a joint network as one graph."""
    return AdjoinedError(
        f"{by} cannot record a joint network, whose small networks get their weights in each call",
        where="AdjoinedNetwork",
        fix="Use it on net.base and on net.extract(), or use torch.compile, torch.export or torch.jit.trace.",
    )


def refuse_symbols(args: Any) -> None:
    """Raise AdjoinedError if `torch.fx` calls a joint network to record it."""
    if isinstance(args, torch.fx.Proxy) or any(isinstance(each, torch.fx.Proxy) for each in args):
        raise not_recorded("torch.fx")
