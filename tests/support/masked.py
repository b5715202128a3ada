"""The oracle of law 2: the paper's masked form, z₂ = x₂ * (W ∘ M), written out on the full-width network.

It uses nothing of a slice plan but `plan.indices(name)`: every weight is multiplied by its mask, and the dropped
channels are set to zero after every normalisation and activation. Norms keep the base network's statistics and affine
parameters. Nothing of it is narrow, so a wrong slice cannot hide in it.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from adjoined.slicing import SlicePlan

NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
WEIGHTED = (nn.modules.conv._ConvNd, nn.Linear)


def masked(model: nn.Module, plan: SlicePlan) -> nn.Module:
    """Return a full-width copy of the model that computes with masks what the small network should with slices."""
    full = copy.deepcopy(model)
    norms = {name for name, module in full.named_modules() if isinstance(module, NORMS)}
    with torch.no_grad():
        for name, weight in full.named_parameters():
            if name.rpartition(".")[0] not in norms:
                for dim in range(weight.ndim):
                    mask = _mask(plan, name, dim, weight)
                    if mask is not None:
                        weight.mul_(mask.view([-1 if d == dim else 1 for d in range(weight.ndim)]))
    known: Any = WeakIdKeyDictionary()  # activation -> mask of its channels, ready to multiply
    for name, module in full.named_modules():
        if next(module.children(), None) is None and not isinstance(module, torch.jit.ScriptModule):
            module.register_forward_hook(_zeroing(plan, name, known))
    return full


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest expected value."""
    assert got.shape == expected.shape
    assert expected.isfinite().all()
    assert expected.abs().max() > 0
    return ((got - expected).abs().max() / expected.abs().max()).item()


def _zeroing(plan: SlicePlan, name: str, known: Any):
    def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        if not isinstance(out, Tensor):
            return out
        mask = _written(plan, name, module)
        if mask is not None:
            mask = mask.view([-1] if isinstance(module, nn.Linear) else [-1] + [1] * (out.ndim - 2))
        elif not module._parameters and isinstance(args[0], Tensor) and args[0].shape == out.shape:
            mask = known.get(args[0])  # an activation: the channels are those of its input
        if mask is None:
            return out
        out = out * mask.to(out)
        known[out] = mask
        return out

    return hook


def _written(plan: SlicePlan, name: str, module: nn.Module) -> Tensor | None:
    """Return the mask of the channels that a module writes, or None where it writes all or has no tensors."""
    prefix = f"{name}." if name else ""
    tensors = {**module._parameters, **module._buffers}
    if isinstance(module, NORMS):
        own = next((tensor for tensor in ("weight", "running_mean") if tensors.get(tensor) is not None), None)
        return None if own is None else _mask(plan, prefix + own, 0, tensors[own])
    if isinstance(module, WEIGHTED) and "weight" in tensors:
        if not getattr(module, "transposed", False):
            return _mask(plan, f"{prefix}weight", 0, tensors["weight"])
        if tensors.get("bias") is not None:
            return _mask(plan, f"{prefix}bias", 0, tensors["bias"])
        if getattr(module, "groups", 1) == 1:
            return _mask(plan, f"{prefix}weight", 1, tensors["weight"])
    return None


def _mask(plan: SlicePlan, name: str, dim: int, like: Tensor | None) -> Tensor | None:
    index = plan.indices(name)[dim]
    if index is None or like is None:
        return None
    mask = torch.zeros(plan.shapes[name][dim], dtype=torch.float64)
    mask[index.tolist()] = 1
    return mask.to(like)
