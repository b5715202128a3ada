"""Training in pieces: a run that stops at the end of an epoch when its time is up, to be resumed later."""

from __future__ import annotations

import time

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class OutOfTime(KeyboardInterrupt):
    """The time for this piece is up; the run can be resumed."""


class Deadline(Callback):
    """Stops a training at the end of the first epoch that ends after the deadline.

    Args:
        deadline: seconds, on the clock of `time.monotonic`; None: never.
    """

    def __init__(self, deadline: float | None) -> None:
        self.deadline = deadline

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask Lightning to stop; the checkpoint of this epoch is written anyway."""
        if self.deadline is not None and time.monotonic() > self.deadline:
            trainer.should_stop = True

    def check(self, trainer: Trainer) -> None:
        """Raise OutOfTime if the training was stopped before its last epoch."""
        if trainer.should_stop and trainer.current_epoch < (trainer.max_epochs or 0):
            raise OutOfTime("the time is up; rerun the command to continue")
