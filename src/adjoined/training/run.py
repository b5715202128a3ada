"""A run from its settings to its finished networks."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from adjoined.errors import AdjoinedError
from adjoined.files import cannot_write
from adjoined.runs import RunFolder, RunResult
from adjoined.settings import Settings
from adjoined.training import is_main
from adjoined.training.checkpoints import Checkpoints, WholeCheckpointIO, read_checkpoint
from adjoined.training.display import make_display
from adjoined.training.ema import MovingAverage
from adjoined.training.finish import finish
from adjoined.training.history import History
from adjoined.training.job import Job, make_job
from adjoined.training.loaders import RunData
from adjoined.training.module import TrainingModule
from adjoined.training.stages import Earlier, check_stages, run_stages
from adjoined.training.tensorboard import TensorBoard

if TYPE_CHECKING:
    from rich.console import Console


def run_training(
    settings: Settings,
    run_folder: str | os.PathLike[str],
    *,
    resume: bool,
    console: Console | None,
    announce: Callable[[Job], None] | None,
    known: Iterable[str | os.PathLike[str]] = (),
    part_of: RunFolder | None = None,
) -> RunResult:
    """Do what `adjoined.training.train` says; as a stage of another run, `part_of`, find the stages before in it."""
    if console is None:
        from rich.console import Console

        console = Console()
    settings = settings.anchored()
    run = RunFolder(run_folder)
    if resume and (done := run.read_result() if run.record.exists() else None):
        if is_main():
            console.print(f"{run.path}: the run is finished, nothing to do", highlight=False, soft_wrap=True)
        return done
    # Only one process of several may write to the folder.
    with run.opened(settings, resume=resume) if is_main() else nullcontext(), _quiet():
        history = History(run.metrics)
        trainer = _trainer(settings, run, _callbacks(settings, run, history, console))
        whole = part_of or run
        earlier = Earlier()
        known_data = run.known_data()
        skipped = known_data.skipped if known_data else None
        images = check_stages(settings, trainer.world_size, skipped)
        if images is not None:
            run.check_data(images)
            run.begin(settings)
            run.keep_data(images)

            def train_stage(settings: Settings, folder: Path) -> RunResult:
                return run_training(
                    settings, folder, resume=True, console=console, announce=None, known=known, part_of=whole
                )

            known = [Path(each) for each in known]
            earlier = run_stages(settings, whole.stages, train=train_stage, known=known, console=console)
            job = make_job(settings, earlier=earlier.modules, skipped=skipped)
        else:
            job = make_job(settings, trainer.world_size, skipped=skipped)
            run.check_data(job.images)
            if is_main():  # not before: a slip in the name of the data leaves the folder free for the next attempt
                run.begin(settings)
                run.keep_data(job.images)
        trainer.fit_loop.max_epochs = job.settings.epochs
        if is_main():
            for name, plan in job.built.plans.items():
                if plan is not None:
                    plan.save(run.plan(name))
            if announce is not None:
                announce(job)
        module = TrainingModule(job.settings, job.method, job.built, job.images.info.num_classes)
        checkpoint = run.last if run.last.exists() else None
        if checkpoint is not None:
            _check_fits(checkpoint, module)
        with _failures(whole, settings):
            data = RunData(job.settings, job.images, job.method.views)
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            result = finish(run, job, trainer.strategy.root_device, earlier) if trainer.is_global_zero else None
        result = trainer.strategy.broadcast(result)
        assert result is not None
        return result


def _callbacks(settings: Settings, run: RunFolder, history: History, console: Console) -> list[Callback]:
    average = [MovingAverage(settings.ema)] if settings.ema else []
    return [
        *average,
        history,
        TensorBoard(run.tensorboard, history),
        make_display(console, history),
        Checkpoints(run.checkpoints, history, settings.checkpoint_every),
    ]


def _trainer(settings: Settings, run: RunFolder, callbacks: list[Callback]) -> Trainer:
    asked = settings.accelerator, settings.devices, settings.nodes, settings.strategy, settings.precision
    try:
        return Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            precision=settings.precision,
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.grad_clip or None,
            callbacks=callbacks,
            plugins=[WholeCheckpointIO()],
            logger=False,
            default_root_dir=run.path,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            benchmark=True,  # images of one size: let cuDNN find its fastest kernels
            # A user's model may keep tensors between calls; made in inference mode they could not be trained with.
            inference_mode=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise AdjoinedError(
            f"these devices cannot be used: {error}",
            where="--accelerator, --devices, --nodes, --strategy, --precision",
            got=", ".join(map(str, asked)),
        ) from error


def _check_fits(path: Path, module: LightningModule) -> None:
    found = {name: tuple(tensor.shape) for name, tensor in read_checkpoint(path).get("state_dict", {}).items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise AdjoinedError(
                "the checkpoint belongs to another network",
                where=f"{path}, {name}",
                expected=wanted.get(name, "no such tensor"),
                got=found.get(name, "no such tensor"),
                fix="Put the checkpoint of this run there, or delete it to start again from the beginning.",
            )


@contextmanager
def _failures(run: RunFolder, settings: Settings) -> Iterator[None]:
    """Say in one line what stopped a run, and how to go on."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        # Lightning turns Ctrl-C into an exit and stops listening to it; SIGTERM into one that looks like success.
        if not isinstance(error.__context__, KeyboardInterrupt) and not isinstance(error, SIGTERMException):
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt(f"stopped; go on with: adjoined train --resume {run.path}") from None
    except torch.OutOfMemoryError as error:
        raise AdjoinedError(
            "the device has not enough memory",
            where="--batch-size",
            got=settings.batch_size,
            fix="Use a smaller batch with --accumulate, or --precision bf16-mixed.",
        ) from error
    except BrokenPipeError:
        raise  # nobody reads what is shown; that says nothing about the folder
    except OSError as error:
        raise cannot_write(error, error.filename or run.path) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice to itself: it is about settings that are chosen here."""
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
