"""The run folder: what lies where in it, and who may write to it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from adjoined.data import DataRecord, ImageData
from adjoined.errors import AdjoinedError
from adjoined.files import clear_parts, copy_file, make_folder, refuse_link, write_json, write_whole
from adjoined.names import BASE
from adjoined.runs.lock import NAME as LOCK
from adjoined.runs.lock import locked
from adjoined.runs.result import RunResult
from adjoined.runs.resuming import changes
from adjoined.settings import Settings
from adjoined.versions import versions

FORMAT = 1
WEIGHTS = ("last", "best", "final")
"""Which networks of a run can be used."""
_PACKAGES = ("adjoined", "torch", "torchvision", "lightning", "timm", "torchmetrics", "safetensors", "numpy")


class Sitting(TypedDict):
    """One process that worked on a run."""

    started: str
    command: list[str]
    host: str


class Record(TypedDict):
    """What run.json holds."""

    seed: int
    versions: dict[str, str]
    git: dict[str, Any] | None
    sittings: list[Sitting]
    finished: str | None
    result: dict[str, Any] | None


class RunFolder:
    """The files of one run.

    Args:
        path: the folder.

    Attributes:
        settings: settings.yaml, all settings, resolved.
        record: run.json, versions, seed, commands, times.
        data: data.json, which images the run was begun with.
        data_files: data-files.txt.gz, the list of their files.
        metrics: metrics.csv, one row an epoch.
        tensorboard: the folder of TensorBoard's files.
        checkpoints: the folder of last.ckpt, to go on from, and of the networks of the last and the best epoch.
        stages: the folder of the trainings that come before, each a run of its own.
        exports: the folder of exported files.
        worth_keeping: whether a new run has something to go on from; a start that fails before leaves no folder.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.settings = self.path / "settings.yaml"
        self.record = self.path / "run.json"
        self.data = self.path / "data.json"
        self.data_files = self.path / "data-files.txt.gz"
        self.metrics = self.path / "metrics.csv"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.stages = self.path / "stages"
        self.exports = self.path / "export"
        self.last = self.checkpoints / "last.ckpt"
        self.worth_keeping = False

    def weights(self, name: str) -> Path:
        """Return the weights file of a finished network."""
        return self.path / f"{name}.safetensors"

    def description(self, name: str) -> Path:
        """Return the JSON that tells how to build a finished network."""
        return self.path / f"{name}.json"

    def holding(self, weights: str) -> Path:
        """Return the folder that holds the networks as they were at some time.

        Args:
            weights: "final", the finished ones; "last", those of the last checkpoint of a run that was stopped; "best",
                those of the epoch in which the small networks were best in validation.

        Raises:
            AdjoinedError: the run has none of these.
        """
        if weights not in WEIGHTS:
            expected = f"one of {', '.join(WEIGHTS)}"
            raise AdjoinedError("no such weights", where="weights", expected=expected, got=weights)
        if weights == "final" or (weights == "last" and self.finished):
            return self.path
        folder = self.checkpoints / weights
        if not (folder / self.record.name).is_file():
            there = [each for each in WEIGHTS[:-1] if (self.checkpoints / each / self.record.name).is_file()]
            there += ["final"] if self.finished else []
            raise AdjoinedError(
                f"the run has left no networks of its {weights} epoch",
                where=self.path,
                expected=f"weights {' or '.join(there)}" if there else "a run with a finished epoch",
            )
        return folder

    def plan(self, name: str) -> Path:
        """Return the slice plan of a small network: plan.json, or plan-2.json for small-2."""
        return self.path / f"plan{name.removeprefix('small')}.json"

    def read_settings(self, *, all_known: bool = False) -> Settings:
        """Return the settings of the run.

        Args:
            all_known: refuse settings of a newer version, because the run is to go on by them.

        Raises:
            AdjoinedError: there is no run in this folder, or its settings cannot be read.
        """
        if not self.settings.is_file():
            raise AdjoinedError(
                "there is no run in this folder",
                where=self.path,
                expected="a folder with settings.yaml, as `adjoined train` leaves it",
            )
        return Settings.from_run(self.settings, all_known=all_known)

    def read_record(self) -> dict[str, Any]:
        """Return what is known of the run: the entries of `Record`, and those of newer versions.

        Raises:
            AdjoinedError: run.json is missing, damaged, or of another program or version.
        """
        from adjoined.schema import conform, read_versioned

        record = read_versioned(self.record, "the record of a run", format="adjoined-run", version=FORMAT)
        conform(Record, record, where=self.record)
        return record

    def read_result(self) -> RunResult | None:
        """Return the result of the run; None if it is not finished. Errors as in `read_record`."""
        result = self.read_record()["result"]
        return None if result is None else RunResult.from_json(result, self.path)

    def copy_networks(self, target: RunFolder, names: Iterable[str]) -> None:
        """Copy finished networks and the metrics into another folder, which exists; links are refused.

        Args:
            target: where to.
            names: the networks.

        Raises:
            AdjoinedError: a file is missing, a link, or cannot be written.
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
        """Whether the run has come to its end."""
        return self.record.is_file() and self.read_record()["finished"] is not None

    @contextmanager
    def opened(self, settings: Settings, *, resume: bool) -> Iterator[None]:
        """Hold the folder for a run with these settings, new or resumed; `begin` makes it the run's.

        Raises:
            AdjoinedError: the folder is in use, of another run, of something else, or cannot be written to.
        """
        made = [each for each in (self.path, *self.path.parents) if not each.exists()]
        make_folder(self.path, links=True)
        with locked(self.path):
            fresh = not self.settings.is_file()
            try:
                self._check(settings, resume)
                for folder in (self.checkpoints, self.tensorboard, self.stages):
                    refuse_link(folder)
                for folder in (self.path, self.checkpoints):
                    clear_parts(folder)
                yield
            except BaseException as error:
                if fresh and not self.worth_keeping and (isinstance(error, Exception) or not self.settings.is_file()):
                    self._withdraw(made)
                raise

    def _withdraw(self, made: list[Path]) -> None:
        """Take away what a start that failed has written, and the folders that were made for it."""
        with suppress(OSError):  # another run may have come into a parent meanwhile
            if self.settings.is_file():
                for each in self.path.iterdir():
                    shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
            (self.path / LOCK).unlink(missing_ok=True)
            for each in made:
                each.rmdir()

    def finish(self, result: dict[str, Any]) -> None:
        """Record that the run has come to its end, and with what."""
        write_json(self.record, {**self.read_record(), "finished": _now(), "result": result})

    def _check(self, settings: Settings, resume: bool) -> None:
        if not self.settings.is_file():
            foreign = [each.name for each in self.path.iterdir() if each.name != LOCK and each.suffix != ".part"]
            if foreign:
                raise AdjoinedError(
                    "the folder holds something else than a run",
                    where=self.path,
                    expected="an empty folder or a new one",
                    got=min(foreign),
                    fix="Choose another folder.",
                )
            return
        if not resume:
            done = self.finished
            raise AdjoinedError(
                "the folder holds a finished run" if done else "the folder holds a run that has not come to its end",
                where=self.path,
                fix="Choose another folder." if done else f"Go on with --resume {self.path}, or choose another folder.",
            )
        changes(self.read_settings(all_known=True), settings, self.path)

    def begin(self, settings: Settings) -> None:
        """Write down the settings, and that a sitting begins; the folder is a run's from here on."""
        changed = changes(self.read_settings(all_known=True), settings, self.path) if self.settings.is_file() else {}
        text = settings.to_yaml()
        write_whole(self.settings, lambda file: file.write(text.encode()))
        if self.record.is_file():
            record = self.read_record()
        else:
            record = {
                "format": "adjoined-run",
                "version": FORMAT,
                "seed": settings.seed,
                "versions": {"python": platform.python_version(), **versions(*_PACKAGES)},
                "git": _git_state(),
                "sittings": [],
                "finished": None,
                "result": None,
            }
        # Arguments may hold bytes that are not text, such as the name of a folder from an old archive.
        command = [os.fsencode(each).decode(errors="backslashreplace") for each in sys.argv]
        sitting = {"started": _now(), "command": command, "host": platform.node()}
        if changed:
            sitting["changed"] = changed
        write_json(self.record, {**record, "sittings": [*record["sittings"], sitting]})

    def known_data(self) -> DataRecord | None:
        """Return which images the run was begun with; None for a new run, and for those of an earlier version.

        Raises:
            AdjoinedError: the record is damaged, or of another program or version.
        """
        return DataRecord.read(self.data) if self.data.is_file() else None

    def may_have_begun_with(self, data: ImageData) -> bool:
        """Tell whether the run was begun with these images, or does not know (one of an earlier version)."""
        known = self.known_data()
        return known is None or known.fits(data)

    def check_data(self, data: ImageData) -> None:
        """Raise AdjoinedError if the run was begun with other images than these, and say what has changed."""
        known = self.known_data()
        if known is not None:
            known.check(data, self.data_files)

    def keep_data(self, data: ImageData) -> None:
        """Record which images the run is begun with, unless that is known."""
        if not self.data.is_file():
            DataRecord.of(data).write(self.data, self.data_files, data)


def name_for(name: str, weights: str) -> str:
    """Return the name of what is made of a run's networks, so that those of another epoch do not replace it.

    Example:
        >>> name_for("report.html", "final"), name_for("report.html", "best")
        ('report.html', 'report-best.html')
    """
    path = Path(name)
    return name if weights == "final" else f"{path.stem}-{weights}{path.suffix}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the repository that the command was given in, if it was."""
    try:
        commit = _git("rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=True, timeout=10).stdout.strip()
