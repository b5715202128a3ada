"""The adversarial set: every network of the five modules, and what is expected of it at alpha = 4."""

from __future__ import annotations

from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

import adversarial_attention as attention
import adversarial_layers as layers
import adversarial_modules as modules
import adversarial_places as places
import adversarial_recurrence as recurrence
from constructs import Net, X
from zoo import lively, seeded

SHARE = 0.135
"""The largest share of the parameters left where nothing stays at full width (ideal: between 1/16 and 1/4)."""

WIDE: dict[type[nn.Module], tuple[float, str]] = {
    places.PermutedByIndexing: (0.30, r"index|of bounds"),
    places.GatheredChannels: (0.30, r"selected by value.*\(gather\)"),
    places.AddedByIndex: (0.30, r"written to positions that depend on values.*\(index_add\)"),
    places.StrongestChannels: (0.41, r"sorted by value.*\(topk\)"),
    places.PutByOrder: (0.30, r"written to positions that depend on channels.*\(index_put_\)"),
    places.ListedChannels: (0.27, r"own forward \(index\)"),
    places.FoldedByNumber: (0.30, r"own forward \((view|reshape)\)|\(view"),
    places.SplitByNumber: (1.0, r".+"),
    places.WidthChecked: (1.0, r"expected 32 channels, got 8"),
    attention.BilinearPooling: (0.12, r"two channels at once, in 'two'"),
    attention.KernelsWeighted: (0.24, r"counts the kernels in a bank"),
    attention.KernelsFlat: (0.8, r"kernels in a bank|an output and an input channel at once.*\(convolution\)"),
    attention.Hypernetwork: (0.35, r"an output and an input channel at once.*\(convolution\)"),
    attention.Involution: (0.35, r".+"),
    attention.ExpertsWeighted: (0.07, r"one at a time"),
    layers.ResponseNorm: (0.30, r"along the channel dimension, in 'one'"),
    layers.NormOverPicture: (0.12, r"combined with a tensor of fixed width, in 'one'"),
    layers.Deformable: (0.12, r"a deformable kernel, in 'one' \(deform_conv2d\)"),
    layers.DeformableWithMask: (0.16, r"a deformable kernel, in 'one' \(deform_conv2d\)"),
    layers.GridSampled: (0.09, r"combined with a tensor of fixed width"),
    layers.LocalDescriptors: (0.22, r"two channels at once, in 'back'"),
    modules.Scripted: (0.60, r"TorchScript module 'two'"),
    modules.GroupsByNumber: (0.35, r"a size of 8 where 2 of 8 are left.*\(native_group_norm\)"),
    modules.SinusoidsAdded: (0.30, r"combined with a tensor of fixed width.*\(add\)"),
}
"""Network -> share of the parameters left, and the reason of the groups at full width."""

CROSSING = {
    attention.EncoderLayer, attention.ChannelsAttend, attention.AllChannelsAttend,
    attention.ConvolutionalBlockAttention, layers.RootMeanSquareNorm, layers.NormOverPicture, layers.NormByHand,
    layers.ResponseOfAll, layers.NormalisedChannels, layers.WeightNorm, layers.StandardisedWeight,
    layers.StandardisedByBatchNorm, layers.CosineClassifier, attention.EncoderDecoder, modules.Prototypes,
    modules.RowsTimesFeatures, modules.ShortFilters,
}  # fmt: skip
"""Networks with statistics over the kept channels, which no masked form has."""


def networks() -> list[type[nn.Module]]:
    """Return all networks of the set."""
    bases = {Net, attention.TokenNet, attention.Heads, recurrence.Recurrent}
    return [
        each
        for module in (places, attention, layers, recurrence, modules)
        for each in _classes(module)
        if each not in bases and (issubclass(each, Net) or hasattr(each, "example"))
    ]


def _classes(module: ModuleType) -> list[type[nn.Module]]:
    found = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, nn.Module)]
    return [each for each in found if each.__module__ == module.__name__]


def build(cls: type[nn.Module]) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return a network in float64 with random norms, in eval mode, and its example input."""
    example: Any = getattr(cls, "example", X)
    example = example if isinstance(example, tuple) else (example,)
    if issubclass(cls, Net):
        return lively(seeded(cls), X), example
    return seeded(cls).double().eval(), tree_map(lambda t: t.double(), example)
