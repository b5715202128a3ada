"""The progress display of a run: one line per epoch and, in a terminal, a live progress bar."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from adjoined.kinds import MAIN, NAMES
from adjoined.report.console import say
from adjoined.training.history import EpochFigures, History, of_networks
from adjoined.training.module import TrainingModule

if TYPE_CHECKING:
    from rich.console import Console

WORTH_TELLING = 0.05
"""Fraction of time spent waiting for images above which it is shown."""


BAR_WIDTH = 12
"""Characters of the bar itself."""
OTHER_WIDTH = 29
"""Characters of the line that are the same at every step: its words, the percentage, the time left and the gaps."""


@dataclass
class Pace:
    """The speed of the steps in an epoch.

    Example:
        >>> pace = Pace(now=0.0)
        >>> pace.batch_came(1.0)
        >>> pace.batch_done(4.0, images=100)
        >>> pace.images_per_second, pace.waiting
        (25.0, 0.25)
    """

    now: float = field(default_factory=time.monotonic)
    seconds: float = 0.0
    waited: float = 0.0
    images: int = 0

    def batch_came(self, now: float) -> None:
        """Count the time since the last step as waiting for images."""
        self.waited += now - self.now
        self._pass(now)

    def batch_done(self, now: float, *, images: int) -> None:
        """Count a step."""
        self.images += images
        self._pass(now)

    @property
    def images_per_second(self) -> float:
        """Training images per second, over all processes."""
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting(self) -> float:
        """Fraction of the time spent waiting for images."""
        return self.waited / self.seconds if self.seconds else 0.0

    def _pass(self, now: float) -> None:
        self.seconds += now - self.now
        self.now = now


class Display(Callback):
    """Print a line after every epoch; in a terminal, show a bar below with steps, speed and remaining time."""

    def __init__(self, console: Console, history: History) -> None:
        self.console, self.history = console, history
        self._bar: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock, say what the figures are, and open the bar at the current epoch."""
        assert isinstance(pl_module, TrainingModule)
        measure = NAMES[MAIN[pl_module.method.task.kind]]
        if trainer.is_global_zero:
            say(self.console, f"After each epoch: training loss; {measure} (and loss) in validation")
        self._began, self._first, self._pace = time.monotonic(), trainer.current_epoch, Pace()
        if trainer.is_global_zero and self.console.is_terminal:
            self._bar = _bar(self.console)
            self._task = self._bar.add_task("", total=pl_module.steps, completed=trainer.global_step, figures="")
            self._bar.start()
            self._move(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the speed of this epoch."""
        self._pace = Pace()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Count the time spent waiting for the images."""
        self._pace.batch_came(time.monotonic())

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: Any, batch_idx: int
    ) -> None:
        """Advance the bar."""
        self._pace.batch_done(time.monotonic(), images=len(batch[1]) * trainer.world_size)
        self._move(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the line of the epoch."""
        if trainer.is_global_zero:
            say(self.console, self._line(trainer))
            self._move(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar, so that the terminal is restored."""
        self._close()

    def _line(self, trainer: Trainer) -> str:
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        mean = (time.monotonic() - self._began) / (done - self._first)
        left = timedelta(seconds=round(mean * (epochs - done)))
        row = self.history.rows[-1]
        head = f"epoch {done:>{len(str(epochs))}}/{epochs}"
        parts = [head, f"loss {row['loss']:.4f}", *network_figures(row), f"{row['seconds']:.1f} s", *weight(row)]
        if self._bar is not None:  # the bar has the rest, and a long line would break
            return fitting(parts, max(self.console.width, 50), between="  ")
        return "  ".join([*parts, *speed(self._pace), f"{left} left"])

    def _move(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._bar is None:
            return
        assert isinstance(pl_module, TrainingModule)
        loss = [f"loss {pl_module.latest['loss']:.3f}"] if pl_module.latest else []
        images, *waiting = speed(self._pace) or [""]
        epoch = f"epoch {min(trainer.current_epoch + 1, trainer.max_epochs or 0)}/{trainer.max_epochs}"
        room = self.console.width - len(epoch) - 2 * len(str(pl_module.steps)) - BAR_WIDTH - OTHER_WIDTH
        figures = fitting([images, *loss, *waiting, *weight(pl_module.latest)], room)
        self._bar.update(self._task, completed=trainer.global_step, description=epoch, figures=figures)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _bar(console: Console) -> Any:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    steps, left = [TextColumn("step"), MofNCompleteColumn()], [TimeLeft(), TextColumn("left")]
    columns = [TextColumn("{task.description}"), BarColumn(BAR_WIDTH), TaskProgressColumn(), *steps, *left]
    columns.append(TextColumn("{task.fields[figures]}"))
    return Progress(*columns, console=console, refresh_per_second=4, speed_estimate_period=120)


def fitting(parts: Sequence[str], room: int, between: str = " · ") -> str:
    """Return the first parts, as many as fit into a number of characters: a narrow terminal would cut all of them.

    Example:
        >>> fitting(["112 images/s", "loss 0.406", "λ 1.00"], 25)
        '112 images/s · loss 0.406'
    """
    return next((text for n in range(len(parts), 0, -1) if len(text := between.join(parts[:n])) <= room), "")


def network_figures(row: EpochFigures) -> list[str]:
    """Return the main measure and the loss of every network in validation.

    Example:
        >>> network_figures({"val_base_top1": 0.985, "val_base_loss": 0.06})
        ['base 98.5 % (0.060)']
    """
    losses = of_networks(row, "loss")
    return [f"{name} {100 * main:.1f} % ({losses[name]:.3f})" for name, main in of_networks(row).items()]


def speed(pace: Pace) -> list[str]:
    """Return images per second and, if significant, the fraction of time spent waiting for them.

    Example:
        >>> speed(Pace(seconds=2.0, waited=0.5, images=512)), speed(Pace())
        (['256 images/s', '25 % waiting for data'], [])
    """
    if not pace.images:
        return []
    waiting = [f"{pace.waiting:.0%} waiting for data".replace("%", " %")] if pace.waiting >= WORTH_TELLING else []
    return [f"{pace.images_per_second:.0f} images/s", *waiting]


def weight(terms: EpochFigures) -> list[str]:
    """Return λ, if the method has one."""
    return [f"λ {terms['lambda']:.2f}"] if "lambda" in terms else []
