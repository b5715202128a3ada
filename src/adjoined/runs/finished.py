"""A finished run: its networks, and the images that it was validated on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from adjoined.data import DataInfo, DataSettings, ImageData, open_data, open_to_measure
from adjoined.data.preprocessing import evaluation_transform
from adjoined.data.record import trained_on
from adjoined.data.settings import folder_of
from adjoined.errors import AdjoinedError
from adjoined.kinds import in_brief
from adjoined.models import is_code
from adjoined.runs.folder import RunFolder
from adjoined.runs.hub import located
from adjoined.runs.networks import load, read_description, settled
from adjoined.runs.result import NetworkResult, RunResult
from adjoined.statistics import running_norms


@dataclass(frozen=True)
class FinishedNetwork:
    """One network of a run, ready for use."""

    name: str
    module: nn.Module
    """The network, in evaluation mode, on the CPU."""
    description: dict[str, Any]
    """The contents of the JSON beside its weights."""
    result: NetworkResult
    """The run's measurements of it."""

    @property
    def label(self) -> str:
        """Its name in a table, with alpha if there are several small networks."""
        plan = self.description["plan"]
        return f"{self.name} (α={plan['alpha']:.3g})" if plan and self.name != "small" else self.name


@dataclass(frozen=True)
class FinishedRun:
    """A finished run."""

    folder: Path
    result: RunResult
    networks: tuple[FinishedNetwork, ...]
    """The base network first."""
    weights: str = "final"
    """Which of its networks: "final", "last" or "best"."""

    @property
    def when(self) -> str:
        """When in training the networks had their weights, in words."""
        epoch = f"of epoch {self.result.epochs}"
        return {"best": f"{epoch}, the best one", "last": f"{epoch}, the last checkpoint"}.get(
            self.weights, "after the last step"
        )

    @property
    def caveats(self) -> tuple[str, ...]:
        """Sentences that belong beside every accuracy of the networks."""
        measured = self.weights == "final" or self.result.statistics
        if measured or not running_norms(network.module for network in self.networks):
            return ()
        return ("Running statistics: moving averages, which lag behind the weights; the end of a run measures them.",)

    @property
    def checksums(self) -> dict[str, str]:
        """Network -> SHA-256 of its weights."""
        return {network.name: network.description["sha256"] for network in self.networks}

    @property
    def info(self) -> DataInfo:
        """The training data, and how images are prepared for the networks."""
        return DataInfo.from_json(self.networks[0].description["data"])

    @property
    def code(self) -> str | None:
        """The user's own code that builds the model, FILE.py:FUNCTION or package.module:FUNCTION; None for others."""
        return next((spec for spec in self.specs if is_code(spec)), None)

    @property
    def specs(self) -> tuple[str, ...]:
        """The model that each network is built from; a teacher may have been another model than the run's."""
        return tuple(each.description["model"]["spec"] for each in self.networks)

    def require_classes(self, command: str) -> None:
        """Raise AdjoinedError unless the networks predict one class per image."""
        if self.info.task != "classification":
            raise AdjoinedError(
                f"`adjoined {command}` is for networks that predict one class per image",
                where=self.folder,
                got=f"networks trained for {self.info.task}",
                fix="Load them with adjoined.load.",
            )

    def example(self) -> torch.Tensor:
        """Return an example input, float32 (1, C, H, W)."""
        return torch.zeros(1, self.info.channels, self.info.image_size, self.info.image_size)


def open_run(folder: str | Path, model: str | None = None, *, weights: str = "final") -> FinishedRun:
    """Load all networks of a run.

    Args:
        folder: the run folder, or `hub:OWNER/NAME` for a run that was pushed to a hub.
        model: FILE.py:FUNCTION or package.module:FUNCTION, for a run of the user's own code: no code runs because a
            file names it.
        weights: "final", "last" or "best", as for `adjoined.load`; the last two also work for a stopped run.

    Raises:
        AdjoinedError: the run or its networks do not exist, a file is damaged, or `model` is needed.
    """
    run = RunFolder(located(folder))
    run.read_settings()
    return settled(lambda: run.holding(weights), lambda path: _opened(run, path, model, weights))


def _opened(run: RunFolder, path: Path, model: str | None, weights: str) -> FinishedRun:
    holder = RunFolder(path)
    found = holder.read_result()
    if found is None:
        usable = [each for each in ("last", "best") if (run.checkpoints / each).is_dir()]
        use = f", or use --weights {' or '.join(usable)}" if usable else ""
        raise AdjoinedError(
            "the run is not finished", where=run.path, fix=f"Continue with `adjoined train --resume {run.path}`{use}."
        )
    which = "final" if holder.path == run.path else weights
    return replace(with_networks(run.path, holder.path, found, model), weights=which)


def with_networks(folder: Path, holder: Path, result: RunResult, model: str | None) -> FinishedRun:
    """Load the networks listed in a result.

    Args:
        folder: the run folder.
        holder: the folder that holds the networks; usually the same.
        result: the result of the run.
        model: as for `open_run`.
    """
    networks, descriptions = [], [read_description(holder, each.name) for each in result.networks]
    own = [is_code(each["model"]["spec"]) for each in descriptions]
    for network, description, code in zip(result.networks, descriptions, own, strict=True):
        # The teacher may be a library's, and the student the user's own.
        module = load(holder, network.name, model=model if code or not any(own) else None)
        networks.append(FinishedNetwork(network.name, module, description, network))
    # Each command prepares the images once; a carried teacher may name the folder where they were.
    seen = [replace(DataInfo.from_json(each.description["data"]), name="") for each in networks]
    for network, info in zip(networks, seen, strict=True):
        if info != seen[0]:
            raise AdjoinedError(
                "the networks of the run were trained on different images",
                where=RunFolder(holder).description(network.name),
                expected=f"the classes and normalisation of {networks[0].name}.json",
                fix="Restore the files that the run wrote.",
            )
    return FinishedRun(folder, result, tuple(networks))


def open_images(
    run: FinishedRun, *, data: str | None = None, data_root: str | None = None, workers: int = 0
) -> ImageData:
    """Open the images that a run was trained and validated on.

    Args:
        run: the finished run.
        data: folder:PATH, the new location of the images if they have moved; none: the original location.
        data_root: folder that holds the data sets; none: the run's.
        workers: processes that load images; 0 loads them in this process.

    Raises:
        AdjoinedError: the data are missing or damaged, or are not those of the run.
    """
    folder = RunFolder(run.folder)
    settings = _settings(folder, run.info, data, data_root, workers)
    known = folder.known_data()
    if known is not None:
        settings = known.found(settings)
    images = open_data(settings, skipped=known.skipped if known else None)
    if known is not None:
        known.check(images, folder.data_files, training=False)  # reading a million files takes minutes
    _check_classes(run.info, images.info, settings.name)
    info = run.info
    alike = type(images.val)(images.val.images, evaluation_transform(info), info.mean, info.std)
    return replace(images, info=info, val=alike, val_name=run.result.val_name if known else images.val_name)


def open_other_images(
    run: FinishedRun, data: str | None, *, data_root: str | None = None, workers: int = 0
) -> ImageData:
    """Open other images of a run's classes, prepared like the run's: all that are not marked as training images.

    Args:
        run: the finished run.
        data: a data set, or folder:PATH; none: all images of the run's own data set.
        data_root: folder that holds the data sets; none: the run's.
        workers: processes that load images; 0 loads them in this process.

    Raises:
        AdjoinedError: the data are missing or damaged, or have other classes or channels than the run's.
    """
    folder = RunFolder(run.folder)
    known = folder.known_data()
    settings = _settings(folder, run.info, data, data_root, workers)
    images = open_to_measure(settings, run.info, known.class_folders if known else ())
    return images.naming_known(trained_on(folder.data_files)) if folder.data_files.is_file() else images


def are_own(run: FinishedRun, data: str, data_root: str | None = None) -> bool:
    """Return whether a data set, or folder:PATH, is the one of the run, moved or not."""
    folder = RunFolder(run.folder)
    own = folder.read_settings().data_settings()
    known = folder.known_data()
    if known is None or folder_of(data) is None or folder_of(own.name) is None:
        return data == own.name
    try:
        images = open_data(_settings(folder, run.info, data, data_root, 0), skipped=known.skipped)
        return known.fits(images, training=False)
    except AdjoinedError:  # it cannot be split, or has other classes
        return False


def _settings(folder: RunFolder, info: DataInfo, data: str | None, data_root: str | None, workers: int) -> DataSettings:
    own = folder.read_settings().data_settings()
    root, name = data_root or own.root, data or own.name
    normalisation = (info.mean, info.std)
    return replace(own, name=name, root=root, workers=workers, image_size=info.image_size, normalisation=normalisation)


def _check_classes(own: DataInfo, found: DataInfo, name: str) -> None:
    for what in ("task", "class_names", "channels"):
        if getattr(own, what) != getattr(found, what):
            raise AdjoinedError(
                f"the {what.replace('_', ' ')} of the images differ from those the networks were trained on",
                where=f"data {name}",
                expected=in_brief(own.class_names, own.task) if what == "class_names" else getattr(own, what),
                got=in_brief(found.class_names, own.task) if what == "class_names" else getattr(found, what),
                fix="Use images of the same classes, with the same names.",
            )
