"""The results of a comparison: one row per network of each run, and their means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from statistics import mean, stdev
from typing import Any, NamedTuple

from adjoined.atomic import write_text
from adjoined.benchmark.turns import Latency, latency
from adjoined.comparison.study import Study, differing
from adjoined.comparison.variants import Variant, train_command
from adjoined.errors import AdjoinedError
from adjoined.kinds import MAIN, MEASURES, heading, short_name, task_kind
from adjoined.printable import counted
from adjoined.report import units
from adjoined.report.figures import noise_note
from adjoined.report.table import Table
from adjoined.runs import RunResult
from adjoined.runs.finished import FinishedRun, open_run
from adjoined.slicing import measure_cost
from adjoined.training.history import as_csv

BASELINES_LAST = ("adjoint", "adjoint+")
"""Methods listed last in a table."""


@dataclass(frozen=True)
class Mean:
    """Mean and sample standard deviation over n runs; the deviation of one run is None."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """Summarise values; None if there are none."""
        return cls(mean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None

    def __str__(self) -> str:
        """The mean and deviation in percent.

        Example:
            >>> str(Mean.of([0.991, 0.993])), str(Mean.of([0.5]))
            ('99.20 ± 0.14', '50.00')
        """
        spread = "" if self.std is None else f" ± {100 * self.std:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Row:
    """A contender's base network and one of its small networks, over all seeds; None means not available."""

    label: str
    network: str
    """The network whose sizes, MACs and latency are given: the small one, or base if there is no other."""
    base: Mean | None
    """Main measure of the base network, such as its top-1 accuracy."""
    small: Mean | None
    """Main measure of the small network."""
    parameters: int
    """Nonzero parameters of `network`."""
    macs: int
    """Multiply-adds of `network` for one image, including those with zero weights."""
    training_macs: float | None
    """Multiply-adds of training, over all stages, as a multiple of the standard method's."""
    training_seconds: float | None
    """Time of training, over all stages, as a multiple of the standard method's."""
    latency: Latency | None
    speedup: float | None
    """Latency of the base network divided by that of `network`; None if no contender trains the base alone."""
    command: str

    @property
    def main(self) -> Mean | None:
        """Main measure of `network`."""
        return self.small or self.base


class _Contender(NamedTuple):
    """A contender with a finished run."""

    variant: Variant
    results: list[RunResult]
    """Of all its finished runs."""
    run: FinishedRun
    """One of them, with its networks."""


def gather(study: Study, *, seconds: float) -> tuple[tuple[Row, ...], list[AdjoinedError]]:
    """Return the rows of all contenders with at least one finished run, baselines first.

    The latency of all networks of one seed is measured here, on the CPU at batch 1, in interleaved calls.

    Returns:
        The rows, and errors about networks that could not be loaded: those of another seed replace them, and a
        contender without any is left out.
    """
    contenders, damaged = _contenders(study)
    if not contenders:
        return (), damaged
    networks = {
        f"{each.variant.label} {network.name}": network.module for each in contenders for network in each.run.networks
    }
    times = latency(networks, contenders[0].run.example(), seconds=seconds * len(networks))
    standard = next((each.results for each in contenders if each.variant.settings.method == "standard"), None)
    rows = [row for each in contenders for row in _rows_of(each, times, standard, study.recipe)]
    base = next((row.latency for row in rows if row.network == "base" and row.latency), None)
    if base is None:
        return tuple(rows), damaged
    speedups = [base.median_ms / row.latency.median_ms if row.latency else None for row in rows]
    return tuple(replace(row, speedup=each) for row, each in zip(rows, speedups, strict=True)), damaged


def _contenders(study: Study) -> tuple[list[_Contender], list[AdjoinedError]]:
    """Return the contenders with networks that can be loaded, and the errors about others."""
    found: list[_Contender] = []
    damaged: list[AdjoinedError] = []
    for variant in sorted(study.variants, key=lambda each: each.settings.method in BASELINES_LAST):
        results = [study.result(variant, number) for number in range(study.seeds)]
        finished = [each for each in results if each is not None]
        for result in finished:
            try:
                found.append(_Contender(variant, finished, open_run(result.folder, study.settings.code)))
                break
            except AdjoinedError as error:
                damaged.append(error)
    return found, damaged


def _rows_of(
    contender: _Contender, times: Mapping[str, Latency], standard: Sequence[RunResult] | None, recipe: str | None
) -> Iterator[Row]:
    """Yield a row for each small network of a contender, or for its base if it has none; without the speed-up."""
    variant, results, run = contender
    example, several = run.example(), len(run.networks) > 2
    for network in [each for each in run.networks if each.name != "base"] or run.networks:
        cost, nonzero = measure_cost(network.module, example), network.result.nonzero
        yield Row(
            label=f"{variant.label} {network.name}" if several else variant.label,
            network=network.name,
            base=_main(results, "base"),
            small=None if network.name == "base" else _main(results, network.name),
            parameters=cost.parameters if nonzero is None else nonzero,
            macs=cost.macs,
            training_macs=_relative(results, standard, "macs"),
            training_seconds=_relative(results, standard, "seconds"),
            latency=times[f"{variant.label} {network.name}"],
            speedup=None,
            command=train_command(variant.settings, recipe),
        )


def _main(results: Sequence[RunResult], name: str) -> Mean | None:
    mains = [each.main for result in results for each in result.networks if each.name == name]
    return Mean.of([main for main in mains if main is not None])


def measure_of(study: Study) -> str:
    """Return the measure that the networks of a comparison are compared by (`adjoined.kinds`)."""
    return MAIN[task_kind(study.settings.data)]


def _relative(results: Sequence[RunResult], standard: Sequence[RunResult] | None, what: str) -> float | None:
    ours = [getattr(each, what) for each in results]
    theirs = [getattr(each, what) for each in standard or ()]
    if not theirs or None in ours or None in theirs:
        return None
    return mean(ours) / mean(theirs)


def comparison_table(study: Study, rows: Sequence[Row]) -> Table:
    """Return the table: one row per contender (per small network of a family)."""
    measure = measure_of(study)
    short = short_name(measure)
    columns = ("method", "n", f"base {short}", f"small {short}", "parameters", "MACs", "cost", "time", "speed-up")
    base = next((row.latency for row in rows if row.network == "base" and row.latency), None)
    noisy = [row.label for row in rows if row.latency and row.latency.is_noisy]
    doubt = {row.label: units.DOUBT for row in rows if row.label in noisy or (base and base.is_noisy)}
    cells = tuple(
        (
            row.label,
            str(row.main.n if row.main else 0),
            str(row.base or units.ABSENT),
            str(row.small or units.ABSENT),
            units.count(row.parameters),
            units.count(row.macs),
            _times(row.training_macs),
            _times(row.training_seconds),
            _times(row.speedup) + (doubt.get(row.label, "") if row.speedup else ""),
        )
        for row in rows
    )
    settings = study.settings
    seeds = f"{counted(study.seeds, 'seed')} from {settings.seed}"
    title = f"{settings.model} on {settings.data}: {counted(settings.epochs, 'epoch')}, {seeds}"
    return Table(columns, cells, title, tuple(_notes(study, rows, noisy if base else [])))


def _notes(study: Study, rows: Sequence[Row], noisy: Sequence[str]) -> list[str]:
    """Return what the columns mean, how latencies were measured, and what limits the comparison."""
    notes = [
        f"{heading(measure_of(study))}, %: mean ± sample standard deviation over n seeds, after the last epoch. "
        "Parameters (nonzero), MACs of one image and speed-up are those of the small network, or of the base if it is "
        "alone.",
        "Cost and time: MACs and seconds of training, over all stages, in multiples of `standard`; a stage that was "
        "copied from a run of this comparison counts as if it had been trained.",
    ]
    measured = next((row.latency for row in rows if row.latency), None)
    if measured is not None:
        notes.append(
            f"Speed-up: latency at batch 1 of the base network, divided by the network's; measured in "
            f"interleaved calls on {measured.device} with {counted(measured.threads, 'thread')}, in eager PyTorch."
        )
        if noisy:
            notes.append(noise_note(noisy))
    if names := differing(study.variants):
        notes.append(f"The methods have different settings: {', '.join(names)}.")
    return notes


def write_tables(study: Study, rows: Sequence[Row], table: Table) -> None:
    """Write table.md, table.csv (one line per row) and runs.csv (one line per network of each run)."""
    commands = "\n".join(dict.fromkeys(row.command for row in rows))
    text = f"{table.markdown()}\nCommands for the first seed (`--seed` sets the others):\n\n```sh\n{commands}\n```\n"
    write_text(study.folder / "table.md", text)
    write_text(study.folder / "table.csv", as_csv([_flat(row, measure_of(study)) for row in rows]))
    measures = (*MEASURES[task_kind(study.settings.data)], "loss", "parameters", "nonzero")
    lines = []
    for variant, number in study.runs():
        if (result := study.result(variant, number)) is None:
            continue
        settings = variant.run_settings(number)
        of_run = {"epochs": result.epochs, "training_macs": result.macs, "training_seconds": result.seconds}
        of_run["command"] = train_command(settings, study.recipe)
        for network in result.networks:
            own = {name: getattr(network, name) for name in measures}
            place = {"method": variant.label, "seed": settings.seed, "network": network.name}
            lines.append({**place, **own, **of_run})
    write_text(study.folder / "runs.csv", as_csv(lines))


def _flat(row: Row, measure: str) -> dict[str, Any]:
    cells: dict[str, Any] = {}
    for field in fields(row):
        value = getattr(row, field.name)
        if field.name in ("base", "small"):
            for what in ("mean", "std", "n"):
                cells[f"{field.name}_{measure}_{what}"] = None if value is None else getattr(value, what)
        elif field.name == "latency":
            cells["latency_ms"] = None if value is None else value.median_ms
        else:
            cells[field.name] = value
    return cells


def _times(ratio: float | None) -> str:
    return units.ABSENT if ratio is None else f"{ratio:.2f}x"
