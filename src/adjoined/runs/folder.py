"""The run folder: the paths of its files, the lock on it, and which settings may change when a run is resumed."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from adjoined.atomic import clear_parts, copy_file, write_text
from adjoined.data import DataRecord, ImageData
from adjoined.data.folders import check_outside
from adjoined.errors import AdjoinedError
from adjoined.files import as_path, is_part, make_folder, refuse_link
from adjoined.json_files import read_versioned, write_json
from adjoined.names import BASE, SMALL, SPARSE
from adjoined.runs.hub import refuse_hub
from adjoined.runs.lock import NAME as LOCK
from adjoined.runs.lock import locked
from adjoined.runs.result import RunResult
from adjoined.settings import Settings
from adjoined.versions import versions

FORMAT = 1
WEIGHTS = ("last", "best", "final")
"""The choices of a run's networks."""
SHOWN_ONLY = frozenset({"log_every", "checkpoint_every", "eval_batch_size"})
"""Settings of display, storage and evaluation, which do not change the trained weights."""
REMEDIES = frozenset({"lr", "finetune_lr", "grad_clip", "precision"})
"""Settings that help a run with a non-finite loss; from the last checkpoint on they change the training."""
MOVED = "If it was renamed or moved, resume it where it is now: adjoined train --resume FOLDER."
"""Advice for a run whose folder is gone."""
_NETWORKS = (BASE, SMALL, f"{SMALL}-[0-9]*", SPARSE)
_PACKAGES = ("adjoined", "torch", "torchvision", "lightning", "timm", "torchmetrics", "safetensors", "numpy", "pillow")


class Sitting(TypedDict):
    """One process that worked on a run."""

    started: str
    command: list[str]
    host: str


class Record(TypedDict):
    """The contents of run.json."""

    seed: int
    versions: dict[str, str]
    git: dict[str, Any] | None
    sittings: list[Sitting]
    finished: str | None
    result: dict[str, Any] | None
    settings: NotRequired[dict[str, Any]]
    """Those of a finished run, without folders."""


class RunFolder:
    """The files of one run.

    Attributes:
        settings: settings.yaml, all settings, resolved.
        record: run.json, versions, seed, commands, times.
        data: data.json, the record of the images that the run started with.
        data_files: data-files.txt.gz, the list of their files.
        metrics: metrics.csv, one row per epoch.
        tensorboard: the folder of TensorBoard's files.
        checkpoints: the folder of `last`, and of the networks of the last and the best epoch.
        stages: the folder of the earlier training stages, each a separate run.
        logits: the folder of logits recorded for a later stage.
        exports: the folder of exported files.
        last: last.ckpt, the checkpoint that a run is resumed from.
        worth_keeping: whether a new run can be resumed already; if its start fails earlier, the folder is removed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = as_path(path, "folder")
        self.settings = self.path / "settings.yaml"
        self.record = self.path / "run.json"
        self.data = self.path / "data.json"
        self.data_files = self.path / "data-files.txt.gz"
        self.metrics = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.stages = self.path / "stages"
        self.logits = self.path / "logits"
        self.exports = self.path / "export"
        self.last = self.checkpoints / "last.ckpt"
        self.worth_keeping = False
        self._sitting: dict[str, Any] | None = None
        self._begun: Settings | None = None

    def weights(self, name: str) -> Path:
        """Return the weights file of a finished network."""
        return self.path / f"{name}.safetensors"

    def description(self, name: str) -> Path:
        """Return the path of the JSON that describes how to build a finished network."""
        return self.path / f"{name}.json"

    def holding(self, weights: str) -> Path:
        """Return the folder that holds the networks of a certain time.

        Args:
            weights: "final", the finished ones; "last", those of the last checkpoint of a stopped run; "best", those
                of the epoch with the best validation accuracy of the small networks.

        Raises:
            AdjoinedError: the run has none of these, or a link in their place.
        """
        if weights not in WEIGHTS:
            expected = f"one of {', '.join(WEIGHTS)}"
            raise AdjoinedError("no such weights", where="weights", expected=expected, got=weights)
        if weights == "final" or (weights == "last" and self.finished):
            return self.path
        folder = self.checkpoints / weights
        for each in (self.checkpoints, folder):
            refuse_link(each)
        if not (folder / self.record.name).is_file():
            there = [each for each in WEIGHTS[:-1] if (self.checkpoints / each / self.record.name).is_file()]
            there += ["final"] if self.finished else []
            raise AdjoinedError(
                f"the run has no networks of its {weights} epoch",
                where=self.path,
                expected=f"weights {' or '.join(there)}" if there else "a run with a finished epoch",
            )
        return folder

    def run_around(self) -> str:
        """Return the advice to use the run that this path is a part of (a weights file, a checkpoint); "" if none."""
        around = map(RunFolder, self.path.parents)
        runs = (each for each in around if each.settings.is_file() and each.record.is_file())
        return next((f"Give the folder of the run: {each.path}." for each in runs), "")

    def plan(self, name: str) -> Path:
        """Return the slice plan of a small network: plan.json, or plan-2.json for small-2."""
        return self.path / f"plan{name.removeprefix('small')}.json"

    def read_settings(self, *, all_known: bool = False) -> Settings:
        """Return the settings of the run.

        Args:
            all_known: refuse settings of a newer version, because the run will be resumed with them.

        Raises:
            AdjoinedError: there is no run in this folder, or its settings cannot be read.
        """
        if not self.settings.is_file():
            raise AdjoinedError(
                "there is no run in this folder",
                where=self.path,
                expected="a folder with settings.yaml, written by `adjoined train`",
                fix=self.run_around(),
            )
        return Settings.from_run(self.settings, all_known=all_known)

    def read_record(self) -> dict[str, Any]:
        """Return the record of the run: the entries of `Record`, and those of newer versions.

        Raises:
            AdjoinedError: run.json is missing, damaged, or of another program or version.
        """
        from adjoined.schema import conform

        record = read_versioned(self.record, "the record of a run", format="adjoined-run", version=FORMAT)
        conform(Record, record, where=self.record)
        return record

    def read_result(self) -> RunResult | None:
        """Return the result of the run; None if it is not finished. Errors as in `read_record`."""
        result = self.read_record()["result"]
        return None if result is None else RunResult.from_json(result, self.path)

    def copy_networks(self, target: RunFolder, names: Iterable[str]) -> None:
        """Copy finished networks and the metrics into another, existing folder; links are refused.

        Raises:
            AdjoinedError: a file is missing, is a link, or cannot be written.
        """
        for name in names:
            copy_file(self.weights(name), target.weights(name))
            copy_file(self.description(name), target.description(name))
            if self.plan(name).is_file() and name != BASE:
                copy_file(self.plan(name), target.plan(name))
        if self.metrics.is_file():
            copy_file(self.metrics, target.metrics)

    @property
    def finished(self) -> bool:
        """Whether the run is finished."""
        return self.record.is_file() and self.read_record()["finished"] is not None

    @contextmanager
    def opened(self, settings: Settings, *, resume: bool) -> Iterator[None]:
        """Lock the folder for a new or resumed run with these settings; `begin` turns it into a run folder.

        Raises:
            AdjoinedError: the folder is in use, belongs to another run, holds something else, or is not writable.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        make_folder(self.path, links=True)
        with locked(self.path):
            fresh = not self.settings.is_file()
            try:
                self.check(settings, resume=resume)
                fixed = self.checkpoints, self.tensorboard, self.logits, self.stages
                for folder in (*fixed, *self.stages.glob("*")):
                    refuse_link(folder)
                for folder in (self.path, self.checkpoints):
                    clear_parts(folder)
                yield
            except BaseException as error:
                if fresh and not self.worth_keeping and (isinstance(error, Exception) or not self.settings.is_file()):
                    self._withdraw(made)
                raise

    def _withdraw(self, made: list[Path]) -> None:
        """Remove what a failed start has written, and the folders created for it."""
        with suppress(OSError):  # another run may have started in a parent folder meanwhile
            if self.settings.is_file():
                for each in self._written_first():
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink(missing_ok=True)
            (self.path / LOCK).unlink(missing_ok=True)
            for each in made:
                each.rmdir()

    def _written_first(self) -> list[Path]:
        """Return what a run writes before its first step, and what `adjoined.save` writes; the rest is not its own."""
        own = self.data, self.data_files, self.metrics, self.tensorboard, self.checkpoints, self.stages, self.record
        several = ("plan-[0-9]*.json", *(f"{name}.{kind}" for name in _NETWORKS for kind in ("safetensors", "json")))
        return [*own, self.plan("small"), *(each for one in several for each in self.path.glob(one)), self.settings]

    def finish(self, result: dict[str, Any]) -> None:
        """Record that the run is finished, its result, and the settings that it was trained with."""
        settings = asdict((self._begun or self.read_settings()).without_folders())
        write_json(self.record, {**self.read_record(), "finished": _now(), "result": result, "settings": settings})

    def check(self, settings: Settings, *, resume: bool) -> None:
        """Raise AdjoinedError if a run with these settings can neither start in this folder nor resume there."""
        if not self.settings.is_file():
            refuse_hub(self.path)
            there = self.path.iterdir() if self.path.is_dir() else ()
            foreign = [each.name for each in there if each.name != LOCK and not is_part(each.name)]
            if foreign:
                raise AdjoinedError(
                    "the folder contains other files, not a run",
                    where=self.path,
                    expected="an empty folder or a new one",
                    got=min(foreign),
                    fix="Choose another folder.",
                )
            check_outside(settings.data, self.path)
            return
        if not resume:
            done = self.finished
            raise AdjoinedError(
                "the folder holds a finished run" if done else "the folder holds an unfinished run",
                where=self.path,
                fix="Choose another folder." if done else f"Use --resume {self.path}, or choose another folder.",
            )
        changes(self.read_settings(all_known=True), settings, self.path)

    def begin(self, settings: Settings) -> None:
        """Record the settings and the start of a session; from here on the folder belongs to a run."""
        changed = changes(self.read_settings(all_known=True), settings, self.path) if self.settings.is_file() else {}
        write_text(self.settings, settings.to_yaml())
        self._begun = settings
        if self.record.is_file():
            record = self.read_record()
        else:
            record = {
                "format": "adjoined-run",
                "version": FORMAT,
                "seed": settings.seed,
                "versions": _versions(),
                "git": _git_state(),
                "sittings": [],
                "finished": None,
                "result": None,
            }
        # Arguments may hold bytes that do not decode, such as the name of a folder from an old archive.
        command = [os.fsencode(each).decode(errors="backslashreplace") for each in sys.argv]
        sitting = {"started": _now(), "command": command, "host": platform.node()}
        if changed:
            sitting["changed"] = changed
        if installed := self.other_versions():
            sitting["versions"] = {name: now for name, (_, now) in installed.items()}
        write_json(self.record, {**record, "sittings": [*record["sittings"], sitting]})
        self._sitting = sitting

    def check_still_own(self) -> None:
        """Raise AdjoinedError if, since `begin`, the folder was renamed and another run has started in its place."""
        if self._sitting and self.read_record()["sittings"][-1:] != [self._sitting]:
            raise AdjoinedError("another process has started or resumed a run here", where=self.path, fix=MOVED)

    def other_versions(self) -> dict[str, tuple[str, str]]:
        """Return the packages whose installed version is not the one that the run started with: (then, now).

        Raises:
            AdjoinedError: the record of the run is damaged, or of another program or version.
        """
        if not self.record.is_file():
            return {}
        then, now = self.read_record()["versions"], _versions()
        return {name: (then[name], now.get(name, "none")) for name in then if then[name] != now.get(name, "none")}

    def known_data(self) -> DataRecord | None:
        """Return the record of the images that the run started with; None for a new run, or a copy of one without.

        Raises:
            AdjoinedError: the record is damaged, or of another program or version.
        """
        return DataRecord.read(self.data) if self.data.is_file() else None

    def may_have_begun_with(self, data: ImageData) -> bool:
        """Return whether the run started with these images, or has no record of its images."""
        known = self.known_data()
        return known is None or known.fits(data)

    def check_data(self, data: ImageData) -> None:
        """Raise AdjoinedError, listing the changes, if the run started with other images."""
        known = self.known_data()
        if known is not None:
            known.check(data, self.data_files)

    def keep_data(self, data: ImageData) -> None:
        """Record the images that the run starts with, unless that is recorded already."""
        if not self.data.is_file():
            DataRecord.of(data).write(self.data, self.data_files, data)


def changes(stored: Settings, asked: Settings, where: object) -> dict[str, Any]:
    """Return the changed settings of a resumed run, as name -> {"from": ..., "to": ...}.

    Raises:
        AdjoinedError: settings differ that may not change.

    Example:
        >>> changes(Settings(lr=0.1), Settings(lr=0.01), "runs/digits")
        {'lr': {'from': 0.1, 'to': 0.01}}
    """
    different = stored.differences(asked)
    fixed = [name for name in different if name not in SHOWN_ONLY | REMEDIES]
    if fixed:
        raise AdjoinedError(
            f"the run has different settings ({', '.join(fixed)})",
            where=where,
            expected=f"{fixed[0]} {getattr(stored, fixed[0])}",
            got=getattr(asked, fixed[0]),
            fix="Resume with the settings of the run, or choose another folder.",
        )
    return {name: {"from": getattr(stored, name), "to": getattr(asked, name)} for name in different}


def name_for(name: str, weights: str) -> str:
    """Return the name of an output file for certain weights, so that outputs for other weights are not replaced.

    Example:
        >>> name_for("report.html", "final"), name_for("report.html", "best")
        ('report.html', 'report-best.html')
    """
    path = Path(name)
    return name if weights == "final" else f"{path.stem}-{weights}{path.suffix}"


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **versions(*_PACKAGES)}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return the commit of the repository in the current folder, if there is one.

    It does not say whether files have changed since: to find out, git runs programs that the repository's configuration
    names.
    """
    command = ["git", "rev-parse", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": found.stdout.strip()}
