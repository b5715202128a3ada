"""TensorBoard: a point every few steps and every epoch."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.training.history import History
from adjoined.training.module import TrainingModule


class TensorBoard(Callback):
    """Write the scalars of measured steps and of epochs."""

    def __init__(self, folder: Path, history: History) -> None:
        self.folder, self.history = folder, history
        self._writer: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a file; points that a stopped run wrote after its checkpoint are removed."""
        from torch.utils.tensorboard import SummaryWriter

        if trainer.is_global_zero:
            with self._passed_over():
                self._writer = SummaryWriter(str(self.folder), purge_step=trainer.global_step + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Write the scalars of a measured step."""
        assert isinstance(pl_module, TrainingModule)
        if batch_idx % pl_module.settings.log_every == 0:
            self._write("step", {**pl_module.latest, "lr": pl_module.lr}, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the scalars of the epoch."""
        self._write("epoch", self.history.rows[-1], trainer.global_step)
        with self._passed_over():
            if self._writer is not None:
                self._writer.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the file."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the file."""
        self._close()

    def _write(self, group: str, scalars: Mapping[str, float], step: int) -> None:
        with self._passed_over():
            for name, value in scalars.items():
                if self._writer is not None:
                    self._writer.add_scalar(f"{group}/{name}", value, step)

    def _close(self) -> None:
        with self._passed_over():
            if self._writer is not None:
                self._writer.close()
        self._writer = None

    @contextmanager
    def _passed_over(self) -> Iterator[None]:
        """If the files cannot be written, continue without them: a log never stops a run."""
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"adjoined: no more TensorBoard files in {self.folder}: {error.strerror or error}", file=sys.stderr)
