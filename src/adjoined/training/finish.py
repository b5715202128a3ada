"""The end of a run: networks out of the last checkpoint, saved, loaded again, measured."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch

from adjoined import models
from adjoined.files import copy_file
from adjoined.runs import NetworkResult, RunFolder, RunResult, StageCost
from adjoined.runs.networks import load_weights, rebuild, save_description, save_weights
from adjoined.training.checkpoints import read_checkpoint
from adjoined.training.cost import training_macs
from adjoined.training.evaluate import Scores, evaluate
from adjoined.training.history import History
from adjoined.training.job import Job, model_recipe
from adjoined.training.stages import Earlier


def finish(run: RunFolder, job: Job, device: torch.device, earlier: Earlier) -> RunResult:
    """Leave every network of a run as a file of its own, with the accuracy that this very file has.

    The networks are those of the last step, or their moving average where the run keeps one; not the best of all
    epochs, which would be chosen on the images that they are then measured with.

    Args:
        run: its folder.
        job: what was trained.
        device: where to measure.
        earlier: what the stages before have left; networks of theirs that belong to the run are copied.
    """
    # From the file, not from this process: the training may have taken place in others.
    last = read_checkpoint(run.last)
    job.network.load_state_dict({name.removeprefix("network."): each for name, each in last["state_dict"].items()})
    seconds = sum(row["seconds"] for row in last["callbacks"][History.__qualname__]["rows"])
    weights = "ema" if job.settings.ema else "last"
    # The settings come from the user, not from a file of the run: their code may be run.
    code = job.settings.model if models.is_code(job.settings.model) else None
    images, networks = job.images, [_carry(run, each) for each in earlier.carried]
    cost = StageCost(job.settings.method, job.settings.epochs, training_macs(job), round(seconds, 3))
    stages = (*earlier.costs, cost)
    measured = None
    job.network.cpu().eval()
    for name, finished in job.method.finish(job.built).items():
        description = {
            "name": name,
            "weights": weights,
            "model": model_recipe(job.settings, images),
            "plan": None if finished.plan is None else finished.plan.to_json(),
            "data": images.info.to_json(),
            "sha256": save_weights(finished.module, run.weights(name)),
        }
        # What is measured is the file, not what is in memory: it is the file that has to keep the promise.
        again = rebuild(description, where=run.description(name), model=code)
        load_weights(again, run.weights(name), description["sha256"])
        measured = evaluate(again, images.val_loader(), images.info.num_classes, device)
        parameters = sum(each.numel() for each in again.parameters())
        metrics = _metrics(measured, images.val_name, device)
        save_description(run.description(name), {**description, "parameters": parameters, "metrics": metrics})
        found = (measured.loss, measured.top1, measured.top5)
        nonzero = sum(int(each.count_nonzero()) for each in again.parameters()) if finished.sparse else None
        networks.append(NetworkResult(name, parameters, *found, path=run.weights(name), nonzero=nonzero))
    assert measured is not None
    result = RunResult(
        folder=run.path,
        networks=tuple(networks),
        epochs=sum(stage.epochs for stage in stages),
        seconds=round(sum(stage.seconds for stage in stages), 3),
        images=measured.images,
        val_name=images.val_name,
        weights=weights,
        stages=stages,
    )
    run.finish(result.to_json())
    return result


def _carry(run: RunFolder, network: NetworkResult) -> NetworkResult:
    """Copy a finished network of an earlier stage into the run."""
    stage = RunFolder(network.path.parent)
    copy_file(stage.weights(network.name), run.weights(network.name))
    copy_file(stage.description(network.name), run.description(network.name))
    return replace(network, path=run.weights(network.name))


def _metrics(measured: Scores, images: str, device: torch.device) -> dict[str, Any]:
    return {**asdict(measured), "measured_on": images, "device": device.type}
