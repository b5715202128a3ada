"""The contents of a run folder without images: settings, history, figures, benchmark and exports."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from adjoined.benchmark.result import NAME as BENCHMARK
from adjoined.benchmark.result import Benchmark, read_benchmark
from adjoined.errors import AdjoinedError
from adjoined.export.record import ExportedFile, read_exports
from adjoined.files import read_bytes
from adjoined.kinds import MAIN, task_kind
from adjoined.report.figures import Figures
from adjoined.runs import RunFolder, RunResult
from adjoined.runs.folder import name_for
from adjoined.runs.hub import is_hub, located
from adjoined.runs.networks import read_description, settled
from adjoined.runs.unedited import check_unedited
from adjoined.settings import Settings


@dataclass(frozen=True)
class RunStory:
    """A run as recorded in its folder."""

    folder: Path
    place: str
    """As the user named it: a folder, or hub:OWNER/NAME."""
    settings: Settings
    record: dict[str, Any]
    """run.json: versions, seed, commands, times."""
    history: tuple[dict[str, float], ...]
    """Rows of metrics.csv, one per epoch."""
    result: RunResult | None
    """None: the run is unfinished."""
    figures: tuple[Figures, ...] = ()
    """Figures of the finished networks, the base network first."""
    benchmark: Benchmark | None = None
    """benchmark.json, written by `adjoined benchmark`."""
    exports: tuple[ExportedFile, ...] = ()
    """export/export.json, written by `adjoined export`."""
    when: str = ""
    """When in training the networks had their weights, in words; "" for the finished networks."""

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the folder's path, or of the name on a hub; the last one is the run's name."""
        return Path(self.place).parts if is_hub(self.place) else self.folder.resolve().parts

    @property
    def names(self) -> tuple[str, ...]:
        """The networks: base, small; or base, small-1 …; empty before the end of the first epoch."""
        if self.result:
            return tuple(network.name for network in self.result.networks)
        end = f"_{self.main}"
        found = [key.removeprefix("val_").removesuffix(end) for row in self.history[:1] for key in row]
        return tuple(name for name in found if f"val_{name}{end}" in self.history[0])

    @property
    def main(self) -> str:
        """The measure that the networks are compared by (`adjoined.kinds`)."""
        return MAIN[task_kind(self.settings.data)]

    @property
    def labels(self) -> tuple[str, ...]:
        """The networks' names on the page; with their alpha in a family."""
        return tuple(each.name for each in self.figures) or self.names

    @property
    def own_loop(self) -> bool:
        """Whether the networks come from the user's own training loop, which the settings do not describe."""
        return self.result is not None and self.result.own_loop


def read_story(folder: str | Path, *, weights: str = "final") -> RunStory:
    """Read a run folder, without the figures of its networks; nothing is computed and no network is built.

    Args:
        folder: the run folder, of a finished or unfinished run, or hub:OWNER/NAME.
        weights: the networks whose timings and exports to read: "final", "last" or "best".

    Raises:
        AdjoinedError: there is no run, or a file is damaged.
    """
    run = RunFolder(located(folder))
    check_unedited(run)  # the page shows them
    settings, record, result = run.read_settings(), run.read_record(), run.read_result()
    benchmark = run.path / name_for(BENCHMARK, weights)
    return RunStory(
        folder=run.path,
        place=str(folder),
        settings=settings,
        record=record,
        history=tuple(read_history(run.metrics)),
        result=result,
        benchmark=read_benchmark(benchmark) if benchmark.is_file() else None,
        exports=_exports(run, weights),
    )


def _exports(run: RunFolder, weights: str) -> tuple[ExportedFile, ...]:
    """Return the exported files of a run's networks; files of its earlier weights, or of another run, are left out."""
    folder = run.path / name_for(run.exports.name, weights)
    if not read_exports(folder):
        return ()

    def read(place: Path) -> dict[str, str]:
        result = RunFolder(place).read_result()
        names = [each.name for each in result.networks] if result else []
        return {name: read_description(place, name)["sha256"] for name in names}

    return tuple(read_exports(folder, settled(lambda: run.holding(weights), read)))


def read_history(path: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, one per epoch, as numbers; empty if the file does not exist yet.

    Raises:
        AdjoinedError: a row is damaged.
    """
    if not path.is_file():
        return []
    text = read_bytes(path, "the history of a run, as CSV")
    try:
        read = csv.DictReader(io.StringIO(text.decode(), newline=""), strict=True)
        rows = [{name: float(text) for name, text in row.items() if text} for row in read]
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise AdjoinedError(f"the history of the run cannot be read: {error}", where=path) from error
    for row in rows:
        if not row.get("epoch", 0) >= 1 or not all(map(isfinite, row.values())):
            raise AdjoinedError(
                "the history of the run has a row without its epoch, or with a number that is not finite", where=path
            )
    return rows
