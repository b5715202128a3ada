"""The widths of a run's small network by search, on training images, before the run starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adjoined.errors import AdjoinedError
from adjoined.settings import Settings
from adjoined.slicing import Latency, Request, SlicePlan
from adjoined.tasks import task_of
from adjoined.training.checkpoints import WholeCheckpointIO
from adjoined.training.failures import quiet
from adjoined.training.job import base_network, make_job
from adjoined.training.loaders import training_images
from adjoined.training.run import make_trainer
from adjoined.training.stages import check_stages
from adjoined.transfer import ORDER, as_judge, in_batches
from adjoined.width_search import Progress, search

SAMPLES = 768
"""Training images; two thirds of them fit a trial head to the pretrained features."""


def searched_plan(
    settings: Settings,
    latency: Callable[[Tensor], Latency] | None = None,
    progress: Progress = lambda what, share: None,
) -> SlicePlan:
    """Return the plan of the small network with searched widths; see `adjoined.width_search`.

    The images are augmented as in an epoch after the last one of the training.

    Args:
        settings: the settings of a run from pretrained weights, with one alpha; its `widths` are not read.
        latency: an example input, float32 (1, C, H, W) -> the function that measures a candidate, for a budget in
            milliseconds.
        progress: as for `search_widths`.

    Raises:
        AdjoinedError: as for `search_widths`, or the run could not start with uniform widths.
    """
    uniform = replace(settings, widths={}, budget=None, compress=None)
    images = check_stages(uniform, 1, None) or make_job(uniform).images  # report what is wrong before the search
    torch.manual_seed(settings.seed)
    model = base_network(settings, images, pretrained=True).eval()
    alone = replace(settings, devices=1, nodes=1, strategy="auto")
    with quiet():
        device = make_trainer(alone, Path(), [], WholeCheckpointIO()).strategy.root_device
    x, y = training_images(settings, images, device, settings.epochs, SAMPLES)
    example, task = x[:1].cpu(), task_of(settings)
    model.to(device)
    measure = None if latency is None else latency(example)
    third = max(len(x) // 3, 2)
    judged = as_judge(model, x, y) if task.kind == "classification" else nullcontext((x[:third], y[:third]))
    with _within_memory(), judged as (images_judged, targets):
        return search(
            model,
            x[:1],
            in_batches(images_judged, targets),
            lambda output, target: task.loss([output], target),
            Request.of(replace(settings, widths={})),
            order=ORDER if settings.method == "transfer" else settings.order,
            latency=None if measure is None else lambda network: measure(network.cpu()),
            progress=progress,
        )


@contextmanager
def _within_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        fix = "Use --widths uniform, or a smaller --image-size."
        raise AdjoinedError("out of memory in the search", where="--widths search", fix=fix) from error
