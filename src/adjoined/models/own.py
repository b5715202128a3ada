"""The built-in networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from adjoined.models.fast_resnet import FastResNet
from adjoined.models.resnet import cifar_family, digits_resnet, imagenet_family
from adjoined.models.wide_resnet import WideResNet

_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "digits_resnet": digits_resnet,
    **{f"fast_resnet{width}": partial(FastResNet, width) for width in (16, 32, 64)},
    **{f"resnet{depth}": partial(cifar_family, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"cifar_resnet{depth}": partial(imagenet_family, depth) for depth in (18, 34, 50)},
}
_USUAL_WIDE = ((16, 1), (16, 2), (16, 4), (16, 8), (22, 8), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4), (40, 10))


def names() -> list[str]:
    """Return the names of the built-in networks; of the wide ResNets, of any depth and width, the usual ones."""
    return [*_BUILDERS, *(f"wide_resnet{depth}_{factor}" for depth, factor in _USUAL_WIDE)]


def find(name: str) -> Callable[..., nn.Module] | None:
    """Return the function that builds the built-in network of this name, or None.

    Every `wide_resnet{depth}_{k}` of depth 6n + 4 is known; torchvision's wide_resnet50_2 is not one of them.
    """
    wide = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
    if not wide:
        return _BUILDERS.get(name)
    depth, factor = map(int, wide.groups())
    return partial(WideResNet, depth, factor) if depth >= 10 and depth % 6 == 4 and factor >= 1 else None
