"""Checkpoints that are never half written, and when they are written."""

from __future__ import annotations

import os
import warnings
from io import BytesIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from adjoined.errors import AdjoinedError
from adjoined.files import write_whole
from adjoined.training.history import History, of_networks

FORMAT = 1
MARK = "adjoined"


class WholeCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside, flush, rename; read tensors and plain values only, never code."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Write a checkpoint, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # torch.save turns a full disk, and Ctrl-C, into an error of its own; written by Python they stay what they are.
        content = BytesIO()
        torch.save({**checkpoint, MARK: FORMAT}, content)
        write_whole(path, lambda file: file.write(content.getbuffer()))

    def load_checkpoint(
        self, path: str | os.PathLike, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint of a run.

        Raises:
            AdjoinedError: it is missing, damaged, or of another program or version.
        """
        return read_checkpoint(Path(path))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a run onto the CPU.

    Raises:
        AdjoinedError: it is missing, damaged, or of another program or version.
    """
    advice = "Delete it to start again from the beginning, or put a good copy there."
    try:
        with warnings.catch_warnings(action="ignore"):  # advice about files that are refused below anyway
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise AdjoinedError("no such checkpoint", where=path) from error
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AdjoinedError(
            f"the checkpoint is damaged or no checkpoint: {reason[:120]}", where=path, fix=advice
        ) from error
    found = checkpoint.get(MARK) if isinstance(checkpoint, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        raise AdjoinedError(
            "the checkpoint was written by a newer version" if newer else "not a checkpoint of adjoined",
            where=path,
            expected=f"format {FORMAT}",
            got=found,
            fix="Update adjoined." if newer else advice,
        )
    return checkpoint


class Checkpoints(Checkpoint):
    """At the end of an epoch, keep each network's best state, and the last one to go on from.

    Args:
        folder: where they are written: best-NETWORK.ckpt, last.ckpt.
        history: the rows of the epochs, which tell how good each network is.
        every: epochs between two last.ckpt.
    """

    def __init__(self, folder: Path, history: History, every: int) -> None:
        self.folder, self.history, self.every = folder, history, every
        self.best: dict[str, float] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what has to be written."""
        # The best first: a process killed in between repeats the epoch from last.ckpt and writes the same again.
        for name, top1 in of_networks(self.history.rows[-1], "top1").items():
            if top1 > self.best.get(name, -1.0):
                self.best[name] = top1
                trainer.save_checkpoint(self.folder / f"best-{name}.ckpt")
        epoch = trainer.current_epoch + 1
        if epoch % self.every == 0 or epoch == trainer.max_epochs:
            trainer.save_checkpoint(self.folder / "last.ckpt")

    def state_dict(self) -> dict[str, Any]:
        """Return the best accuracies so far."""
        return {"best": dict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best accuracies of the checkpoint."""
        self.best = dict(state_dict["best"])
