"""The results of a run: the figures of its networks, as a table and as files in the run folder."""

from __future__ import annotations

import json

from adjoined.atomic import write_text
from adjoined.benchmark.turns import latency
from adjoined.printable import counted
from adjoined.report.figures import Figures, result_table
from adjoined.report.result import figures_from, keep_figures, kept_figures
from adjoined.report.table import Table
from adjoined.runs.finished import FinishedRun

MOST_LAG = 0.01
"""Differences of the main measure, with moving averages and with measured statistics, that need no note."""


def measure(run: FinishedRun, *, seconds: float = 2.0) -> list[Figures]:
    """Return sizes, accuracies and latency of all networks, the base network first.

    The run measured the accuracies, on the saved files; the latency at batch 1 is measured now, on the CPU, in
    interleaved calls.
    """
    modules = {network.name: network.module for network in run.networks}
    return figures_from(run, latency(modules, run.example(), seconds=seconds))


def kept_or_measured(run: FinishedRun) -> list[Figures]:
    """Return the recorded figures of a run; measure them if the latency is missing, or if they are of other networks.

    Training measures no latency.
    """
    kept = kept_figures(run.folder)
    own = [each.name for each in kept] == [network.label for network in run.networks]
    return kept if own and all(each.latency for each in kept) else measure(run)


def outcome_table(run: FinishedRun, figures: list[Figures]) -> Table:
    """Return the result table of a run."""
    result = run.result
    which = "the moving average of the weights" if result.weights == "ema" else "the weights"
    images = f"{counted(result.images, 'image')} of {run.info.name} ({result.val_name})"
    notes = [f"Accuracies: {images}, with {which} {run.when}."]
    for network in result.networks:
        if network.nonzero is not None:
            left = f"{network.nonzero} of {network.parameters} parameters are nonzero"
            notes.append(f"{network.name}: {left}; zeros are stored and computed like any other number.")
    notes += run.caveats
    if result.statistics:
        notes.append(f"Running statistics: measured on {result.statistics} training images after the last step.")
    lagging = [
        f"{network.name} {100 * network.running:.1f} %"
        for network in result.networks
        if network.running is not None and network.main is not None and abs(network.main - network.running) > MOST_LAG
    ]
    if lagging:
        notes.append(f"With the moving averages of training, which lag behind the weights: {', '.join(lagging)}.")
    if len(result.stages) > 1:
        each = ", ".join(f"{stage.name} {stage.epochs} in {stage.seconds:.0f} s" for stage in result.stages)
        notes.append(f"Epochs by stage: {each}.")
    took = f": {counted(result.epochs, 'epoch')} in {result.seconds:.0f} s"
    title = f"{run.folder}{'' if result.own_loop else took}"
    return result_table(figures[0], figures[1:], title=title, notes=notes)


def paths(run: FinishedRun) -> str:
    """Return the paths of the networks, and the line that loads one."""
    width = max(len(network.name) for network in run.networks)
    lines = [f"{network.name.ljust(width)}  {network.result.path}" for network in run.networks]
    return "\n".join([*lines, "", load_line(run.folder, run.networks[-1].name, run.code)])


def load_line(place: object, name: str, code: str | None) -> str:
    r"""Return the line that loads a network.

    Example:
        >>> print(load_line("runs/mine", "small", "net.py:make"))
        import adjoined; model = adjoined.load("runs/mine", "small", model='net.py:make')
        >>> print(load_line('runs/"mine"', "small", None))
        import adjoined; model = adjoined.load("runs/\"mine\"", "small")
    """
    quoted = json.dumps(str(place), ensure_ascii=False)  # of the same form in Python: quotes are escaped
    handed_in = f", model={code!r}" if code else ""
    return f'import adjoined; model = adjoined.load({quoted}, "{name}"{handed_in})'


def keep(run: FinishedRun, figures: list[Figures], table: Table) -> None:
    """Write result.json, now with the latency, and result.md into the run folder, each atomically."""
    keep_figures(run.result, figures, run.folder)
    write_text(run.folder / "result.md", f"{table.markdown()}\n```\n{paths(run)}\n```\n")
