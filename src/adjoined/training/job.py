"""What is going to be trained: data, method and network, made from the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adjoined.methods import METHODS, Method
from adjoined.settings import Settings

if TYPE_CHECKING:
    from adjoined.data import ImageData


@dataclass(frozen=True)
class Job:
    """Everything a run needs before its first step."""

    settings: Settings
    images: ImageData
    method: Method
    network: nn.Module
    """What is trained, as the method has built it."""
    model: nn.Module
    """The base network alone, which `network` holds."""
    example: torch.Tensor
    """An input, float32 (1, C, H, W)."""


def make_job(settings: Settings, processes: int = 1) -> Job:
    """Open the data and build the network, under the seed of the settings.

    Args:
        settings: the settings of the run.
        processes: how many processes share a batch.

    Raises:
        AdjoinedError: data are missing, the model is unknown, or they do not fit together.
    """
    from adjoined import models
    from adjoined.data import open_data

    images = open_data(settings.data_settings(processes))
    torch.manual_seed(settings.seed)
    recipe = model_recipe(settings, images)
    model = models.build(recipe.pop("spec"), **recipe, pretrained=settings.pretrained)
    example = torch.randn(1, images.info.channels, images.info.image_size, images.info.image_size)
    method = METHODS[settings.method](settings)
    return Job(settings, images, method, method.build(model, example), model, example)


def model_recipe(settings: Settings, images: ImageData) -> dict[str, Any]:
    """Return what it takes to build the base network again, as plain data."""
    from adjoined import models

    return {
        "spec": settings.model if models.is_code(settings.model) else models.resolve(settings.model),
        "num_classes": images.info.num_classes,
        "in_channels": images.info.channels,
        "image_size": images.info.image_size,
        "options": dict(settings.model_options),
    }
