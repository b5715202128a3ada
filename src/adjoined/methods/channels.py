"""Channel pruning by Torch-Pruning, as a slice plan: the indices kept of each tensor of the trained network."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.base import the_small_plan
from adjoined.settings import Settings
from adjoined.slicing import Index, SlicePlan, last_linear, matching_modules, measure_cost, named_tensors

HALVINGS = 10
"""Bisection steps for the pruning ratio: to 1/1024, finer than one channel of the widest layers."""


def channels_kept(trained: nn.Module, example: Tensor, importance: Any, settings: Settings) -> SlicePlan:
    """Prune the same fraction of every layer's channels, and return the slice plan.

    The network gets the size of the small network of the same settings.

    Args:
        trained: the network; it is not changed.
        example: an example input, float32 (1, C, H, W).
        importance: a torch_pruning importance.
        settings: `alpha`, `compress`, `keep` and `round_to` define the small network, `prune_to` the compared size.

    Returns:
        A slice plan with the kept indices of every tensor; no more parameters (or MACs) than the small network has.

    Raises:
        AdjoinedError: the network cannot be pruned that far.
    """
    small = measure_cost(the_small_plan(settings, trained, example).apply(trained), example)
    budget = getattr(small, settings.prune_to)
    best, low, high = None, 0.0, 1.0
    for _ in range(HALVINGS):
        share = (low + high) / 2
        pruned, history = _prune(trained, example, importance, share, settings)
        if getattr(measure_cost(pruned, example), settings.prune_to) <= budget:
            best, high = (pruned, history), share
        else:
            low = share
    if best is None:
        raise AdjoinedError(
            "the network cannot be pruned that far",
            where=f"--method {settings.method}",
            expected=f"at most {budget} {settings.prune_to}, as in the small network of these settings",
            fix="Use a smaller --alpha, or a smaller --round-to.",
        )
    return _as_plan(trained, example, *best, settings)


def _prune(
    trained: nn.Module, example: Tensor, importance: Any, share: float, settings: Settings
) -> tuple[nn.Module, Any]:
    """Return a pruned copy, and Torch-Pruning's pruning steps, in order."""
    import torch_pruning

    class Pruner(torch_pruning.BasePruner):
        """Rounds widths up, as slice plans do; a width rounded down to zero would leave a layer as it is."""

        def _round_to(self, n_pruned: int, current_channels: int, round_to: int) -> int:
            kept = max(-(-(current_channels - n_pruned) // round_to), 1) * round_to
            return current_channels - min(kept, current_channels)

    pruned = copy.deepcopy(trained).eval()
    ignored = [*matching_modules(pruned, settings.keep), last_linear(pruned, example)]
    with warnings.catch_warnings(action="ignore"):  # advice about parameters outside layers, which are not pruned
        pruner = Pruner(
            pruned,
            example,
            importance,
            pruning_ratio=share,
            ignored_layers=[pruned.get_submodule(name) for name in ignored if name],
            round_to=settings.round_to,
            in_channel_groups={},  # the default dict is shared by all pruners of a process
            out_channel_groups={},
        )
        pruner.step()
    return pruned, pruner.pruning_history()


def _as_plan(trained: nn.Module, example: Tensor, pruned: nn.Module, history: Any, settings: Settings) -> SlicePlan:
    """Prune a copy whose tensors hold the indices of their elements, and read off which ones are left."""
    import torch_pruning

    numbered = copy.deepcopy(trained).eval().double()
    with warnings.catch_warnings(action="ignore"):
        graph = torch_pruning.DependencyGraph().build_dependency(numbered, example.double())
        for tensor in named_tensors(numbered).values():
            if tensor.ndim:
                tensor.detach().copy_(torch.arange(tensor.numel()).view(tensor.shape))
        graph.load_pruning_history(history)
    plan = _plan_of(trained, numbered, pruned, settings)
    ours, theirs = plan.apply(trained).state_dict(), pruned.state_dict()
    if any(not torch.equal(ours[name], theirs[name]) for name in theirs):
        raise AdjoinedError(
            "Torch-Pruning's result is not a selection of this network's channels",
            where=f"--method {settings.method}",
            got=type(trained).__name__,
        )
    return plan


def _plan_of(trained: nn.Module, numbered: nn.Module, pruned: nn.Module, settings: Settings) -> SlicePlan:
    full, left = named_tensors(trained), named_tensors(numbered)
    tensors: dict[str, tuple[Index | None, ...]] = {}
    for name, tensor in left.items():
        if tensor.shape != full[name].shape:
            places = torch.unravel_index(tensor.detach().long().flatten(), full[name].shape)
            tensors[name] = tuple(
                None if tensor.shape[dim] == full[name].shape[dim] else Index.of(places[dim].unique().tolist())
                for dim in range(tensor.ndim)
            )
    groups = {
        name: module.groups
        for name, module in pruned.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd) and module.groups != _groups(trained, name)
    }
    return SlicePlan(
        alpha=settings.alphas[0],
        round_to=settings.round_to,
        keep=tuple(settings.keep),
        tensors=tensors,
        shapes={name: tuple(tensor.shape) for name, tensor in full.items()},
        conv_groups=groups,
    )


def _groups(model: nn.Module, name: str) -> int:
    module = model.get_submodule(name)
    assert isinstance(module, nn.modules.conv._ConvNd)
    return module.groups
