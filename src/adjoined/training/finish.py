"""The end of a run: networks taken from the last checkpoint, saved, reloaded and evaluated."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adjoined.atomic import copy_file, replaced_folder, scratch_folder
from adjoined.data import ImageData
from adjoined.errors import AdjoinedError
from adjoined.files import cannot_write
from adjoined.json_files import read_json, write_json
from adjoined.kinds import NAMES
from adjoined.methods import TrainedNetwork
from adjoined.report.result import figures_from, keep_figures
from adjoined.runs import NetworkResult, RunFolder, RunResult, StageCost
from adjoined.runs.finished import FinishedNetwork, with_networks
from adjoined.runs.networks import read_description, save_description
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan
from adjoined.statistics import measure_statistics
from adjoined.training.checkpoints import read_checkpoint
from adjoined.training.cost import training_macs
from adjoined.training.evaluate import Scores, evaluate
from adjoined.training.history import History
from adjoined.training.job import Job
from adjoined.training.loaders import training_batches
from adjoined.training.stages import StageResults
from adjoined.training.writing import Measure, write_networks

STATISTICS_FROM = 4096
"""Most training images that running statistics are measured on."""
_DTYPES = {"bf16-true": torch.bfloat16, "64-true": torch.float64}
"""Precision -> dtype of the weights, if it is not float32."""


class Ending:
    """Writes the finished networks of a run, some copied from earlier stages; made first, to rehearse the end."""

    def __init__(self, run: RunFolder, job: Job, earlier: StageResults) -> None:
        self.run, self.job, self.earlier = run, job, earlier
        # A copy from before the training: a forward pass may leave tensors in a model that cannot be copied.
        network = copy.deepcopy(job.built.network).to("cpu", _DTYPES.get(job.settings.precision))
        self._built = replace(job.built, network=network)
        self._macs = training_macs(job)

    def rehearse(self) -> None:
        """Write all final files to a temporary folder, to detect failures before hours of training.

        Raises:
            AdjoinedError: something cannot be written, or a network cannot be rebuilt.
        """
        with self._scratch() as scratch:
            try:
                result = self._write(scratch, self._built.network.state_dict(), self._run_once, compare=True)
                write_json(scratch.record, result.to_json())
                RunResult.from_json(read_json(scratch.record, "the result of a run"), scratch.path)  # it is read, too
            except AdjoinedError as error:
                again = "Free some space, or choose another folder, and rerun the command."
                fix = again if isinstance(error.__cause__, OSError) else error.fix
                raise error.but(what=f"{error.what}, so the run could not be finished", fix=fix) from error
            except OSError as error:
                raise cannot_write(error, self.run.path) from error
            except Exception as error:
                raise AdjoinedError(
                    f"the networks could not be written at the end of this run: {type(error).__name__}: {error}",
                    where=self.run.path,
                ) from error

    def check_state(self, network: nn.Module) -> None:
        """Raise AdjoinedError if a network of the user's code, as it trains, computes with more than its state.

        Args:
            network: the network on any device and in any mode; it is not changed.
        """
        if self.job.settings.code is None:
            return
        try:
            twin = copy.deepcopy(network).cpu().eval()
        except Exception:  # a forward pass has left tensors in it that cannot be copied
            return
        finished = self.job.method.finish(replace(self._built, network=twin))
        settings, images = self.job.settings, self.job.images
        with self._scratch() as scratch:
            write_networks(
                scratch, finished, settings, images, weights=self._weights, measure=self._run_once, device="cpu",
                compare=True,
            )  # fmt: skip

    @contextmanager
    def _scratch(self) -> Iterator[RunFolder]:
        """Yield a temporary run folder; errors name the run instead."""
        with scratch_folder(self.run.path) as folder:
            try:
                yield RunFolder(folder)
            except AdjoinedError as error:
                raise error.but(where=error.where.replace(str(folder), str(self.run.path))) from error

    def keep(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Save the networks of a checkpoint in a folder, atomically, for use during the run or after it was stopped."""
        rows = checkpoint["callbacks"][History.__qualname__]["rows"]
        images = len(self.job.images.val)

        def recorded(name: str, _: nn.Module) -> Scores:
            found = {what: rows[-1].get(f"val_{name}_{what}") for what in NAMES}
            return Scores(images, rows[-1][f"val_{name}_loss"], **found)

        with replaced_folder(path) as folder:
            seconds = sum(row["seconds"] for row in rows)
            result = self._write(RunFolder(folder), _of_network(checkpoint), recorded, seconds, epochs=len(rows))
            write_json(RunFolder(folder).record, {**self.run.read_record(), "result": result.to_json()})

    def finish(self, device: torch.device) -> RunResult:
        """Save every network of the run in a separate file, with the accuracy measured on that file.

        The networks are those of the last step, or their moving average if the run keeps one; not the best of all
        epochs, which would be selected on the evaluation images.

        Raises:
            NotFinite: the loss of a network is not finite.
        """
        self.run.check_still_own()
        # From the file, not from this process: the training may have run in other processes.
        last = read_checkpoint(self.run.last)
        images = self.job.images

        def measure(_: str, module: nn.Module) -> Scores:
            return evaluate(module, images.val_loader(), images.info.num_classes, device, task=images.info.task)

        rows = last["callbacks"][History.__qualname__]["rows"]
        seconds = sum(row["seconds"] for row in rows)
        result = self._write(self.run, _of_network(last), measure, seconds, device)
        running = [replace(each, running=rows[-1].get(f"val_{each.name}_{each.main_name}")) for each in result.networks]
        result = replace(result, networks=tuple(running))
        # The figures first: once the record is written, the run is finished.
        finished = with_networks(self.run.path, self.run.path, result, self.job.settings.code)
        keep_figures(result, figures_from(finished), self.run.path)
        with suppress(AdjoinedError):  # they keep moving averages, and say so
            self._finish_best(result, measure, device)
        shutil.rmtree(self.run.checkpoints / "last", ignore_errors=True)  # they are the finished ones
        self.run.finish(result.to_json())
        return result

    def _finish_best(self, final: RunResult, measure: Measure, device: torch.device) -> None:
        """Give the networks of the best epoch measured statistics; they were saved with moving averages."""
        holder, job = RunFolder(self.run.checkpoints / "best"), self.job
        before = holder.read_result()
        if before is None:
            return
        ready, trained, count = final.networks, {}, final.statistics
        if before.epochs != final.epochs:  # other weights than the final ones
            ready = self.earlier.carried
            carried = {each.name for each in ready}
            found = with_networks(self.run.path, holder.path, before, job.settings.code).networks
            trained = {each.name: _of_file(each) for each in found if each.name not in carried}
            count = _measure_statistics(trained, job.settings, job.images, device)
        with replaced_folder(holder.path) as folder:
            run = RunFolder(folder)
            copied = [_carry(run, each, self.earlier) for each in ready]
            written, _ = write_networks(
                run, trained, job.settings, job.images, weights=self._weights, measure=measure, device=device.type
            )
            running = {each.name: each.main for each in before.networks}
            written = [replace(each, running=running[each.name]) for each in written]
            result = replace(before, networks=(*copied, *written), statistics=count)
            write_json(run.record, {**self.run.read_record(), "result": result.to_json()})

    def _write(
        self,
        run: RunFolder,
        state: Mapping[str, Tensor],
        measure: Measure,
        seconds: float = 0.0,
        device: torch.device | None = None,
        epochs: int | None = None,
        compare: bool = False,
    ) -> RunResult:
        """Write the networks of a training state into a folder, and return their records."""
        job, images = self.job, self.job.images
        stages = (*self.earlier.costs, self._cost(job.settings.epochs if epochs is None else epochs, seconds))
        carried = [_carry(run, each, self.earlier) for each in self.earlier.carried]
        self._built.network.load_state_dict(dict(state))
        self._built.network.eval()
        built = job.method.finish(self._built)
        statistics = _measure_statistics(built, job.settings, images, device) if device else 0
        kind = device.type if device else "cpu"
        networks, count = write_networks(
            run, built, job.settings, images, weights=self._weights, measure=measure, device=kind, compare=compare
        )
        return RunResult(
            folder=run.path,
            networks=(*carried, *networks),
            epochs=sum(stage.epochs for stage in stages),
            seconds=round(sum(stage.seconds for stage in stages), 3),
            images=count,
            val_name=images.val_name,
            weights=self._weights,
            stages=stages,
            statistics=statistics,
        )

    @property
    def _weights(self) -> str:
        return "ema" if self.job.settings.ema else "last"

    def _cost(self, epochs: int, seconds: float) -> StageCost:
        macs = None if self._macs is None else self._macs * epochs // self.job.settings.epochs
        return StageCost(self.job.settings.method, epochs, macs, round(seconds, 3))

    def _run_once(self, _: str, module: nn.Module) -> Scores:
        """Run a network on one image; the output of untrained weights does not matter."""
        with torch.no_grad():
            module.eval()(self.job.example)
        return Scores(images=1, loss=0.0)


def _measure_statistics(
    finished: Mapping[str, TrainedNetwork], settings: Settings, images: ImageData, device: torch.device
) -> int:
    """Measure the running statistics of finished networks, in place, on training images, augmented as in training.

    Training keeps moving averages. In a short run, or with a small momentum, these lag behind the weights.
    A base with frozen modules keeps its statistics.

    Returns:
        The number of images used; 0 if no network has running statistics.
    """
    modules = [each.module.to(device) for each in finished.values() if not (settings.freeze and each.plan is None)]
    dtype = next((each.dtype for module in modules for each in module.parameters()), torch.float32)
    batches = max(STATISTICS_FROM // images.settings.batch_size, 1)
    some = islice(training_batches(settings, images, device, settings.epochs), batches)
    count = measure_statistics(modules, modules, (x.to(dtype) for x, _ in some)) if modules else 0
    for module in modules:
        module.cpu()
    return count


def _of_network(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Extract the state of the trained network from that of the LightningModule."""
    return {name.removeprefix("network."): each for name, each in checkpoint["state_dict"].items()}


def _of_file(network: FinishedNetwork) -> TrainedNetwork:
    """Return a network that was loaded from its files."""
    plan = network.description["plan"]
    return TrainedNetwork(
        network.module, SlicePlan.from_json(plan) if plan else None, sparse=network.result.nonzero is not None
    )


def _carry(run: RunFolder, network: NetworkResult, earlier: StageResults) -> NetworkResult:
    """Copy a finished network of an earlier stage into the run."""
    stage = RunFolder(network.path.parent)
    copy_file(stage.weights(network.name), run.weights(network.name))
    if new := earlier.described.get(network.name):
        save_description(run.description(network.name), {**read_description(stage.path, network.name), **new})
    else:
        copy_file(stage.description(network.name), run.description(network.name))
    return replace(network, path=run.weights(network.name))
