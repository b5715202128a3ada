"""What is shown of a run while it trains: a live bar in a terminal, one line an epoch elsewhere."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.training.history import History, Row, of_networks
from adjoined.training.module import TrainingModule

if TYPE_CHECKING:
    from rich.console import Console


def make_display(console: Console, history: History) -> Callback:
    """Return the display that fits where the output goes."""
    return LiveBar(console, history) if console.is_terminal else EpochLines(console, history)


class EpochLines(Callback):
    """Print one plain line after every epoch."""

    def __init__(self, console: Console, history: History) -> None:
        self.console, self.history = console, history

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began, self._first = time.monotonic(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line."""
        if not trainer.is_global_zero:
            return
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        pace = (time.monotonic() - self._began) / (done - self._first)
        left = timedelta(seconds=round(pace * (epochs - done)))
        row = self.history.rows[-1]
        head = f"epoch {done:>{len(str(epochs))}}/{epochs}"
        parts = [head, f"loss {row['loss']:.4f}", *network_figures(row), *weight(row), f"{row['seconds']:.1f} s"]
        self.console.print("  ".join([*parts, f"{left} left"]), highlight=False, soft_wrap=True)


class LiveBar(Callback):
    """Show how far the run is, what the networks can do, λ, and the time left."""

    def __init__(self, console: Console, history: History) -> None:
        self.console, self.history = console, history
        self._progress: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar where the run stands."""
        if not trainer.is_global_zero:
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        assert isinstance(pl_module, TrainingModule)
        columns = [TextColumn("{task.description}"), BarColumn(20), TaskProgressColumn()]
        columns += [TimeRemainingColumn(), TextColumn("{task.fields[figures]}")]
        self._progress = Progress(*columns, console=self.console, refresh_per_second=4, speed_estimate_period=120)
        self._task = self._progress.add_task("", total=pl_module.steps, completed=trainer.global_step, figures="")
        self._progress.start()
        self._update(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Move on."""
        assert isinstance(pl_module, TrainingModule)
        if batch_idx % pl_module.settings.log_every == 0:
            self._update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the validation has found."""
        self._update(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the terminal is left as it was."""
        self._stop()

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is None:
            return
        assert isinstance(pl_module, TrainingModule)
        figures = [f"loss {pl_module.latest['loss']:.3f}"] if pl_module.latest else []
        figures += network_figures(self.history.rows[-1]) if self.history.rows else []
        epoch = min(trainer.current_epoch + 1, trainer.max_epochs or 0)
        self._progress.update(
            self._task,
            completed=trainer.global_step,
            description=f"epoch {epoch}/{trainer.max_epochs}",
            figures=" · ".join([*figures, *weight(pl_module.latest)]),
        )

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def network_figures(row: Row) -> list[str]:
    """Return accuracy and loss of every network in validation.

    Example:
        >>> network_figures({"val_base_top1": 0.985, "val_base_loss": 0.06})
        ['base 98.5 % (0.060)']
    """
    losses = of_networks(row, "loss")
    return [f"{name} {100 * top1:.1f} % ({losses[name]:.3f})" for name, top1 in of_networks(row, "top1").items()]


def weight(terms: Row) -> list[str]:
    """Return λ, where the method has one."""
    return [f"λ {terms['lambda']:.2f}"] if "lambda" in terms else []
