"""Pruning single weights: a network of full size whose smallest weights are set to zero and stay zero."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from adjoined.errors import AdjoinedError
from adjoined.methods.base import BuiltNetwork, TrainedNetwork, the_small_plan
from adjoined.methods.finetune import Pruned
from adjoined.names import SPARSE
from adjoined.settings import Settings
from adjoined.slicing import measure_cost


class WeightPruning(Pruned):
    """Set the smallest weights of the trained base network, over all layers, to zero, and fine-tune the others.

    Source: Han et al., "Learning both weights and connections", arXiv 1506.02626, in one round, with one threshold for
    all layers (torch.nn.utils.prune.global_unstructured). The network keeps its shapes, so it is not faster on common
    hardware.
    """

    name = SPARSE

    def prune(self, trained: nn.Module, example: Tensor) -> BuiltNetwork:
        """Return the trained network with its small weights held at zero."""
        return self.built(PrunedNetwork(trained, smallest(trained, share_of_zeros(self.settings, trained, example))))

    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return the network with its zeros in place."""
        assert isinstance(built.network, PrunedNetwork)
        return {self.name: TrainedNetwork(built.network.plain(), sparse=True)}


def share_of_zeros(settings: Settings, model: nn.Module, example: Tensor) -> float:
    """Return the fraction of convolutions' and linear layers' weights to set to zero."""
    if settings.sparsity is not None:
        return settings.sparsity
    small = measure_cost(the_small_plan(settings, model, example).apply(model), example).parameters
    weights = sum(module.get_parameter(name).numel() for module, name in _prunable(model))
    others = sum(each.numel() for each in model.parameters()) - weights
    if small <= others:
        raise AdjoinedError(
            "that many parameters cannot be set to zero",
            where=f"--method {settings.method}",
            expected=f"more than the {others} parameters that are not weights",
            got=f"{small} parameters of the small network",
            fix="Use a smaller --alpha, or --sparsity.",
        )
    return 1 - (small - others) / weights


def smallest(trained: nn.Module, share: float) -> dict[str, Tensor]:
    """Return masks, 0 or 1 for every weight of convolutions and linear layers, by name of the module.

    Args:
        trained: the network, whose weights of all layers are ranked together by magnitude; it is not changed.
        share: fraction of the weights to set to zero.
    """
    ranked = copy.deepcopy(trained)
    prune.global_unstructured(_prunable(ranked), prune.L1Unstructured, amount=share)
    return {
        name: module.get_buffer("weight_mask").clone()
        for name, module in ranked.named_modules()
        if "weight_mask" in module._buffers
    }


class PrunedNetwork(nn.Module):
    """A network whose weights are multiplied by masks in every call, so masked weights get no gradient.

    Args:
        network: the network; it is used, not copied.
        masks: name of a module -> 0 or 1 for every element of its weight.
    """

    def __init__(self, network: nn.Module, masks: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.network = network
        self.places = {f"mask-{number}": f"{name}.weight" for number, name in enumerate(masks)}
        for buffer, mask in zip(self.places, masks.values(), strict=True):
            self.register_buffer(buffer, mask)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the network returns."""
        return torch.func.functional_call(self.network, self._weights(), (x,))

    def plain(self) -> nn.Module:
        """Return a copy of the network with the zeros written into its weights."""
        copied = copy.deepcopy(self.network)
        with torch.no_grad():
            for name, weight in self._weights().items():
                copied.get_parameter(name).copy_(weight)
        return copied

    def _weights(self) -> dict[str, Tensor]:
        return {name: self.network.get_parameter(name) * self.get_buffer(mask) for mask, name in self.places.items()}


def _prunable(network: nn.Module) -> list[tuple[nn.Module, str]]:
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return [(module, "weight") for module in network.modules() if isinstance(module, kinds)]
