"""Failures of a run, reported in one line that says how to resume."""

from __future__ import annotations

import logging
import shlex
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from adjoined.errors import AdjoinedError
from adjoined.files import cannot_write
from adjoined.runs import RunFolder
from adjoined.runs.folder import MOVED
from adjoined.settings import Settings
from adjoined.training.finite import NotFinite
from adjoined.training.loaders import RunData

SAFE_RATE = 0.01
"""Highest learning rate suggested for a run that diverged."""


class StopTogether(Callback):
    """Lets several processes stop at the same step after SIGTERM.

    Lightning's handler starts a collective call wherever the signal finds this process. If the others are in another
    one, such as the barrier after a checkpoint, all wait forever. Here the signal only leaves a mark; Lightning
    exchanges the first process's mark before each step.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace Lightning's handler, which restores the one before it at the end."""
        if trainer.world_size > 1:
            connector = trainer._signal_connector
            connector._register_signal(signal.SIGTERM, lambda *_: setattr(connector, "received_sigterm", True))


class StillOwn(Callback):
    """Stops a run before it writes the files of an epoch into a folder that now holds another run."""

    def __init__(self, run: RunFolder) -> None:
        self.run = run

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the record of the run."""
        self.run.check_still_own()


class WholeState(Callback):
    """Checks after the first epoch, before its files are written, that a network's state is all it computes with.

    Attributes:
        check: raises AdjoinedError if it is not; None in processes that write nothing.
    """

    check: Callable[[nn.Module], None] | None = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check once."""
        if self.check is not None:
            self.check(pl_module.network)  # pyright: ignore[reportArgumentType]
            self.check = None


@contextmanager
def resumable(run: RunFolder, settings: Settings) -> Iterator[None]:
    """If the user stops a run in the block, say how to resume it.

    Args:
        run: the run that a user would resume.
        settings: settings of this training.

    Raises:
        KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; the message says how to resume.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        if stop.args or not run.settings.is_file():  # it has been said, or the run has not begun
            raise
        raise KeyboardInterrupt(f"stopped; continue with: {resume_command(run, settings)}") from None


@contextmanager
def explained(run: RunFolder, stage: RunFolder, settings: Settings, trainer: Trainer, data: RunData) -> Iterator[None]:
    """Turn whatever stops the training in the block into a one-line error that says how to resume.

    Raises:
        AdjoinedError: the loss diverged, the disk is full, memory is short, a process was killed …
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    handler, before = (signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM))
    if before is signal.default_int_handler:  # in training it is Lightning's: each of several processes must stop
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    go_on = resume_command(run, settings)
    try:
        yield
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit and then ignores it, and SIGTERM into an exit that looks like success.
        if not isinstance(error.__context__, KeyboardInterrupt) and not isinstance(error, SIGTERMException):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from None
    except NotFinite as error:
        run.worth_keeping = stage.worth_keeping = True
        if error.fix:  # resuming would not help
            raise
        raise _remedied(error, stage, settings, go_on) from error
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise AdjoinedError(
            "out of memory",
            where="--batch-size",
            got=settings.batch_size,
            fix="Use a smaller batch with --accumulate, or --precision bf16-mixed.",
        ) from error
    except (AdjoinedError, RuntimeError, OSError, EOFError) as error:
        if (cause := _cause(error, run, settings, trainer, data)) is not None:
            raise cause from error
        if not isinstance(error, AdjoinedError) or not stage.last.exists():
            raise
        raise error.but(fix=f"{error.fix} Once this is mended, continue with: {go_on}".strip()) from error
    finally:
        if before is signal.default_int_handler:
            signal.signal(signal.SIGTERM, before)
        if trainer.global_step:
            run.worth_keeping = stage.worth_keeping = True


def _cause(
    error: Exception, run: RunFolder, settings: Settings, trainer: Trainer, data: RunData
) -> AdjoinedError | None:
    """Return the fault behind an error: a process that was killed, or a folder or disk; None if it is the error itself.

    torch reports a killed worker by an exception at an arbitrary point, where it may be taken for another fault.
    """
    go_on = f"Continue with: {resume_command(run, settings)}"
    if (code := data.killed_worker()) is not None:
        return AdjoinedError(
            f"a data worker was killed by {how(code)}",
            where=f"--workers {settings.workers}",
            fix=f"If memory or shared memory ran out, use fewer --workers or a smaller --batch-size. {go_on}",
        )
    of_files = isinstance(error, AdjoinedError | OSError) and not isinstance(error, ConnectionError)
    if of_files and not run.record.is_file():
        what = "the run's folder was renamed, moved or removed while it trained"
        return AdjoinedError(what, where=run.path, fix=MOVED)
    if not of_files and (code := _ended_process(trainer)) is not None:
        what, where = f"another process of this run was killed by {how(code)}", f"--devices {settings.devices}"
        return AdjoinedError(what, where=where, fix=go_on)
    return cannot_write(error, error.filename or run.path) if of_files and isinstance(error, OSError) else None


def resume_command(run: RunFolder, settings: Settings, *flags: str) -> str:
    """Return the command that resumes a run.

    Example:
        >>> resume_command(RunFolder("my runs/1"), Settings(), "--lr", "0.01")
        "adjoined train --resume 'my runs/1' --lr 0.01"
    """
    code = ["--model", settings.code] if settings.code else []  # no code is run because a file names it
    return shlex.join(["adjoined", "train", "--resume", str(run.path), *code, *flags])


def how(code: int) -> str:
    """Return how a process ended, from its exit code.

    Example:
        >>> how(-9), how(1)
        ('signal 9 (SIGKILL)', 'exit code 1')
    """
    return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit code {code}"


def _remedied(error: NotFinite, stage: RunFolder, settings: Settings, go_on: str) -> NotFinite:
    """Return the error with the command to resume from the last good checkpoint at a lower learning rate."""
    rate = min(settings.lr / 10, SAFE_RATE)
    start = "Resume from the last good checkpoint" if stage.last.exists() else "Start again"
    clip = f"--grad-clip (it is {settings.grad_clip:g})" if settings.grad_clip else "--grad-clip 1"
    also = clip if settings.precision == "32-true" else f"{clip} or --precision 32-true"
    return error.but(fix=f"{start} with: {go_on} --lr {rate:.3g}; {also} may help as well.")


def _ended_process(trainer: Trainer) -> int | None:
    """Return the exit code of a failed process that this one started for another device, if there is one."""
    procs = getattr(trainer.strategy.launcher, "procs", ())
    return next((code for each in procs if (code := each.poll())), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's advice: it concerns settings that are chosen here on purpose."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels: list[Any] = [each.level for each in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        for each in loggers:
            each.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for each, level in zip(loggers, levels, strict=True):
                each.setLevel(level)
