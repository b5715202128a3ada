"""The training stages before a method's own training, each a run in `RUN/stages/NAME`.

A stage can be unfinished, like every run; a killed run resumes in the stage where it stopped.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from adjoined.atomic import copy_file, written_beside
from adjoined.data import DataInfo, ImageData
from adjoined.errors import AdjoinedError
from adjoined.files import as_path, make_folder, refuse_link
from adjoined.methods import METHODS, Stage
from adjoined.models import is_code
from adjoined.names import BASE
from adjoined.report.console import say
from adjoined.runs import NetworkResult, RunFolder, RunResult, StageCost, load, read_description
from adjoined.runs.unedited import check_unedited
from adjoined.settings import Settings
from adjoined.training.job import make_job

if TYPE_CHECKING:
    from rich.console import Console


@dataclass
class StageResults:
    """The results of the stages before a training."""

    modules: dict[str, nn.Module] = field(default_factory=dict)
    """Name of the stage -> its base network."""
    carried: list[NetworkResult] = field(default_factory=list)
    """Networks that the whole run delivers; their paths are those in the stage's folder."""
    described: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Name of a carried network -> entries of its description that are new, since it was measured on other images."""
    costs: list[StageCost] = field(default_factory=list)


def run_stages(
    settings: Settings,
    folder: Path,
    *,
    train: Callable[[Stage, Path], RunResult],
    known: Iterable[Path],
    console: Console,
) -> StageResults:
    """Finish every stage before these settings' own training, and return the results.

    Args:
        settings: the settings of the run.
        folder: parent of the stages' folders.
        train: starts or resumes the training of a stage in its folder.
        known: folders of runs; a finished one with the settings of a stage is copied instead of trained again, since
            the outcome would be the same.
        console: where to report which stage starts.

    Raises:
        AdjoinedError: a run given as a stage is unfinished, or its images differ from this run's.
    """
    earlier = StageResults()
    stages = METHODS[settings.method](settings).before()
    for number, stage in enumerate(stages, start=1):
        run = RunFolder(folder / stage.name)
        if not run.settings.is_file():
            source = as_path(stage.given, "--teacher") if stage.given else _equal_run(stage, known)
            if source is not None:
                _copy(source, run.path)
        if not run.finished:
            say(console, f"stage {number} of {len(stages) + 1}: {stage.name} ({stage.settings.method})")
            train(stage, run.path)
        result = run.read_result()
        assert result is not None
        # The user named the code of the model in this command; a given run may have a library's.
        code = settings.code if is_code(read_description(run.path, BASE)["model"]["spec"]) else None
        earlier.modules[stage.name] = load(run.path, BASE, model=code)
        earlier.carried += [each for each in result.networks if each.name == BASE]
        earlier.costs.append(replace(result.stages[-1], name=stage.name))
    if stages:
        say(console, f"stage {len(stages) + 1} of {len(stages) + 1}: {settings.method}")
    return earlier


def check_stages(settings: Settings, processes: int, skipped: Collection[str] | None) -> ImageData | None:
    """Check that the stages before a run's own training can be run.

    Returns:
        The images of all stages; None if these settings have no stages.

    Raises:
        AdjoinedError: something is missing or does not fit; nothing has been written.
    """
    method = METHODS[settings.method](settings)
    method.check()
    stages = method.before()
    if not stages:
        return None
    if processes > 1:
        raise AdjoinedError(
            "a method of several stages trains on one device",
            where=f"--method {settings.method}",
            expected="--devices 1 and --nodes 1",
            got=f"{processes} processes",
            fix="Use --method adjoint+ to train on several.",
        )
    job = make_job(settings.for_method("standard"), skipped=skipped)
    for stage in stages:
        if stage.given:
            _check_given(as_path(stage.given, "--teacher"), job.images.info, settings.code)
    # What the last stage refuses, a width for example, is refused before hours of training the base.
    method.build(job.model, job.example, {stage.name: job.model for stage in stages})
    return job.images


def _check_given(folder: Path, info: DataInfo, code: str | None) -> None:
    """Raise AdjoinedError unless the base network of a finished run takes these images and has these classes."""
    if not RunFolder(folder).finished:
        raise AdjoinedError("no finished run in this folder", where=f"--teacher {folder}")
    description = read_description(folder, BASE)
    if is_code(spec := description["model"]["spec"]) and code is None:
        raise AdjoinedError(
            "its network is built by your own code, and that of this run is not",
            where=f"--teacher {folder}",
            expected="a run with a library's model",
            got=spec,
            fix=f"Use the same code for both: --model {spec}.",
        )
    theirs = DataInfo.from_json(description["data"])
    for what in (each.name for each in fields(DataInfo) if each.name != "name"):  # the folder may have another name
        if getattr(theirs, what) != getattr(info, what):
            raise AdjoinedError(
                f"the run was trained for other images, classes or another task ({what})",
                where=f"--teacher {folder}",
                expected=str(getattr(info, what))[:80],
                got=str(getattr(theirs, what))[:80],
            )
    RunFolder(folder).known_data()  # it is read later: if it is damaged, say so now


def _equal_run(stage: Stage, known: Iterable[Path]) -> Path | None:
    if stage.records:  # finished runs have no recorded logits
        return None
    ignored = METHODS[stage.settings.method].ignores
    for path in known:
        run = RunFolder(path)
        with suppress(AdjoinedError):  # a damaged run is not needed: the stage is trained
            check_unedited(run)
            # Settings that the stage's method ignores do not change the outcome.
            if run.finished and ignored.issuperset(run.read_settings().differences(stage.settings)):
                return path
    return None


def _copy(source: Path, target: Path) -> None:
    """Copy a finished run atomically; only the files of a run are copied from its folder."""
    of = RunFolder(source)
    result = of.read_result()
    assert result is not None
    make_folder(target.parent)
    refuse_link(target)
    shutil.rmtree(target, ignore_errors=True)  # it holds only a lock: it is not a run yet
    with written_beside(target) as (part,):
        part.mkdir()
        copy_file(of.settings, RunFolder(part).settings)
        copy_file(of.record, RunFolder(part).record)
        for kept, copy in ((of.data, RunFolder(part).data), (of.data_files, RunFolder(part).data_files)):
            if kept.is_file():
                copy_file(kept, copy)
        of.copy_networks(RunFolder(part), [network.name for network in result.networks])
