"""Augmentation of training images: torchvision's transforms on uint8 (C, H, W), using torch's global generator."""

from __future__ import annotations

from typing import Any

from adjoined.data.info import DataInfo
from adjoined.data.preprocessing import Transform, evaluation_transform
from adjoined.data.settings import Augmentation


def photo_transform(info: DataInfo, strength: Augmentation) -> Transform:
    """Return the augmentation for photos of any size: random resized crops and flips.

    `standard` is that of Szegedy et al., arXiv 1409.4842, which is common for ImageNet; `light` keeps at least a third
    of the image; `strong` adds TrivialAugment (Müller and Hutter, arXiv 2103.10158) and random erasing
    (Zhong et al., arXiv 1708.04896).
    """
    from torchvision.transforms import v2

    least = 0.35 if strength == "light" else 0.08
    return _cropped(info, strength, least, [v2.TrivialAugmentWide(), _erasing(info, probability=0.1)])


def masked_photo_transform(info: DataInfo, strength: Augmentation) -> Transform:
    """Return the augmentation for photos with masks, which get the same crops and flips.

    `standard` crops a quarter of the image or more; `light` keeps at least half of it; `strong` adds changes of
    brightness, contrast, saturation and hue.
    """
    from torchvision.transforms import v2

    return _cropped(info, strength, 0.5 if strength == "light" else 0.25, [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)])


def small_image_transform(info: DataInfo, strength: Augmentation, *, size: int, shift: int | None = None) -> Transform:
    """Return the augmentation for small images of `size` pixels: shifts by up to an eighth or `shift`, and flips.

    `standard` is that of Lee et al., arXiv 1409.5185, which is common for CIFAR; `light` only flips; `strong`
    adds RandAugment (Cubuk et al., arXiv 1909.13719) and random erasing.
    """
    from torchvision.transforms import v2

    steps: list[Transform] = []
    if strength in ("standard", "strong"):
        steps.append(v2.RandomCrop(size, padding=size // 8 if shift is None else shift))
    if strength != "none":
        steps.append(v2.RandomHorizontalFlip())
    if strength == "strong":
        steps += [v2.RandAugment(num_ops=2, magnitude=9), _erasing(info, probability=0.25)]
    return _resized(steps, info, size)


def digit_transform(info: DataInfo, strength: Augmentation, *, size: int) -> Transform:
    """Return the augmentation for digits of `size` pixels: small rotations, shifts and scalings, but no flips."""
    from torchvision.transforms import v2

    turn, shift, scale = {  # degrees, share of the size, factor
        "none": (0.0, 0.0, 0.0),
        "light": (5.0, 0.06, 0.05),
        "standard": (10.0, 0.1, 0.1),
        "strong": (15.0, 0.15, 0.2),
    }[strength]
    steps: list[Transform] = []
    if strength != "none":
        bilinear = v2.InterpolationMode.BILINEAR
        steps.append(v2.RandomAffine((-turn, turn), (shift, shift), (1 - scale, 1 + scale), interpolation=bilinear))
    if strength == "strong":
        steps.append(_erasing(info, probability=0.25))
    return _resized(steps, info, size)


def _cropped(info: DataInfo, strength: Augmentation, least: float, strong: list[Transform]) -> Transform:
    """Return crops of `least` of the image or more, and flips, with the `strong` steps if these are wanted."""
    from torchvision.transforms import v2

    if strength == "none":
        return evaluation_transform(info)
    steps = [v2.RandomResizedCrop(info.image_size, (least, 1.0)), v2.RandomHorizontalFlip()]
    return v2.Compose([*steps, *(strong if strength == "strong" else [])])


def _erasing(info: DataInfo, *, probability: float) -> Transform:
    from torchvision.transforms import v2

    mean: Any = [255 * mean for mean in info.mean]  # one value per channel works, although the type hint is float
    return v2.RandomErasing(probability, value=mean)


def _resized(steps: list[Transform], info: DataInfo, size: int) -> Transform:
    from torchvision.transforms import v2

    # Augmenting the small image before enlarging it is cheaper and loses nothing.
    if size != info.image_size:
        steps = [*steps, evaluation_transform(info)]
    return v2.Compose(steps) if steps else v2.Identity()
