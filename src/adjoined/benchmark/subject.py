"""The networks to measure: those of a run, or those planned from a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from adjoined.benchmark.memory import measure_activations
from adjoined.benchmark.result import NetworkFigures
from adjoined.slicing import measure_cost

VECTOR_WIDTH = 8
"""Granularity of channels in vector units and in the layouts of convolution libraries."""


@dataclass(frozen=True)
class Subject:
    """Networks to measure, side by side.

    Args:
        name: the run folder, or the name of the model.
        networks: name -> module in evaluation mode, on the CPU; the base network first.
        alpha: alpha of each small network.
        example: an input, float32 (1, C, H, W).
        file_bytes: name -> size of its weights as safetensors.
    """

    name: str
    networks: Mapping[str, nn.Module]
    alpha: list[float] | None
    example: Tensor
    file_bytes: Mapping[str, int]

    def batch(self, size: int) -> Tensor:
        """Return random images, float32 (size, C, H, W), always the same ones."""
        return torch.randn(size, *self.example.shape[1:], generator=torch.Generator().manual_seed(0))

    def figures(self, batch_sizes: list[int]) -> list[NetworkFigures]:
        """Return all counts that need no measurement."""
        found = []
        for name, module in self.networks.items():
            cost = measure_cost(module, self.example)
            one = measure_activations(module, self.example)
            peaks = {str(n): measure_activations(module, self.batch(n)).peak_bytes for n in batch_sizes}
            found.append(
                NetworkFigures(
                    name=name,
                    parameters=cost.parameters,
                    parameters_without_last=cost.parameters_without_last,
                    macs=cost.macs,
                    file_bytes=self.file_bytes[name],
                    activation_bytes=peaks,
                    moved_bytes=one.moved_bytes,
                    operators=one.operators,
                    odd_layers=odd_layers(module),
                )
            )
        return found


def odd_layers(module: nn.Module) -> list[str]:
    """Return the convolutions and linear layers whose channels do not fill vector units, by name.

    The inputs of the first layer and the outputs of the last do not count: images and classes fix them.

    Example:
        >>> odd_layers(nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 16, 1), nn.Conv2d(16, 10, 1)))
        ['0', '1']
    """
    layers = []
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.conv._ConvNd):
            layers.append((name, layer.in_channels, layer.out_channels))
        elif isinstance(layer, nn.Linear):
            layers.append((name, layer.in_features, layer.out_features))
    last = len(layers) - 1
    return [
        name
        for i, (name, inputs, outputs) in enumerate(layers)
        if (inputs % VECTOR_WIDTH and i > 0) or (outputs % VECTOR_WIDTH and i < last)
    ]
