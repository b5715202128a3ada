"""The input that a model is made for, and its number of classes, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.models.specs import is_code, resolve


class UsualInput(NamedTuple):
    """What a model takes by default."""

    channels: int
    size: int
    """Height and width of the images, pixels."""
    classes: int


IMAGENET, CIFAR, DIGITS = UsualInput(3, 224, 1000), UsualInput(3, 32, 10), UsualInput(1, 8, 10)


def usual_input(spec: str) -> UsualInput:
    """Return what a model takes by default: timm's by its configuration, others by the data they are published for.

    Args:
        spec: the model, as `adjoined.models.build` takes it; one of the user's own counts as an ImageNet model.

    Raises:
        AdjoinedError: there is no such model.

    Example:
        >>> usual_input("cifar_resnet50"), usual_input("torchvision:inception_v3").size
        (UsualInput(channels=3, size=32, classes=10), 299)
    """
    canonical = resolve(spec)
    source, _, name = canonical.partition(":")
    if is_code(canonical):
        return IMAGENET
    if source == "adjoined":
        return DIGITS if name == "digits_resnet" else CIFAR
    if source == "timm":
        import timm

        config: Any = timm.get_pretrained_cfg(name)
        if config is None:
            return IMAGENET
        channels, _, size = config.input_size
        return UsualInput(channels, size, config.num_classes or IMAGENET.classes)
    return IMAGENET._replace(size=299) if name == "inception_v3" else IMAGENET


Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation per channel, of values in [0, 1]."""


def normalisation(spec: str) -> Normalisation | None:
    """Return the mean and standard deviation per channel of the images that a model's pretrained weights expect.

    Returns:
        Both of values in [0, 1]; None if they are not known. Torchvision's models expect ImageNet's, which photos have
        anyway.

    Raises:
        AdjoinedError: no model has this name.

    Example:
        >>> normalisation("timm:tf_efficientnet_lite0"), normalisation("resnet20")
        (((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), None)
    """
    source, _, name = ("", "", "") if is_code(spec) else resolve(spec).partition(":")
    if source != "timm":
        return None
    import timm

    config: Any = timm.get_pretrained_cfg(name)
    return None if config is None else (tuple(config.mean), tuple(config.std))


def normalisation_of(model: nn.Module) -> Normalisation | None:
    """Return the mean and standard deviation per channel of the images that a network of the user's code expects.

    Args:
        model: a network; timm's have an attribute `pretrained_cfg`, and others may have one with "mean" and "std".

    Returns:
        Both of values in [0, 1]; None if the network does not tell.

    Raises:
        AdjoinedError: they are not as many finite numbers, with standard deviations above 0.

    Example:
        >>> model = nn.Conv2d(1, 8, 3)
        >>> model.pretrained_cfg = {"mean": [0.5], "std": [0.25]}
        >>> normalisation_of(model), normalisation_of(nn.ReLU())
        (((0.5,), (0.25,)), None)
    """
    config = getattr(model, "pretrained_cfg", None)
    if not isinstance(config, Mapping) or not {"mean", "std"} <= config.keys():
        return None
    try:
        mean, std = (tuple(map(float, config[name])) for name in ("mean", "std"))
        fits = len(mean) == len(std) and all(map(math.isfinite, mean + std)) and min(std, default=0) > 0
    except (TypeError, ValueError):
        mean, std, fits = (), (), False
    if not fits:
        raise AdjoinedError(
            "not the normalisation of images",
            where=f"pretrained_cfg of {type(model).__name__}",
            expected="as many numbers in `mean` as in `std`, one for each channel, and those in `std` above 0",
            got={name: config[name] for name in ("mean", "std")},
        )
    return mean, std
