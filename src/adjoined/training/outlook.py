"""What a run would do, on which devices, and the memory and time that it would take (`adjoined train --dry-run`)."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import pairwise
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adjoined.errors import AdjoinedError
from adjoined.methods import METHODS
from adjoined.printable import counted
from adjoined.report.units import size
from adjoined.settings import Settings
from adjoined.training.checkpoints import WholeCheckpointIO
from adjoined.training.failures import quiet
from adjoined.training.job import Job, make_job
from adjoined.training.loaders import RunData
from adjoined.training.module import TrainingModule
from adjoined.training.optimizers import make_optimizer
from adjoined.training.run import make_trainer

TIMED_STEPS = 4
"""Timed steps; the one before them warms up."""
SAMPLE_IMAGES = 2
"""Images of the step in which memory is counted; a batch norm in training needs more than one."""


@dataclass(frozen=True)
class Outlook:
    """What a run would do, on which devices, and the memory and time that it would take."""

    job: Job
    devices: int
    """Devices on all machines; each has a process."""
    device: str
    """Their kind, such as cpu or cuda."""
    strategy: str
    """Name of Lightning's strategy class."""
    steps: int
    """Optimizer steps in the whole run."""
    bytes: int | None
    """Peak of the tensors in a step on each device, estimated; None if the network does not run without values."""
    seconds: float
    """Seconds for a batch on one device: the median of a few, reading the images included."""

    def lines(self) -> list[str]:
        """Return the outlook in words, a line for each fact."""
        settings = self.job.settings
        batch = settings.batch_size // self.devices
        each = f"{batch} on each of {self.devices} devices" if self.devices > 1 else "on one device"
        batches = f", {settings.accumulate} batches a step" if settings.accumulate > 1 else ""
        whole = timedelta(seconds=round(self.seconds * self.steps * settings.accumulate))
        memory = "unknown: the network needs values to run" if self.bytes is None else f"about {size(self.bytes)}"
        where = f" on {settings.nodes} machines" if settings.nodes > 1 else ""
        how = f", {self.strategy}" if self.devices > 1 else ""
        return [
            f"devices   {self.devices} x {self.device}{where}{how}",
            f"batch     {counted(settings.batch_size, 'image')}, {each}{batches}",
            f"steps     {self.steps // settings.epochs} an epoch, {self.steps} in {counted(settings.epochs, 'epoch')}",
            f"memory    {memory} on each device: weights, optimizer and activations, in float32",
            f"time      about {whole}: {self.seconds:.3g} s a batch on this machine, without evaluation",
        ]


def look_ahead(settings: Settings, folder: Path) -> Outlook:
    """Return what a run with these settings would do. Nothing is written; a few steps are taken, on one device.

    Raises:
        AdjoinedError: as the run itself would; or the method has stages, each of which needs the one before.
    """
    settings = settings.anchored()
    if stages := METHODS[settings.method](settings).before():
        raise AdjoinedError(
            f"each stage starts from the networks of the one before, so only the first can be tried: {stages[0].name}",
            where=f"--dry-run --method {settings.method}",
            fix=f"Try --method {stages[0].settings.method} --dry-run.",
        )
    with quiet():
        trainer = make_trainer(settings, folder, [], WholeCheckpointIO())
        job = make_job(settings, trainer.world_size)
        batches = len(job.images.train_loader(seed=settings.seed, world_size=trainer.world_size))
        steps = ceil(batches / settings.accumulate) * settings.epochs
        memory = None
        with suppress(Exception):  # code that depends on values, which tensors on the meta device do not have
            memory = step_bytes(job, settings.batch_size // trainer.world_size)
        seconds = _time(job, folder)
    device, strategy = trainer.strategy.root_device.type, type(trainer.strategy).__name__
    return Outlook(job, trainer.world_size, device, strategy, steps, memory, seconds)


def step_bytes(job: Job, images: int) -> int:
    """Return the peak of the tensors in a training step, estimated: bytes, float32.

    Weights and the optimizer's state are always there. What autograd keeps for the backward pass, counted on the meta
    device with a few images, grows with their number. It is freed as the gradients are computed, so only the larger of
    the two counts.

    Args:
        job: the training job; its network is neither run nor changed.
        images: images in a batch on one device.
    """
    network = copy.deepcopy(job.network).to("meta").train()
    optimizer = make_optimizer(job.settings, network, small_rate=job.method.small_rate)
    held = [*network.parameters(), *network.buffers()]
    few, loss = _kept_in_step(job, network, held, SAMPLE_IMAGES)
    more, _ = _kept_in_step(job, network, held, 2 * SAMPLE_IMAGES)
    for_one = (more - few) / SAMPLE_IMAGES  # what does not grow with the batch, such as copied slices, is in both
    activations = few + for_one * (images - SAMPLE_IMAGES)
    loss.backward()
    optimizer.step()
    state = [each for values in optimizer.state.values() for each in values.values() if isinstance(each, Tensor)]
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    return _bytes([*held, *state]) + max(round(activations), _bytes(gradients))


def _kept_in_step(job: Job, network: nn.Module, held: Iterable[Tensor], images: int) -> tuple[int, Tensor]:
    """Return the bytes that autograd keeps of a step with some images on the meta device, and the loss."""
    own = {each.untyped_storage()._cdata for each in held}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    task, info = job.method.task, job.images.info
    x = torch.zeros(images, *job.example.shape[1:], device="meta")
    y = task.blank(torch.zeros(images, *task.shape(info.num_classes, info.image_size)[1:], device="meta"))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = job.method.step(network, x, y, progress=0.5, measure=False).loss
    return sum(storage.nbytes() for storage in kept.values()), loss


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


class _Clock(Callback):
    """The times at which training batches end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self.ends.append(time.perf_counter())
        trainer.should_stop = len(self.ends) > TIMED_STEPS


def _time(job: Job, folder: Path) -> float:
    """Return the seconds for a batch of one device, with the run's own loaders, precision and optimizer."""
    processes = job.settings.batch_size // job.images.settings.batch_size
    alone = replace(job.settings, devices=1, nodes=1, strategy="auto", epochs=TIMED_STEPS + 1)
    clock = _Clock()
    trainer = make_trainer(alone, folder, [clock], WholeCheckpointIO())
    trainer.limit_val_batches = 0
    built = copy.deepcopy(job.built)
    settings = replace(alone, batch_size=alone.batch_size // processes)
    module = TrainingModule(settings, job.method, built, job.images.info.num_classes)
    trainer.fit(module, datamodule=RunData(settings, job.images))
    return median(end - begin for begin, end in pairwise(clock.ends))
