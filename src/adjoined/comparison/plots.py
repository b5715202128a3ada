"""Plots of a comparison, by matplotlib: accuracy against size, MACs and latency, and learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from adjoined.atomic import write_whole
from adjoined.comparison.rows import Row, measure_of
from adjoined.comparison.study import Study
from adjoined.kinds import NAMES
from adjoined.report import units
from adjoined.report.page.story import read_history
from adjoined.runs import RunFolder

MISSING = "" if find_spec("matplotlib") else "No plots: pip install 'adjoined[plots]', and rerun the command."
"""The note shown if matplotlib is not installed."""

AXES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "parameters": ("nonzero parameters", lambda row: row.parameters),
    "macs": ("multiply-adds for one image", lambda row: row.macs),
    "latency": ("latency at batch 1, ms", lambda row: row.latency.median_ms if row.latency else None),
}


def draw_plots(study: Study, rows: Sequence[Row]) -> list[Path]:
    """Write accuracy-parameters.png, accuracy-macs.png, accuracy-latency.png and curves.png into the study's folder."""
    files = [
        _write(study, f"accuracy-{name}.png", _accuracy(rows, NAMES[measure_of(study)], *axis))
        for name, axis in AXES.items()
    ]
    return [*files, _write(study, "curves.png", _curves(study))]


def _accuracy(rows: Sequence[Row], measure: str, label: str, value: Callable[[Row], float | None]) -> Any:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, (axis,) = _figure(1)
    for place, row in enumerate(rows):
        if (cost := value(row)) is not None and row.main is not None:
            error = None if row.main.std is None else 100 * row.main.std
            style = {**_style(place), "linestyle": "none", "label": row.label}
            axis.errorbar(cost, 100 * row.main.mean, yerr=error, capsize=3, **style)
    axis.set(xscale="log", xlabel=label, ylabel=f"{measure}, %")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}" if cost < 1000 else units.count(cost)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    if axis.has_data():
        axis.legend(fontsize=7)
    return figure


def _style(place: int) -> dict[str, Any]:
    """Return the line style of the contender at this index: ten colours, then other marks and lines."""
    marker, line = (("o", "-"), ("s", "--"), ("^", ":"))[place // 10 % 3]
    return {"color": f"C{place % 10}", "marker": marker, "linestyle": line}


def _curves(study: Study) -> Any:
    figure, axes = _figure(2)
    measure = measure_of(study)
    for place, variant in enumerate(study.variants):
        folders = [study.path(variant, n) for n in range(study.seeds) if study.result(variant, n)]
        runs = [read_history(RunFolder(each).metrics) for each in folders]
        epochs = min(map(len, runs), default=0)
        known = set.intersection(*(set(row) for run in runs for row in run[:epochs])) if epochs else set()
        for axis, base in zip(axes, (True, False), strict=True):
            names = sorted(each for each in known if each.startswith("val_") and each.endswith(f"_{measure}"))
            for name in [each for each in names if each.startswith("val_base") == base]:
                means = [100 * mean(run[epoch][name] for run in runs) for epoch in range(epochs)]
                network = name.removeprefix("val_").removesuffix(f"_{measure}")
                network = "" if network in ("base", "small") else f" {network}"
                style = {**_style(place), "linewidth": 1, "markersize": 2}
                axis.plot(range(1, epochs + 1), means, label=f"{variant.label}{network}", **style)
    for axis, title in zip(axes, ("base network", "smaller network"), strict=True):
        axis.set(title=title, xlabel="epoch of the final training stage", ylabel=f"{NAMES[measure]}, %")
        if axis.has_data():
            axis.legend(fontsize=6)
    return figure


def _figure(panels: int) -> tuple[Any, Sequence[Any]]:
    from matplotlib.figure import Figure  # not pyplot, which would look for a display

    figure = Figure(figsize=(6 * panels, 4.5), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for each in axes:
        each.grid(alpha=0.3)
    return figure, list(axes)


def _write(study: Study, name: str, figure: Any) -> Path:
    path = study.folder / name
    write_whole(path, lambda file: figure.savefig(file, format="png", dpi=150))
    return path
