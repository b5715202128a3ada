"""The LightningModule: one for all methods."""

from __future__ import annotations

import random
from dataclasses import asdict
from math import isfinite
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from adjoined.errors import AdjoinedError
from adjoined.methods import BuiltNetwork, Method, Step
from adjoined.settings import Settings
from adjoined.statistics import one_value_per_channel
from adjoined.training.finite import NotFinite, infinite_buffers, not_finite_in
from adjoined.training.freezing import hold_frozen
from adjoined.training.loaders import RunData
from adjoined.training.meters import EpochMeters
from adjoined.training.optimizers import make_optimizer, make_schedule, scale_rates

Batch = tuple[Tensor, Tensor]
_SHOWN = 3
SETTINGS = "adjoined_settings"
"""Entry of a checkpoint: the settings that it was trained with."""


class TrainingModule(LightningModule):
    """The LightningModule of a network and the method that trains it.

    Every epoch is a function of the previous checkpoint, the seed and its number: the loaders determine the order of
    the images and their augmentation, and all other generators are seeded at the start of the epoch.
    """

    network: nn.Module

    def __init__(self, settings: Settings, method: Method, built: BuiltNetwork, num_classes: int) -> None:
        super().__init__()
        self.settings, self.method = settings, method
        self.names = tuple(built.plans)
        network = built.network
        self.network = network.to(memory_format=torch.channels_last) if settings.channels_last else network
        self.num_classes = num_classes
        self.mix = _mixup(settings, num_classes)
        self._infinite = infinite_buffers(self)
        self.latest: dict[str, float] = {}
        """Scalars of the last measured step, for the display."""
        self.logits: dict[str, Tensor] = {}
        """Network name -> its logits of the last training batch."""
        self.restoring = False
        """Whether a checkpoint is being restored: from its loading to the first step."""

    @property
    def steps(self) -> int:
        """Optimizer steps in the whole run."""
        return self._data.steps

    @property
    def _data(self) -> RunData:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(data, RunData)
        return data

    @property
    def progress(self) -> float:
        """Fraction of the optimizer steps done, in [0, 1]."""
        return self.global_step / self.steps

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return optimizer and schedule."""
        optimizer = make_optimizer(self.settings, self.network, small_rate=self.method.small_rate)
        schedule = make_schedule(self.settings, optimizer, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of each network apart, so that none shortens another's step."""
        if not gradient_clip_val:
            return
        # In the optimizer's order, as Lightning clips a single network: the norm's rounding depends on the order.
        trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for part in self.method.apart(self.network):
            own = set(part.parameters())
            nn.utils.clip_grad_norm_([each for each in trained if each in own], gradient_clip_val)

    def on_fit_start(self) -> None:
        """Start counting; compile in place if requested, which keeps the names of the weights."""
        self.meters = EpochMeters(self.names, self.num_classes, self.device, self.method.task.kind)
        if self.settings.compile:
            self.network.compile()

    def on_train_start(self) -> None:
        """Note that everything is restored."""
        self.restoring = False

    def on_train_epoch_start(self) -> None:
        """Seed every generator from the seed, the epoch and the process; train everything but frozen modules."""
        self.network.train()  # Lightning keeps the modes it finds: finished networks and users' models may evaluate
        if self.settings.freeze:
            hold_frozen(self.network)
        parts = (self.settings.seed, self.current_epoch, self.global_rank)
        torch_seed, numpy_seed, python_seed = (int(each) for each in np.random.SeedSequence(parts).generate_state(3))
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)  # noqa: NPY002 - a user's model may draw from it
        random.seed(python_seed)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Mix training images, and convert images to the requested memory format."""
        x, y = batch
        if self.trainer.training:
            x = self._at_low_resolution(x)
            if self.mix is not None:
                x, y = self.mix(x, y)
        return (x.contiguous(memory_format=torch.channels_last) if self.settings.channels_last else x), y

    def _at_low_resolution(self, x: Tensor) -> Tensor:
        """Scale training images down as the settings require at this point of the run."""
        sizes = sorted((share, int(size)) for size, share in self.settings.low_resolution.items())
        size = next((size for share, size in sizes if self.progress < share), x.shape[-1])
        if size >= x.shape[-1]:
            return x
        return F.interpolate(x, size=(size, size), mode="bilinear", antialias=True)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of the method and update the metrics."""
        x, y = batch
        measured = batch_idx % self.settings.log_every == 0
        step = self._step(x, y, measured)
        loss = step.loss.detach()
        # On other devices this check would synchronise every step, so the loss is checked only when it is shown. With
        # several processes, none may stop alone: the gradients make all of them NaN, and the epoch's mean shows it.
        if self.trainer.world_size == 1 and (measured or loss.device.type == "cpu"):
            self._check_loss(loss, x, batch_idx)
        terms = {"loss": loss, **step.terms}
        self.meters.add_terms(terms, len(x))
        self.logits = {name: each.detach() for name, each in step.logits.items()}
        self.meters.add_train(self.logits, y)
        if measured:
            self.latest = {name: float(value) for name, value in terms.items()}
        return step.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Update the validation metrics of every network, with every image once over all processes."""
        x, y = batch
        logits = self.method.logits(self.network, x)
        if counted := self._data.val_images_in(batch_idx):
            self.meters.add_val({name: each[:counted] for name, each in logits.items()}, y[:counted])

    def close_epoch(self) -> dict[str, float]:
        """Return the means of the finished epoch; every process must call it.

        Non-finite terms that are only displayed are left out.

        Raises:
            NotFinite: the training loss, or a network's validation loss, is not finite.
        """
        row = self.meters.close()
        for name, value in row.items():
            if not isfinite(value) and (name == "loss" or name.startswith("val_")):
                network = name.removeprefix("val_").removesuffix("_loss")
                what = "loss" if name == "loss" else f"validation loss of {network}"
                raise self._not_finite(f"the {what} is no longer finite", value)
        return {name: value for name, value in row.items() if isfinite(value)}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that training could not resume from; on every process, to avoid a deadlock.

        Raises:
            NotFinite: a weight, a running statistic or the optimizer's state is not finite.
        """
        checkpoint[SETTINGS] = asdict(self.settings)
        found = not_finite_in(checkpoint, self._infinite)
        if not self.trainer.strategy.reduce_boolean_decision(not found, all=True):
            name = found or "a tensor of another process"
            raise self._not_finite("the weights are no longer finite", name.removeprefix("network."))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Apply the learning rate of the settings if the run was resumed with a different one."""
        self.restoring = True
        before = checkpoint[SETTINGS]["lr"]
        if before != self.settings.lr:
            scale_rates(checkpoint, self.settings.lr / before)

    @property
    def lr(self) -> float:
        """The highest learning rate of the next step, before the factor on the small networks' own parameters."""
        return max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups) / self.method.small_rate

    def _step(self, x: Tensor, y: Tensor, measured: bool) -> Step:
        def step() -> Step:
            return self.method.step(self.network, x, y, progress=self.progress, measure=measured)

        try:
            return step()
        except ValueError as error:
            if (shape := one_value_per_channel(step)) is None:
                raise
            raise AdjoinedError(
                "a normalisation layer gets one value per channel, which has no variance",
                where=f"--batch-size {self.settings.batch_size}",
                expected="several values per channel in training",
                got=f"an input {shape} from a batch of {len(x)}",
                fix="Use a larger --batch-size, or a larger --image-size.",
            ) from error

    def _check_loss(self, loss: Tensor, x: Tensor, batch_idx: int) -> None:
        if isfinite(value := float(loss)):
            return
        wrong = (~x.isfinite()).flatten(1).any(dim=1).nonzero().flatten().tolist()
        places = self._data.train_places(batch_idx)
        named = [places[index] for index in wrong] or places
        shown = ", ".join(named[:_SHOWN]) + (", …" if len(named) > _SHOWN else "")
        step = self.global_step + 1
        if wrong:
            images = f" in {len(wrong)} of {len(x)} images ({shown})"
            fix = "Repair or remove these images, and start a new run."
            raise self._not_finite("the images are not finite", value, step=step, images=images, fix=fix)
        images = f" in a batch of {len(x)} ({shown})"
        raise self._not_finite("the loss is no longer finite", value, step=step, images=images)

    def _not_finite(
        self, what: str, got: object, *, step: int | None = None, images: str = "", fix: str = ""
    ) -> NotFinite:
        return NotFinite(
            what,
            where=f"epoch {self.current_epoch + 1}, step {step or self.global_step}",
            got=f"{got} at learning rate {self.lr:.3g}{images}",
            fix=fix,
        )


def _mixup(settings: Settings, num_classes: int) -> nn.Module | None:
    if not settings.mixup:
        return None
    from torchvision.transforms.v2 import MixUp

    return MixUp(alpha=settings.mixup, num_classes=num_classes)
