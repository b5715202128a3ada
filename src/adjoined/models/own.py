"""The built-in networks by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from torch import nn

from adjoined.models.fast_resnet import FastResNet
from adjoined.models.resnet import cifar_family, digits_resnet, imagenet_family
from adjoined.models.wide_resnet import WideResNet

_BUILDERS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "digits_resnet": (digits_resnet, "Three stages of one block each, for grey images of 8 pixels."),
    **{
        f"fast_resnet{width}": (
            partial(FastResNet, width),
            f"A shallow network for short training on images of 32 pixels; {width} channels in the first stage.",
        )
        for width in (16, 32, 64)
    },
    **{
        f"resnet{depth}": (
            partial(cifar_family, depth),
            f"The ResNet of {depth} layers for images of 32 pixels; stages of 16, 32 and 64 channels.",
        )
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{
        f"cifar_resnet{depth}": (
            partial(imagenet_family, depth),
            f"ImageNet's ResNet-{depth} with a 3x3 stem and no max pool, for images of 32 pixels.",
        )
        for depth in (18, 34, 50)
    },
}
_USUAL_WIDE = ((16, 1), (16, 2), (16, 4), (16, 8), (22, 8), (28, 2), (28, 10), (40, 1), (40, 2), (40, 4), (40, 10))


def names() -> list[str]:
    """Return the names of the built-in networks; of the wide ResNets, of any depth and width, the usual ones."""
    return [*_BUILDERS, *(f"wide_resnet{depth}_{factor}" for depth, factor in _USUAL_WIDE)]


def find(name: str) -> Callable[..., nn.Module] | None:
    """Return the function that builds the built-in network of this name, or None.

    Every `wide_resnet{depth}_{k}` of depth 6n + 4 is known; torchvision's wide_resnet50_2 is not one of them.
    """
    if wide := _depth_and_factor(name):
        return partial(WideResNet, *wide)
    return _BUILDERS[name][0] if name in _BUILDERS else None


def about(name: str) -> str:
    """Return a sentence about a built-in network.

    Example:
        >>> about("wide_resnet16_4")
        'The wide ResNet of 16 layers and width factor 4, for images of 32 pixels.'
    """
    if wide := _depth_and_factor(name):
        return f"The wide ResNet of {wide[0]} layers and width factor {wide[1]}, for images of 32 pixels."
    return _BUILDERS[name][1]


def _depth_and_factor(name: str) -> tuple[int, int] | None:
    wide = re.fullmatch(r"wide_resnet(\d+)_(\d+)", name)
    if not wide:
        return None
    depth, factor = map(int, wide.groups())
    return (depth, factor) if depth >= 10 and depth % 6 == 4 and factor >= 1 else None
