"""The history of a run: one row per epoch, in metrics.csv and in TensorBoard."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.atomic import write_text
from adjoined.kinds import main_in
from adjoined.training.module import TrainingModule

EpochFigures = dict[str, float]


def of_networks(row: EpochFigures, what: str | None = None) -> dict[str, float]:
    """Return a validation figure for every network; None: the measure that the networks are compared by.

    Example:
        >>> of_networks({"val_base_top1": 0.9, "val_base_loss": 0.3, "val_small_top1": 0.8}, "top1")
        {'base': 0.9, 'small': 0.8}
    """
    start, end = "val_", f"_{what or main_in(row)}"
    return {key[len(start) : -len(end)]: row[key] for key in row if key.startswith(start) and key.endswith(end)}


class History(Callback):
    """Add a row after every epoch; checkpoints hold the rows, so a resumed run has no gaps or duplicates."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[EpochFigures] = []
        self._began = 0.0
        self._lr = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        assert isinstance(pl_module, TrainingModule)
        self._began, self._lr = time.monotonic(), pl_module.lr

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the row and write all rows, before any callback's `on_train_epoch_end`, whatever their order."""
        assert isinstance(pl_module, TrainingModule)
        means = pl_module.close_epoch()
        seconds = round(time.monotonic() - self._began, 3)
        counts = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step}
        self.rows.append({**counts, "seconds": seconds, "lr": self._lr, **means})
        if trainer.is_global_zero:
            write_text(self.path, as_csv(self.rows))

    def state_dict(self) -> dict[str, Any]:
        """Return all rows."""
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows from the checkpoint."""
        self.rows = [dict(row) for row in state_dict["rows"]]


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with a header; a row without some column has an empty cell there.

    Example:
        >>> print(as_csv([{"epoch": 1}, {"epoch": 2, "loss": 0.5}]), end="")
        epoch,loss
        1,
        2,0.5
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
