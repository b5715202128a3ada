"""A run from its settings to its finished networks."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from lightning.pytorch.strategies import ParallelStrategy

from adjoined.data import ImageData
from adjoined.data.record import changed_meanwhile
from adjoined.errors import AdjoinedError, first_line
from adjoined.methods import METHODS, Stage
from adjoined.names import BASE
from adjoined.report.console import say
from adjoined.runs import RunFolder, RunResult
from adjoined.runs.answer import OtherCodeError
from adjoined.runs.folder import changes
from adjoined.runs.networks import check_shapes
from adjoined.runs.unedited import check_unedited
from adjoined.settings import Settings
from adjoined.training.checkpoints import Checkpoints, WholeCheckpointIO, read_checkpoint
from adjoined.training.deadline import Deadline
from adjoined.training.display import Display
from adjoined.training.ema import MovingAverage
from adjoined.training.failures import StillOwn, StopTogether, WholeState, explained, quiet, resumable
from adjoined.training.finish import Ending
from adjoined.training.given import on_own_images
from adjoined.training.history import History
from adjoined.training.job import Job, make_job, prepare
from adjoined.training.loaders import RunData
from adjoined.training.module import SETTINGS, TrainingModule
from adjoined.training.output import unstoppable
from adjoined.training.processes import end_with_parent, is_main, keep_group, leave_group_at_exit
from adjoined.training.recording import Recorder, Replayer
from adjoined.training.stages import StageResults, check_stages, run_stages
from adjoined.training.tensorboard import TensorBoard

if TYPE_CHECKING:
    from rich.console import Console

_OTHER_CHECKPOINT = "Restore the checkpoint of this run, or delete it to start from the beginning."


def run_training(
    settings: Settings,
    run_folder: str | os.PathLike[str],
    *,
    resume: bool,
    console: Console | None,
    announce: Callable[[Job], None] | None,
    known: Iterable[str | os.PathLike[str]] = (),
    part_of: RunFolder | None = None,
    deadline: float | None = None,
    records: bool = False,
) -> RunResult:
    """Implement `adjoined.training.train`; for a stage of another run, `part_of`, errors say how to resume that one.

    With `records`, the base network's logits of the last epochs are kept for the next stage.
    """
    if console is None:
        from rich.console import Console

        console = Console()
    end_with_parent()
    keep_group()
    settings = settings.anchored()
    run = RunFolder(run_folder)
    if resume and (done := _finished_before(run, settings, console)):
        return done
    # Only one of several processes may write to the folder.
    folder, whole = run.opened(settings, resume=resume) if is_main() else nullcontext(), part_of or run
    with folder, resumable(whole, settings), quiet(), unstoppable(console):
        if part_of is None and is_main():
            _tell_other_versions(run, console)
        history, files, limit = History(run.metrics), WholeCheckpointIO(), Deadline(deadline)
        whole_state = WholeState()
        callbacks = [whole_state, *_callbacks(settings, run, history, console, records), limit]
        trainer = make_trainer(settings, run.path, callbacks, files)
        if part_of is None and is_main():
            _tell_slow_precision(settings, trainer, console)
        train_stage = partial(
            run_training, resume=True, console=console, announce=None, part_of=whole, deadline=deadline
        )
        job, earlier = _start(run, settings, trainer, train_stage, known, console)
        trainer.fit_loop.max_epochs = job.settings.epochs
        ending = Ending(run, job, earlier) if is_main() else None
        if ending is not None:
            ending.rehearse()
            files.keep, whole_state.check = ending.keep, ending.check_state
            for name, plan in job.built.plans.items():
                if plan is not None:
                    plan.save(run.plan(name))
            if announce is not None:
                announce(job)
        checkpoint = run.last if run.last.exists() else None
        if job.method.samples and checkpoint is None:
            prepare(job, trainer.strategy.root_device)
        module = TrainingModule(job.settings, job.method, job.built, job.images.info.num_classes)
        if checkpoint is not None:
            _check_fits(checkpoint, module)
            if settings.code:
                _check_code(run, settings.code)
        data = RunData(job.settings, job.images)
        with explained(whole, run, settings, trainer, data):
            with _restored(checkpoint, module):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            limit.check(trainer)
            result = ending.finish(trainer.strategy.root_device) if ending else None
        if ending and part_of is None:
            _tell_changed_images(run, job.images, console)
        if job.method.replays:
            shutil.rmtree(_recorded(run), ignore_errors=True)
        result = trainer.strategy.broadcast(result)
        assert result is not None
        if part_of is None:
            leave_group_at_exit()
        return result


def _finished_before(run: RunFolder, settings: Settings, console: Console) -> RunResult | None:
    """Return the result of a run that is finished already and has all its networks."""
    done = run.read_result() if run.record.exists() else None
    if done is None:
        return None
    check_unedited(run)
    changed = changes(run.read_settings(all_known=True), settings, run.path)
    whole = all(each.path.exists() for each in done.networks)
    if is_main():
        missing = "finished networks are missing; they are made again from the last checkpoint"
        without = f"; the new {', '.join(changed)} had no effect" if changed else ""
        say(console, f"{run.path}: {f'the run is finished, nothing to do{without}' if whole else missing}")
    return done if whole else None


def _tell_other_versions(run: RunFolder, console: Console) -> None:
    if other := run.other_versions():
        pairs = ", ".join(f"{name} {now} (it started with {then})" for name, (then, now) in other.items())
        say(console, f"{run.path}: resumed with {pairs}; the results may differ from those of an uninterrupted run")


def _tell_slow_precision(settings: Settings, trainer: Trainer, console: Console) -> None:
    """Say that bfloat16 is slow if this processor computes it without instructions for it."""
    on_x86 = trainer.strategy.root_device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    if on_x86 and settings.precision.startswith("bf16") and "AVX512" not in torch.backends.cpu.get_cpu_capability():
        what = "this processor has no AVX-512, and without it bfloat16 can be ten times slower than float32"
        say(console, f"--precision {settings.precision}: {what}; --precision 32-true avoids that")


def _tell_changed_images(run: RunFolder, images: ImageData, console: Console) -> None:
    try:
        changed = changed_meanwhile(run.data_files, images)
    except AdjoinedError as error:
        changed = str(error)
    if changed:
        what = "images have changed since the run started, so some epochs or the evaluation saw others"
        say(console, f"{run.path}: {what}: {changed}")


def _start(
    run: RunFolder,
    settings: Settings,
    trainer: Trainer,
    train_stage: Callable[..., RunResult],
    known: Iterable[str | os.PathLike[str]],
    console: Console,
) -> tuple[Job, StageResults]:
    """Open the images, record the start of the run, finish its earlier stages, and build the network to train."""
    record = run.known_data()
    skipped = record.skipped if record else None
    if record:
        settings = replace(settings, data=record.found(settings.data_settings()).name)
    images = check_stages(settings, trainer.world_size, skipped)
    if images is None:
        job = make_job(settings, trainer.world_size, skipped=skipped)
        run.check_data(job.images)
        if is_main():  # not earlier: a typo in the name of the data leaves the folder free for the next attempt
            run.begin(settings)
            run.keep_data(job.images)
        return job, StageResults()
    run.check_data(images)
    run.begin(settings)
    run.keep_data(images)
    # An earlier run whose images have changed since may have been trained on today's validation images.
    unchanged = [path for path in map(Path, known) if RunFolder(path).may_have_begun_with(images)]

    def train(stage: Stage, folder: Path) -> RunResult:
        return train_stage(stage.settings, folder, known=unchanged, records=stage.records)

    earlier = run_stages(settings, run.stages, train=train, known=unchanged, console=console)
    job = make_job(settings, earlier=earlier.modules, skipped=skipped)
    return on_own_images(job, run, earlier, trainer.strategy.root_device, console), earlier


def _callbacks(settings: Settings, run: RunFolder, history: History, console: Console, records: bool) -> list[Callback]:
    average = [MovingAverage(settings.ema)] if settings.ema else []
    recorder = [Recorder(run.logits, settings.epochs)] if records else []
    replayer = [Replayer(_recorded(run), settings.epochs)] if METHODS[settings.method].replays else []
    return [
        StillOwn(run),
        *average,
        *recorder,
        *replayer,
        history,
        TensorBoard(run.tensorboard, history),
        Display(console, history),
        Checkpoints(run.checkpoints, history, settings.checkpoint_every),
        StopTogether(),
    ]


def _recorded(run: RunFolder) -> Path:
    """Return the folder of the logits that the stage of the base network recorded."""
    return RunFolder(run.stages / BASE).logits


def make_trainer(settings: Settings, folder: Path, callbacks: list[Callback], files: WholeCheckpointIO) -> Trainer:
    """Return Lightning's trainer for a run, which has written nothing yet.

    Raises:
        AdjoinedError: the devices, the strategy or the precision cannot be used.
    """
    asked = settings.accelerator, settings.devices, settings.nodes, settings.strategy, settings.precision
    try:
        trainer = Trainer(
            accelerator=settings.accelerator,
            devices=settings.devices,
            num_nodes=settings.nodes,
            strategy=settings.strategy,
            sync_batchnorm=settings.sync_batchnorm,
            precision=settings.precision,
            max_epochs=settings.epochs,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.grad_clip or None,
            callbacks=callbacks,
            plugins=[files],
            logger=False,
            default_root_dir=folder,
            enable_checkpointing=any(isinstance(each, Checkpoint) for each in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            benchmark=True,  # all images have one size: let cuDNN find its fastest kernels
            # A user's model may keep tensors between calls; inference tensors could not be used in training.
            inference_mode=False,
        )
    except (MisconfigurationException, ValueError, RuntimeError) as error:
        raise AdjoinedError(
            f"these devices cannot be used: {error}",
            where="--accelerator, --devices, --nodes, --strategy, --precision",
            got=", ".join(map(str, asked)),
        ) from error
    if trainer.world_size == 1 and not is_main():  # it would write and print nothing
        names = [name for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK") if name in os.environ]
        raise AdjoinedError(
            "the environment says that this is a further process of several, but it would train alone",
            where=", ".join(names),
            expected="0, or variables that are not set",
            got=", ".join(os.environ[name] for name in names),
            fix="Unset them; to train on several devices, use --devices.",
        )
    strategy = trainer.strategy
    parallel = isinstance(strategy, ParallelStrategy)  # only then does Lightning convert the norms
    alone = parallel and isinstance(strategy.cluster_environment, LightningEnvironment)
    if settings.nodes > 1 and alone and "MASTER_ADDR" not in os.environ:
        raise AdjoinedError(
            "nothing starts this command on the other machines, and it would wait for them",
            where="--nodes",
            expected="a launcher such as srun or torchrun, or MASTER_ADDR and NODE_RANK on every machine",
            got=settings.nodes,
            fix="Leave it out to train on this machine.",
        )
    if settings.sync_batchnorm and parallel and strategy.root_device.type == "cpu":
        raise AdjoinedError(
            "torch synchronises batch norms between GPUs only",
            where="--sync-batchnorm",
            got=f"CPUs (number of processes: {trainer.world_size})",
            fix="Leave it out, and give each process a batch of at least 16 images.",
        )
    return trainer


def _check_fits(path: Path, module: TrainingModule) -> None:
    """Raise AdjoinedError if the checkpoint belongs to another network, or if its settings were edited since."""
    checkpoint = read_checkpoint(path)
    changes(Settings.from_dict(checkpoint[SETTINGS], where=path), module.settings, path)
    found = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(wanted, found, "the checkpoint belongs to another network", where=path, fix=_OTHER_CHECKPOINT)


def _check_code(run: RunFolder, code: str) -> None:
    """Raise OtherCodeError if the user's code has changed so that the last checkpoint's networks answer otherwise."""
    from adjoined.runs.finished import open_run

    try:
        with torch.random.fork_rng(devices=[]):
            open_run(run.path, code, weights="last")
    except OtherCodeError:
        raise
    except AdjoinedError:  # no such networks, or damaged ones: the run does not need them to resume
        return


@contextmanager
def _restored(checkpoint: Path | None, module: TrainingModule) -> Iterator[None]:
    """If a checkpoint cannot be restored in the block, report its file: it was damaged or changed."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if not module.restoring:
            raise
        raise AdjoinedError(
            f"the checkpoint does not match the run: {type(error).__name__}: {first_line(error)}",
            where=checkpoint,
            fix=_OTHER_CHECKPOINT,
        ) from error
