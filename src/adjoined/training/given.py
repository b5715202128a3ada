"""A finished run that is given as a stage of another: it may have been trained and measured on other images."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from adjoined.data import ImageData
from adjoined.data.record import trained_on
from adjoined.methods import METHODS
from adjoined.names import BASE
from adjoined.printable import counted
from adjoined.report.console import say
from adjoined.runs import RunFolder
from adjoined.training.evaluate import evaluate
from adjoined.training.job import Job
from adjoined.training.stages import StageResults

if TYPE_CHECKING:
    from rich.console import Console


def on_own_images(job: Job, run: RunFolder, earlier: StageResults, device: torch.device, console: Console) -> Job:
    """Measure given networks on the run's validation images, unless they were; say how many they were trained on.

    Args:
        job: the job of the run; returned with the number of these images in their description.
        run: the run, with its stages.
        earlier: the results of its stages; the figures of given networks are replaced.
        device: where they are measured.
        console: where to say that some validation images are known to them.
    """
    own = run.known_data()
    for stage in METHODS[job.settings.method](job.settings).before():
        of = RunFolder(run.stages / stage.name)
        theirs = of.known_data()
        if not stage.given or own is None or (theirs is not None and theirs.same_images(own)):
            continue
        same_val = theirs is not None and theirs.val == own.val
        images = job.images
        if note := _known_to(of, images, sure=same_val):
            count = counted(len(images.val), "validation image")
            say(console, f"--teacher {stage.given}: {count}, {note}, so the accuracies may be too high")
            images = replace(images, val_name=f"{images.val_name}, {note}")
        job = replace(job, images=images)
        if not same_val:
            _measure(stage.name, images, earlier, device)
    return job


def _known_to(of: RunFolder, images: ImageData, *, sure: bool) -> str:
    """Return how many validation images a run was trained on, in words; `sure`: without a list of files, on none."""
    if of.data_files.is_file():
        count = images.count_known(trained_on(of.data_files))
        return f"{count} of them trained on by the teacher" if count else ""
    return "" if sure else "some perhaps trained on by the teacher"


def _measure(name: str, images: ImageData, earlier: StageResults, device: torch.device) -> None:
    """Replace the figures of a stage's network by those on these validation images."""
    module, info = earlier.modules[name], images.info
    found = evaluate(module, images.val_loader(), info.num_classes, device, task=info.task)
    module.cpu()
    figures: dict[str, Any] = {"loss": found.loss, "running": None, **found.measures()}
    earlier.carried = [replace(each, **figures) if each.name == BASE else each for each in earlier.carried]
    metrics = {**asdict(found), "measured_on": images.val_name, "device": device.type}
    earlier.described[BASE] = {"data": info.to_json(), "metrics": metrics}
