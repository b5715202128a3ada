"""`adjoined compare`: several methods under equal settings, and a table and plots of the results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adjoined.commands.flags import parse, typed
from adjoined.commands.options import FromRecipe
from adjoined.commands.train import check_code_is_named, recipe_defaults, say_what_was_lost
from adjoined.errors import AdjoinedError, check_range
from adjoined.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from adjoined.comparison.study import Study

PURPOSE = (
    "Train with several methods under the same settings. Rerun the command to continue a stopped comparison. Settings "
    "work as for `adjoined train`: defaults, recipe, --config FILE.yaml, flags. A method may have its own settings: "
    "--methods standard,dropout:dropout_rate=0.5,adjoint:kl_detach=true"
)
METHODS = ["standard", "scratch", "distillation", "adjoint", "adjoint+"]
SECONDS = 2.0
"""Seconds to spend on each network's latency."""


@dataclass(frozen=True, kw_only=True)
class Comparison(FromRecipe):
    """The comparison."""

    methods: list[str] = field(default_factory=lambda: list(METHODS))
    """Methods to compare, standard first: training costs are given as multiples of standard's."""
    seeds: int = 3
    """Runs per method, with seeds counted up from --seed."""
    out: str | None = None
    """Folder for the runs, tables and plots; none: runs/compare-DATA-MODEL."""
    minutes: float | None = None
    """Stop after this many minutes, at the end of an epoch; the same command continues. None: until all runs are
    finished."""
    only: str | None = None
    """Train one part of the runs, K/N, such as 2/3 for the second of three; the parts may run at the same time, on
    several GPUs or machines, with a shared --out. None: all runs."""
    unequal: bool = False
    """Allow methods to differ in shared settings, such as --methods standard:lr=0.05."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        check_range(self.seeds >= 1, "--seeds", "at least 1", self.seeds)
        check_range(self.minutes is None or self.minutes > 0, "--minutes", "a number above 0", self.minutes)
        self.part  # noqa: B018 - refuses what is not a part

    @property
    def part(self) -> tuple[int, int] | None:
        """K and N of `only`; None: all runs."""
        if self.only is None:
            return None
        number, _, parts = self.only.partition("/")
        if number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts):
            return int(number), int(parts)
        expected = "K/N with K from 1 to N, such as 1/3"
        raise AdjoinedError("not a part of the runs", where="--only", expected=expected, got=self.only)


def main(argv: Sequence[str]) -> None:
    """Train the unfinished runs and show the table."""
    given = typed(argv, Comparison, Settings)
    asked, settings = parse(
        "compare", argv, Comparison, Settings, purpose=PURPOSE, defaults=recipe_defaults(given), config=True
    )
    check_code_is_named(given, settings)
    if "method" in given:
        raise AdjoinedError("a comparison needs several methods", where="--method", fix="Name them with --methods.")

    from rich.console import Console

    from adjoined.comparison.study import Study
    from adjoined.comparison.variants import read_variants
    from adjoined.methods import METHODS as known_methods
    from adjoined.runs.hub import out_path
    from adjoined.training.output import unstoppable

    variants = read_variants(asked.methods, settings, unequal=asked.unequal)
    folder = asked.out or "runs/compare-" + re.sub(r"[^\w.]+", "-", f"{settings.data}-{settings.model}")
    study = Study(out_path(folder, "a comparison"), settings, variants, asked.seeds, asked.recipe)
    study.check(unequal=asked.unequal)
    for variant in variants:  # a missing library is reported now, not after hours of other runs
        known_methods[variant.settings.method](variant.settings).check()
    console = Console()
    with unstoppable() as streams:
        failures = study.train(console, minutes=asked.minutes, part=asked.part)
        done = [study.result(*run) is not None for run in study.runs(asked.part)]
        if not all(done) and not failures:
            console.print(f"\n{sum(done)} of {len(done)} runs are done; rerun the command to continue", highlight=False)
        if asked.part is not None and all(done):
            console.print(f"\nall runs of part {asked.only} are done; without --only the command shows the table")
        damaged = _conclude(study, console) if any(done) and asked.part is None else []
        for error in damaged:
            console.print(f"left out: {error}", highlight=False, soft_wrap=True, markup=False)
    say_what_was_lost(streams, f"the tables are in {study.folder}")
    if failures:
        variant, number, error = failures[0]
        summary = f"{len(failures)} of {len(done)} runs failed and are missing from the table"
        raise AdjoinedError(
            f"{summary}; the first: {str(error).rstrip('.')}",
            where=f"{variant.label}, seed {variant.run_settings(number).seed}",
            fix="Rerun the command to try them again.",
        )
    if damaged:
        raise AdjoinedError(
            f"{len(damaged)} of the networks could not be loaded; see above",
            where=study.folder,
            fix="Restore the files, or delete those runs and rerun the command to train them again.",
        )


def _conclude(study: Study, console: Console) -> list[AdjoinedError]:
    """Show and save the table; return the errors about networks missing from it."""
    from adjoined.comparison.plots import MISSING, draw_plots
    from adjoined.comparison.rows import comparison_table, gather, write_tables
    from adjoined.report.console import show

    rows, damaged = gather(study, seconds=SECONDS)
    table = comparison_table(study, rows)
    write_tables(study, rows, table)
    files = [study.folder / name for name in ("table.md", "table.csv", "runs.csv")]
    if not MISSING:
        files += draw_plots(study, rows)
    console.print()
    lines = [*map(str, files), *([MISSING] if MISSING else [])]
    if unnamed := study.unnamed():
        lines.append(f"not in the table, because this command does not name them: {', '.join(unnamed)}")
    show(table, "\n".join(lines))
    return damaged
