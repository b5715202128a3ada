"""Named settings. A recipe is a function; a new one takes a few lines that change an existing one.

Example:
    >>> wide = replace(cifar(), model_options={"width": 2}, epochs=100)
    >>> wide.model, wide.epochs
    ('resnet56', 100)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adjoined.settings import Settings

# The paper never narrows the stem and the first stage, by their names in the built-in ResNets and torchvision's.
STEM_AND_FIRST_STAGE = ["conv1", "bn1", "layer1"]


def digits() -> Settings:
    """Return the default: handwritten digits of 8x8 pixels, in about half a minute on two CPU cores."""
    return Settings()


def cifar() -> Settings:
    """Return ResNet-56 on CIFAR-100, trained as by its authors, but with a cosine schedule."""
    return Settings(
        model="resnet56",
        data="cifar100",
        epochs=200,
        batch_size=128,
        lr=0.1,
        weight_decay=5e-4,
        warmup_epochs=5,
        workers=4,
        alpha=2.0,
    )


def cifar_resnet18() -> Settings:
    """Return ResNet-18 with the 3x3 stem on CIFAR-100."""
    return replace(cifar(), model="cifar_resnet18", alpha=4.0, label_smoothing=0.1, channels_last=True)


def cifar_fast() -> Settings:
    """Return a residual network that reaches about 66 % on CIFAR-100 in twelve epochs."""
    return Settings(
        model="fast_resnet32",
        method="replay",
        data="cifar100",
        epochs=12,
        batch_size=256,
        eval_batch_size=1000,
        optimizer="lookahead_sgd",
        lr=0.4,
        weight_decay=5e-4,
        schedule="onecycle",
        warmup_epochs=3,
        # No label smoothing: it hardly helps a network trained alone and makes it a worse teacher (docs/results.md).
        shift=2,
        data_on_device=True,
        low_resolution={"24": 0.5},
        channels_last=True,
        log_every=50,
    )


def imagenette() -> Settings:
    """Return ResNet-18 on photos of ten classes, 128 pixels, from scratch."""
    photos = {"model": "torchvision:resnet18", "data": "imagenette", "image_size": 128}
    return replace(cifar_resnet18(), **photos, epochs=80, batch_size=64, lr=0.05)


def imagenet_resnet50() -> Settings:
    """Return ResNet-50 on ImageNet, 224 pixels, for eight GPUs (`--devices 8`)."""
    return Settings(
        model="torchvision:resnet50",
        data="imagenet",
        image_size=224,
        epochs=100,
        batch_size=1024,
        lr=0.4,
        weight_decay=5e-5,
        warmup_epochs=5,
        label_smoothing=0.1,
        mixup=0.2,
        ema=0.9999,
        precision="bf16-mixed",
        channels_last=True,
        workers=8,
        log_every=50,
    )


def finetune() -> Settings:
    """Return ImageNet's ResNet-50, fine-tuned on your own photos (`--data folder:PATH`)."""
    return Settings(
        model="torchvision:resnet50",
        pretrained=True,
        method="transfer",
        alpha=2.0,
        data="imagenette",
        image_size=224,
        epochs=40,
        batch_size=32,
        optimizer="adamw",
        lr=5e-4,
        weight_decay=0.05,
        warmup_epochs=2,
        label_smoothing=0.1,
        ema=0.999,
        workers=4,
        channels_last=True,
    )


def paper_cifar100_resnet50() -> Settings:
    """Return the paper's run on CIFAR-100, as in its authors' code: one cycle, 4e-3, batches of 32, 100 epochs."""
    return Settings(
        model="cifar_resnet50",
        method="adjoint",
        data="cifar100",
        epochs=100,
        batch_size=32,
        optimizer="adamw",
        lr=4e-3,
        weight_decay=1e-2,
        schedule="onecycle",
        warmup_epochs=25,
        keep=list(STEM_AND_FIRST_STAGE),
        round_to=1,
        workers=4,
    )


def paper_imagenet_resnet50() -> Settings:
    """Return the paper's run on ImageNet, as in its authors' code: one cycle, 4e-3, batches of 256, 60 epochs."""
    return replace(
        paper_cifar100_resnet50(),
        model="torchvision:resnet50",
        data="imagenet",
        image_size=224,
        epochs=60,
        batch_size=256,
        warmup_epochs=15,
        workers=8,
        channels_last=True,
        log_every=50,
    )


RECIPES: dict[str, Callable[[], Settings]] = {
    "digits": digits,
    "cifar": cifar,
    "cifar-fast": cifar_fast,
    "cifar-resnet18": cifar_resnet18,
    "imagenette": imagenette,
    "imagenet-resnet50": imagenet_resnet50,
    "finetune": finetune,
    "paper-cifar100-resnet50": paper_cifar100_resnet50,
    "paper-imagenet-resnet50": paper_imagenet_resnet50,
}
"""Name in `--recipe` -> function."""
