"""Published figures of well-known small networks, for the data sets where they are comparable with a run's."""

from __future__ import annotations

from dataclasses import dataclass

from adjoined.settings import Settings


@dataclass(frozen=True)
class Source:
    """A source of published figures, and how they were measured."""

    name: str
    url: str
    training: str
    """How the networks were trained, as far as the source says."""


@dataclass(frozen=True)
class PublishedNetwork:
    """A published network."""

    name: str
    parameters: float
    macs: float | None
    top1: float
    """In [0, 1]."""
    source: Source


_CIFAR = Source(
    "pytorch-cifar-models",
    "https://github.com/chenyaofo/pytorch-cifar-models",
    "SGD, 200 epochs, batches of 256, random crops and flips",
)
_PRUNING = Source(
    "PruningBench",
    "https://github.com/HollyLee2000/PruningBench",
    "ResNet-50 of 78.35 % pruned to an eighth of its MACs and fine-tuned",
)
_TIMM = Source(
    "timm results",
    "https://github.com/huggingface/pytorch-image-models/tree/main/results",
    "each network's own long recipe",
)
_SLIMMABLE = Source(
    "slimmable networks",
    "https://github.com/JiahuiYu/slimmable_networks",
    "one ResNet-50 trained at four widths together",
)

_CIFAR10 = (
    ("ResNet-20", 0.27, 40.81, 92.60), ("ResNet-56", 0.86, 125.75, 94.37),
    ("MobileNetV2 x0.5", 0.70, 27.97, 92.88), ("MobileNetV2 x1.0", 2.24, 87.98, 93.79),
    ("ShuffleNetV2 x0.5", 0.35, 10.90, 90.13), ("ShuffleNetV2 x1.0", 1.26, 45.00, 92.98),
    ("VGG-16", 15.25, 313.73, 94.16),
)  # fmt: skip
_CIFAR100 = (
    ("ResNet-20", 0.28, 40.82, 68.83), ("ResNet-56", 0.86, 125.75, 72.63),
    ("MobileNetV2 x0.5", 0.82, 28.08, 70.88), ("MobileNetV2 x1.0", 2.35, 88.09, 74.20),
    ("ShuffleNetV2 x0.5", 0.44, 10.99, 67.82), ("ShuffleNetV2 x1.0", 1.36, 45.09, 72.39),
    ("VGG-16", 15.30, 313.77, 74.00),
)  # fmt: skip
_CIFAR100_PRUNED = (("ResNet-50, Taylor", 1.98, None, 75.38), ("ResNet-50, ThiNet", 1.58, None, 75.29))
_IMAGENET = (
    ("LCNet x1.0", 2.95, 160.0, 72.1), ("MobileNetV2 x1.0", 3.50, 310.0, 72.9),
    ("MobileNetV3 small", 2.54, 60.0, 67.6), ("MobileNetV4 small", 3.77, 190.0, 73.8),
)  # fmt: skip
_IMAGENET_SLIMMABLE = (("ResNet-50 x0.25", 1.99, 278.0, 65.0),)

_TABLES = {
    "cifar10": ((_CIFAR10, _CIFAR),),
    "cifar100": ((_CIFAR100, _CIFAR), (_CIFAR100_PRUNED, _PRUNING)),
    "imagenet": ((_IMAGENET, _TIMM), (_IMAGENET_SLIMMABLE, _SLIMMABLE)),
}
_SIZES = {"cifar10": 32, "cifar100": 32, "imagenet": 224}


def published(settings: Settings) -> tuple[PublishedNetwork, ...]:
    """Return the published networks for the same validation images at the same size; nothing for other data.

    Args:
        settings: settings of the run.

    Example:
        >>> len(published(Settings(data="digits"))), published(Settings(data="cifar100"))[0].name
        (0, 'ResNet-20')
    """
    if settings.image_size not in (None, _SIZES.get(settings.data)):
        return ()
    return tuple(
        PublishedNetwork(name, 1e6 * parameters, None if macs is None else 1e6 * macs, top1 / 100, source)
        for rows, source in _TABLES.get(settings.data, ())
        for name, parameters, macs, top1 in rows
    )
