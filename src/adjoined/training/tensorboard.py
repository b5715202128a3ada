"""TensorBoard: a point every few steps, and one an epoch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.training.history import History
from adjoined.training.module import TrainingModule


class TensorBoard(Callback):
    """Write the scalars of measured steps and of epochs.

    Args:
        folder: where the event files go.
        history: the rows of the epochs.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self.folder, self.history = folder, history
        self._writer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a file; points of a stopped run from after its checkpoint are withdrawn."""
        from torch.utils.tensorboard import SummaryWriter

        if trainer.is_global_zero:
            self._writer = SummaryWriter(str(self.folder), purge_step=trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write the scalars of a measured step."""
        assert isinstance(pl_module, TrainingModule)
        if self._writer is not None and batch_idx % pl_module.settings.log_every == 0:
            self._write("step", {**pl_module.latest, "lr": pl_module.lr}, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scalars of the epoch."""
        if self._writer is not None:
            self._write("epoch", self.history.rows[-1], trainer.global_step)
            self._writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        self._close()

    def _write(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
