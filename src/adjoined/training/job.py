"""A training job: data, method and network, built from the settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from adjoined.errors import AdjoinedError
from adjoined.methods import METHODS, BuiltNetwork, Method
from adjoined.settings import Settings
from adjoined.training.freezing import freeze
from adjoined.training.loaders import training_images
from adjoined.training.optimizers import check_optimizer

if TYPE_CHECKING:
    from adjoined.data import ImageData


@dataclass(frozen=True)
class Job:
    """Everything that a run needs before its first step."""

    settings: Settings
    """The settings of this training: those of the run, adapted by the method."""
    images: ImageData
    method: Method
    built: BuiltNetwork
    """The module to train, as the method built it."""
    model: nn.Module
    """The base network named in the settings."""
    example: torch.Tensor
    """An example input, float32 (1, C, H, W)."""

    @property
    def network(self) -> nn.Module:
        """The module to train."""
        return self.built.network


def make_job(
    settings: Settings,
    processes: int = 1,
    earlier: Mapping[str, nn.Module] | None = None,
    skipped: Collection[str] | None = None,
) -> Job:
    """Open the data and build the network, under the seed of the settings; `processes` share a batch.

    Raises:
        AdjoinedError: the data are missing or damaged, the model is unknown, or they do not fit together.
    """
    method = METHODS[settings.method](settings)
    method.check()
    check_optimizer(settings.optimizer)
    pretrained = settings.pretrained and method.from_pretrained
    images, model = images_and_base(settings, processes, pretrained=pretrained, skipped=skipped)
    if settings.data_on_device:
        images.check_on_device()
    images.check()
    images = images.naming_known()
    shape = (1, images.info.channels, images.info.image_size, images.info.image_size)
    example = torch.randn(shape, dtype=torch.float32)  # as the images, whatever default dtype the user's code has set
    _check_logits(model, example, method.task.shape(images.info.num_classes, images.info.image_size), settings)
    adapted = method.adapt(model, example)
    built = method.build(model, example, earlier or {})
    freeze(built.network, model, settings.freeze)
    return Job(adapted, images, method, built, model, example)


def prepare(job: Job, device: torch.device) -> None:
    """Let the method adapt the weights to training images before the first step: see `Method.prepare`."""
    x, y = training_images(job.settings, job.images, device, 0, job.method.samples)
    job.network.to(device)
    job.method.prepare(job.built, x, y)
    job.network.cpu()


def images_and_base(
    settings: Settings, processes: int = 1, *, pretrained: bool, skipped: Collection[str] | None = None
) -> tuple[ImageData, nn.Module]:
    """Open the images, which are not checked yet, and build the base network under the seed of the settings.

    Arguments and errors are those of `make_job`; `pretrained`: whether the network starts from pretrained weights.
    """
    from adjoined.data import open_data

    images = open_data(settings.data_settings(processes), skipped=skipped)
    torch.manual_seed(settings.seed)
    model = base_network(settings, images, pretrained=pretrained)
    return as_expected(images, model, settings), model


def as_expected(images: ImageData, model: nn.Module, settings: Settings) -> ImageData:
    """Return the images, normalised as a network of the user's own code expects them, if it says so."""
    from adjoined.models.usual import normalisation_of

    expected = normalisation_of(model) if settings.code else None
    return images if expected is None else images.normalised(*expected)


def base_network(settings: Settings, images: ImageData, *, pretrained: bool = False) -> nn.Module:
    """Return the base network named in the settings, for these images."""
    from adjoined import models

    recipe = model_recipe(settings, images)
    return models.build(recipe.pop("spec"), **recipe, pretrained=pretrained)


def model_recipe(settings: Settings, images: ImageData) -> dict[str, Any]:
    """Return plain data from which the base network can be rebuilt."""
    from adjoined import models

    return {
        "spec": settings.code or models.resolve(settings.model),
        "num_classes": images.info.num_classes,
        "in_channels": images.info.channels,
        "image_size": images.info.image_size,
        "options": dict(settings.model_options),
    }


def _check_logits(model: nn.Module, example: torch.Tensor, shape: tuple[int, ...], settings: Settings) -> None:
    """Run the model once, to report misfits with these images before any training."""
    place = f"model {settings.model!r} on {tuple(example.shape)}"
    training = model.training
    calls = _LastCall()
    try:
        with torch.no_grad(), calls:
            logits = model.eval()(example)
    except Exception as error:
        raise AdjoinedError(
            f"the model does not run on these images: {type(error).__name__}: {error}",
            where=place,
            fix="The model gets one batch of images. Check --image-size and --model-options.",
        ) from error
    model.train(training)
    got = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if got != shape:
        expected = f"a tensor {shape}"
        raise AdjoinedError(
            "the model does not return logits of these classes", where=place, expected=expected, got=got
        )
    softmax = shape[1] > 1 and (logits >= 0).all() and ((logits.sum(dim=1) - 1).abs() < 1e-5).all()
    if softmax or calls.last in (torch.ops.aten.sigmoid, torch.ops.aten.sigmoid_):
        fix = f"Leave out its {'softmax' if softmax else 'sigmoid'}: the losses contain one."
        raise AdjoinedError("the model returns probabilities", where=place, expected="logits", fix=fix)


class _LastCall(TorchDispatchMode):
    """Records the last operator that computed something."""

    last: object = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record the operator, unless it only moves data, and call it."""
        if not func.is_view:
            self.last = func.overloadpacket
        return func(*args, **(kwargs or {}))
