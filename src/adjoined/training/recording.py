"""A network's logits on its training images, recorded in the last epochs of a training and replayed in another.

The images of an epoch and their augmentation depend only on the seed and the epoch's number, so logits are all that has
to be stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from adjoined.atomic import write_whole
from adjoined.errors import AdjoinedError, first_line
from adjoined.files import make_folder, open_regular
from adjoined.methods.replay import Pupil
from adjoined.names import BASE
from adjoined.training.module import TrainingModule

EPOCHS = 3
"""Last epochs that are recorded; earlier ones have a worse teacher, and each takes 2 bytes for an image and class."""


class Recorder(Callback):
    """Record the base network's logits in the last epochs.

    Args:
        folder: where each epoch gets a file.
        epochs: number of epochs of the training.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.recorded = _recorded(epochs)
        self._batches: list[tuple[Tensor, Tensor]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the epoch before."""
        self._batches = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the logits and the classes of a batch."""
        assert isinstance(pl_module, TrainingModule)
        if trainer.current_epoch in self.recorded:
            self._batches.append((pl_module.logits[BASE].half().cpu(), batch[1].cpu()))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file of the epoch."""
        if self._batches:
            logits, classes = (torch.cat(each) for each in zip(*self._batches, strict=True))
            make_folder(self.folder)
            content = save({"logits": logits, "classes": classes})
            write_whole(_file(self.folder, trainer.current_epoch), lambda file: file.write(content))


class Replayer(Callback):
    """Show the recorded epochs again and again, with their logits; the last one, from the best teacher, comes last.

    Args:
        folder: the folder of a `Recorder`.
        epochs: number of epochs of the training that it recorded.
    """

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder = folder
        self.recorded = _recorded(epochs)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images of a recorded epoch, and read its logits."""
        assert trainer.max_epochs is not None
        epoch = self.recorded[(trainer.current_epoch - trainer.max_epochs) % len(self.recorded)]
        loader: Any = trainer.train_dataloader
        loader.sampler.set_epoch(epoch)  # Lightning has set that of this training
        self._path = _file(self.folder, epoch)
        with open_regular(self._path, "recorded logits") as file:
            try:
                found = load(file.read())
                self._logits, self._classes = found["logits"].float(), found["classes"]
            except (SafetensorError, KeyError, ValueError) as error:
                raise self._unusable(first_line(error, 120)) from error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the logits of the batch to the network."""
        assert isinstance(pl_module, TrainingModule)
        assert isinstance(pl_module.network, Pupil)
        size = pl_module.settings.batch_size
        rows = slice(batch_idx * size, batch_idx * size + len(batch[1]))
        if not torch.equal(self._classes[rows], batch[1].cpu()):
            raise self._unusable("they belong to other images")
        pl_module.network.recorded = self._logits[rows].to(pl_module.device)

    def _unusable(self, reason: str) -> AdjoinedError:
        return AdjoinedError(f"the recorded logits cannot be used: {reason}", where=self._path, fix="Start a new run.")


def _recorded(epochs: int) -> range:
    return range(max(epochs - EPOCHS, 0), epochs)


def _file(folder: Path, epoch: int) -> Path:
    return folder / f"{epoch + 1}.safetensors"
