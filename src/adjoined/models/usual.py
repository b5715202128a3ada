"""The input that a model is made for, and the classes that it tells apart, before anything is trained."""

from __future__ import annotations

from typing import Any, NamedTuple

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


def normalisation(spec: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation per channel of the images that a model's pretrained weights expect.

    Args:
        spec: the model, as `adjoined.models.build` takes it.

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
