"""The small architecture trained alone: the first baseline for a small network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from adjoined.methods.alone import Alone
from adjoined.methods.base import BuiltNetwork, the_small_plan
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan, measure_cost, named_tensors


class Scratch(Alone):
    """Train the small architecture alone with cross-entropy, from random weights, for the epochs of the settings.

    Source: Liu et al., "Rethinking the value of network pruning", arXiv 1810.05270, Scratch-E.
    """

    name = "small"
    from_pretrained = False

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the small architecture with its own weights."""
        plan = the_small_plan(self.settings, model, example)
        return self.built(fresh_small(model, plan), plan)


class ScratchCompute(Scratch):
    """Train the small architecture alone, for as many epochs as cost the same as the base network's training.

    Source: arXiv 1810.05270, Scratch-B; the paper stops at twice the epochs, but here only the MACs decide.
    """

    def adapt(self, model: nn.Module, example: Tensor) -> Settings:
        """Return the settings with epochs (and those of the warm-up) times MACs of the base / MACs of the small."""
        small = the_small_plan(self.settings, model, example).apply(model)
        ratio = measure_cost(model, example).macs / measure_cost(small, example).macs
        epochs = round(ratio * self.settings.epochs)
        warmup = self.settings.warmup_epochs * epochs / self.settings.epochs
        return replace(self.settings, epochs=epochs, warmup_epochs=warmup)


def fresh_small(model: nn.Module, plan: SlicePlan) -> nn.Module:
    """Return a small network with its own random weights, drawn from the model's initialisation.

    Weights with two or more dimensions are drawn without replacement from the same tensor of the model, and scaled up
    by the square root of the ratio of channels, which preserves the variance of the outputs: exactly so for
    independent weights scaled by fan-in or fan-out, as in torch, torchvision and timm. The draw uses torch's global
    generator.

    Example:
        >>> from adjoined.slicing import make_plan
        >>> model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 4))
        >>> small = fresh_small(model, make_plan(model, torch.zeros(1, 64), alpha=4))
        >>> tuple(small[0].weight.shape)
        (128, 64)
    """
    small, full = plan.apply(model), named_tensors(model)
    with torch.no_grad():
        for name, weight in small.named_parameters():
            if weight.ndim > 1:
                drawn = full[name].flatten()[torch.randperm(full[name].numel())[: weight.numel()]].view_as(weight)
                ratio = max(full[name].shape[dim] / weight.shape[dim] for dim in (0, 1))
                weight.copy_(ratio**0.5 * drawn)
    return small
