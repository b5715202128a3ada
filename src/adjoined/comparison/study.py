"""The runs of a comparison, one after another; a restarted comparison continues where it stopped."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.comparison.variants import OWN, Variant
from adjoined.data import DataRecord, open_data
from adjoined.data.folders import check_outside
from adjoined.errors import AdjoinedError
from adjoined.files import is_part, make_folder, refuse_link
from adjoined.json_files import read_versioned, write_json
from adjoined.plain import entry
from adjoined.report.console import say
from adjoined.runs import RunFolder, RunResult
from adjoined.runs.lock import NAME as LOCK
from adjoined.runs.lock import locked
from adjoined.settings import PLACE_ONLY, Settings

if TYPE_CHECKING:
    from rich.console import Console

Run = tuple[Variant, int]
"""A contender, and the number of its run."""
Failure = tuple[Variant, int, AdjoinedError]
RECORD = "comparison.json"
FORMAT, VERSION = "adjoined-comparison", 1


@dataclass(frozen=True)
class Study:
    """A comparison in a folder: its runs and their progress."""

    folder: Path
    settings: Settings
    """The settings that all contenders share."""
    variants: tuple[Variant, ...]
    seeds: int
    recipe: str | None = None

    def path(self, variant: Variant, number: int) -> Path:
        """Return the folder of a run; runs are numbered from 0."""
        return self.folder / "runs" / variant.folder(number)

    def runs(self, part: tuple[int, int] | None = None) -> list[Run]:
        """Return the runs in order: every contender with the first seed, then with the second …

        Args:
            part: (K, N) for the K-th of N parts of consecutive runs, K counted from 1; with as many parts as seeds,
                each has the runs of a seed. None: all.
        """
        runs = [(variant, number) for number in range(self.seeds) for variant in self.variants]
        number, parts = part or (1, 1)
        return runs[(number - 1) * len(runs) // parts : number * len(runs) // parts]

    def result(self, variant: Variant, number: int) -> RunResult | None:
        """Return the result of a run, or None if it is unfinished or its record is damaged."""
        run = RunFolder(self.path(variant, number))
        with suppress(AdjoinedError):  # a damaged run does not concern the others; `train` reports it
            return run.read_result() if run.finished else None
        return None

    def unnamed(self) -> list[str]:
        """Return the folders of runs of an earlier command, whose methods or seeds this one does not name."""
        own = {self.path(*run).name for run in self.runs()}
        there = (self.folder / "runs").glob("*/settings.yaml")
        return sorted({each.parent.name for each in there} - own)

    def check(self, *, unequal: bool) -> None:
        """Check that the folder's existing contents fit this comparison, before anything is done.

        Raises:
            AdjoinedError: the folder holds something else, or runs under other settings or on other images.
        """
        record = self.folder / RECORD
        there = [each.name for each in self.folder.iterdir()] if self.folder.is_dir() else []
        if not record.is_file():  # another part of the comparison may be about to write it
            if any(name != LOCK and not is_part(name) for name in there):
                raise AdjoinedError(
                    "the folder contains other files, not a comparison", where=self.folder, fix="Choose another --out."
                )
            check_outside(self.settings.data, self.folder)
            return
        found = read_versioned(
            record, "the record of a comparison", format=FORMAT, version=VERSION, fix="Choose another --out."
        )
        before = Settings.from_dict(entry(found, "settings", dict, record), where=record)
        self._refuse(before.differences(self.settings), before, self.settings, record, unequal)
        for variant, number in self.runs():
            run = RunFolder(self.path(variant, number))
            if run.settings.is_file():
                try:
                    stored, asked = run.read_settings(), variant.run_settings(number)
                except AdjoinedError:
                    continue  # damaged: `train` reports it and continues with the others
                self._refuse(stored.differences(asked), stored, asked, run.path, unequal=False)
        self._refuse_other_images()

    def _refuse_other_images(self) -> None:
        """Raise AdjoinedError if runs with the same choice of images had others, or the remaining ones would."""
        first: dict[tuple[object, ...], tuple[RunFolder, DataRecord, Settings]] = {}
        for variant, number in self.runs():
            run, asked = RunFolder(self.path(variant, number)), variant.run_settings(number)
            known = None
            with suppress(AdjoinedError):  # damaged: `train` reports it
                known = run.known_data()
            if known is None:
                continue
            choice = asked.data, asked.limit, asked.val_fraction, asked.split_seed, asked.bad_images
            other, theirs, _ = first.setdefault(choice, (run, known, asked))
            if not known.same_images(theirs):
                raise AdjoinedError(
                    "the runs of this comparison had different images",
                    where=run.path,
                    expected=f"those of {other.path.name}: {theirs.in_words()}",
                    got=known.in_words(),
                    fix="Delete the runs on the wrong images and rerun the command, or choose another --out.",
                )
        if all(self.result(*each) is not None for each in self.runs()):
            return  # the table needs no images
        for run, known, asked in first.values():
            try:
                images = open_data(asked.data_settings(), skipped=known.skipped)
            except AdjoinedError:
                continue  # `train` reports it
            try:
                known.check(images, run.data_files)
            except AdjoinedError as error:
                fix = "Restore them, or choose another --out."
                raise error.but(where=f"{run.path}, {error.where}", fix=fix) from error

    def _refuse(self, names: list[str], before: Settings, now: Settings, where: Path, unequal: bool) -> None:
        if names and not unequal:
            raise AdjoinedError(
                f"these runs used different settings ({', '.join(names)})",
                where=where,
                expected=f"{names[0]} {getattr(before, names[0])}",
                got=getattr(now, names[0]),
                fix="Compare under the same settings, or choose another --out.",
            )

    def train(
        self, console: Console, *, minutes: float | None = None, part: tuple[int, int] | None = None
    ) -> list[Failure]:
        """Do all unfinished runs; a started run is resumed, and one that fails is skipped.

        Args:
            console: where to show progress.
            minutes: time for this piece: a run stops at the end of an epoch, and the next call continues. None: all.
            part: do only these runs, while other processes do the rest, as in `runs`.

        Returns:
            The failed runs, and why they failed; if one method diverges, the others may still succeed.

        Raises:
            AdjoinedError: a run failed before any other finished, so the others would fail too; or another process
                works in the folder.
            KeyboardInterrupt: it was stopped; the message says how to continue.
        """
        from adjoined.training import train
        from adjoined.training.deadline import OutOfTime

        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        runs, known = self.runs(part), [self.path(*each) for each in self.runs()]
        with self.opened(alone=part is None):
            failures: list[Failure] = []
            for variant, number in runs:
                if deadline is not None and time.monotonic() > deadline:
                    break
                if self.result(variant, number) is None:
                    say(console, self.outlook((variant, number)))
                    settings, folder = variant.run_settings(number), self.path(variant, number)
                    try:
                        train(settings, folder, resume=True, console=console, known=known, deadline=deadline)
                    except OutOfTime:
                        break
                    except KeyboardInterrupt:
                        raise KeyboardInterrupt("stopped; rerun the command to continue") from None
                    except AdjoinedError as error:
                        if all(self.result(*each) is None for each in runs):
                            raise
                        failures.append((variant, number, error))
                        say(console, f"failed: {error}")
        return failures

    @contextmanager
    def opened(self, *, alone: bool = True) -> Iterator[None]:
        """Record in the folder what is compared, and lock it for this process unless others do other parts.

        A run locks its own folder in any case.

        Raises:
            AdjoinedError: it cannot be written to, a folder in it is a link, or another process works in it.
        """
        make_folder(self.folder, links=True)
        for place in (self.folder / "runs", *(self.path(*run) for run in self.runs())):
            refuse_link(place)
        with locked(self.folder) if alone else nullcontext():
            summary = {"methods": [each.label for each in self.variants], "seeds": self.seeds, "recipe": self.recipe}
            write_json(
                self.folder / RECORD,
                {"format": FORMAT, "version": VERSION, **summary, "settings": asdict(self.settings)},
            )
            yield

    def outlook(self, run: Run) -> str:
        """Return a progress line for a run that starts: what is done, what remains, and an estimate of the time."""
        runs, (variant, number) = self.runs(), run
        results = [(each, result) for each in runs if (result := self.result(*each)) is not None]
        done = [each for each, _ in results]
        left = [each for each in runs if each not in done]
        to_come = [each for each in left if each != run]
        parts = [f"run {len(done) + 1} of {len(runs)}: {variant.label}, seed {variant.run_settings(number).seed}"]
        if done:
            seconds = sum(_expected(each, results) for each, _ in left)
            parts.append(f"about {timedelta(seconds=round(seconds))} left")
        parts += [f"done: {_names(done)}"] if done else []
        parts += [f"remaining: {_names(to_come)}"] if to_come else []
        return "\n" + "; ".join(parts)


def _expected(variant: Variant, done: Sequence[tuple[Run, RunResult]]) -> float:
    """Estimate the seconds that a run takes from the same contender's runs, or else from all runs."""
    # Only its own training: earlier stages are mostly copied from a run that exists already.
    seconds = [(each.label, result.stages[-1].seconds) for (each, _), result in done]
    same = [time for label, time in seconds if label == variant.label] or [time for _, time in seconds]
    return sum(same) / max(len(same), 1)


def _names(runs: Sequence[Run]) -> str:
    counts = Counter(variant.label for variant, _ in runs)
    return ", ".join(label if count == 1 else f"{label} ({count})" for label, count in counts.items())


def differing(variants: Sequence[Variant]) -> list[str]:
    """Return the settings, other than their own, in which contenders differ: the table must say so."""
    first, *others = variants
    found = {name for each in others for name in first.settings.differences(each.settings)}
    return sorted(found - OWN - PLACE_ONLY - {"method"})
