"""When does joint training help the base network? Ten digits of each class, and the settings that may matter.

    python benchmarks/few_digits.py                # everything; rerun the command to continue
    python benchmarks/few_digits.py --seeds 2 --only epochs-10

100 training images, 359 for evaluation, no download: small enough to vary one setting at a time over several seeds.
Every cell is an `adjoined compare`, one after another; the table shows the gain of each method in the base network's
accuracy over `standard`, and in the small network's over `adjoint`, seed by seed.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev

from adjoined.atomic import write_whole
from adjoined.cli import main as adjoined

METHODS = [
    *("standard", "dropout:dropout_rate=0.3", "dropout:dropout_rate=0.5"),
    *("adjoint", "adjoint:alpha=2", "adjoint:alpha=8"),
    *("adjoint:kl_schedule=constant", "adjoint:kl_detach=true", "adjoint+"),
]
CELLS = {
    "epochs-10": (1.0, 10),
    "epochs-40": (1.0, 40),
    "epochs-160": (1.0, 160),
    "width-0.5": (0.5, 40),
    "width-2": (2.0, 40),
}
"""Name of a cell -> factor on the channels of the base network, epochs."""

RESULTS = Path(__file__).parent / "results" / "few_digits"

Accuracies = dict[tuple[str, str], dict[int, float]]
"""(method, network) -> seed -> top-1 accuracy, 0 to 1."""


def argv(cell: str, out: Path, seeds: int) -> list[str]:
    """Return the arguments of the comparison of a cell."""
    width, epochs = CELLS[cell]
    common = ["--recipe", "digits", "--limit", "10", "--batch-size", "32", "--alpha", "4"]
    own = ["--epochs", str(epochs), "--model-options", f"{{width: {width}}}"]
    return ["compare", *common, *own, "--methods", ",".join(METHODS), "--seeds", str(seeds), "--out", str(out / cell)]


def read(path: Path) -> Accuracies:
    """Return the accuracies of a comparison from its runs.csv."""
    found: Accuracies = defaultdict(dict)
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found[row["method"], row["network"]][int(row["seed"])] = float(row["top1"])
    return found


def gain(found: Accuracies, method: str, network: str, than: str) -> str:
    """Return the gain of a method in points: the mean difference over the seeds ± its standard error.

    Example:
        >>> runs = {("a", "base"): {0: 0.90, 1: 0.92}, ("b", "base"): {0: 0.91, 1: 0.95}}
        >>> gain(runs, "b", "base", "a")
        '+2.0 ± 1.0'
    """
    ours, theirs = found.get((method, network), {}), found.get((than, network), {})
    points = [100 * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()]
    if not points or method == than:
        return "–"
    error = f" ± {stdev(points) / len(points) ** 0.5:.1f}" if len(points) > 1 else ""
    return f"{mean(points):+.1f}{error}"


def table(cells: dict[str, Accuracies], network: str, than: str) -> str:
    """Return the gain of every method in a network's accuracy as Markdown, a column for each cell."""
    methods = [each for each in METHODS if any((each, network) in found for found in cells.values())]
    rows: list[Iterable[str]] = [["", *cells], [":--", *["--:"] * len(cells)]]
    level = [f"{100 * mean(found[than, network].values()):.1f} %" for found in cells.values()]
    rows.append([f"`{than}`", *level])
    rows += [[f"`{m}`", *(gain(found, m, network, than) for found in cells.values())] for m in methods if m != than]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main(asked: Sequence[str] | None = None) -> None:
    """Do the runs that are missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/few-digits"), help="folder for all runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the tables and the CSV of every run")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender")
    parser.add_argument("--only", choices=list(CELLS), action="append", help="this cell; may be repeated")
    options = parser.parse_args(asked)
    cells: dict[str, Accuracies] = {}
    options.results.mkdir(parents=True, exist_ok=True)
    for cell in options.only or CELLS:
        if code := adjoined(argv(cell, options.out, options.seeds)):
            raise SystemExit(code)
        runs = (options.out / cell / "runs.csv").read_bytes()
        write_whole(options.results / f"{cell}.csv", lambda file, runs=runs: file.write(runs))
        cells[cell] = read(options.results / f"{cell}.csv")
        lines = ["# Ten digits of each class: points of top-1 added to the base network", ""]
        lines += [table(cells, "base", "standard"), "", "# … and to the small network", ""]
        lines += [table(cells, "small", "adjoint"), ""]
        write_whole(options.results / "table.md", lambda file, lines=lines: file.write("\n".join(lines).encode()))


if __name__ == "__main__":
    main()
