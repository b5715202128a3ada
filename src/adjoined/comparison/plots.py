"""Plots of a comparison, by matplotlib: accuracy against size, MACs and latency, and learning curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

from adjoined.comparison.rows import Row, measure_of
from adjoined.comparison.study import Study
from adjoined.files import write_whole
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


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the Pareto-optimal points (cost, accuracy), the cheapest first.

    Example:
        >>> pareto([(1, 0.5), (2, 0.4), (3, 0.9), (3, 0.8)])
        [(1, 0.5), (3, 0.9)]
    """
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Return positions moved as little as needed to be `gap` apart, in the same order.

    Example:
        >>> spread([5.0, 0.0, 1.0], gap=2.0)
        [5.0, -0.5, 1.5]
    """
    blocks: list[tuple[list[int], float]] = []  # adjacent positions and their centre
    for number in sorted(range(len(places)), key=lambda each: places[each]):
        block, middle = [number], places[number]
        while blocks and middle - blocks[-1][1] < gap * (len(block) + len(blocks[-1][0])) / 2:
            before, centre = blocks.pop()
            middle = (middle * len(block) + centre * len(before)) / (len(block) + len(before))
            block = before + block
        blocks.append((block, middle))
    found = [0.0] * len(places)
    for block, middle in blocks:
        for at, number in enumerate(block):
            found[number] = middle + gap * (at - (len(block) - 1) / 2)
    return found


def _accuracy(rows: Sequence[Row], measure: str, label: str, value: Callable[[Row], float | None]) -> Any:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, (axis,) = _figure(1)
    points = [(row, cost, row.main) for row in rows if (cost := value(row)) is not None and row.main is not None]
    for place, (_, cost, main) in enumerate(points):
        error = None if main.std is None else 100 * main.std
        axis.errorbar(cost, 100 * main.mean, yerr=error, capsize=3, **(_style(place) | {"linestyle": "none"}))
    front = pareto([(cost, 100 * main.mean) for _, cost, main in points])
    axis.step(*zip(*front, strict=True), where="post", color="0.6", linewidth=1, zorder=0, label="Pareto front")
    axis.margins(x=0.3, y=0.12)
    axis.set(xscale="log", xlabel=label, ylabel=f"{measure}, %")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda cost, _: f"{cost:g}" if cost < 1000 else units.count(cost)))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.legend(fontsize=7)
    # Networks of similar size line up vertically: their names are moved apart, each with a line to its point.
    bottom, top = axis.get_ylim()
    for column in _columns([(row.label, cost, 100 * main.mean) for row, cost, main in points]):
        heights = spread([height for *_, height in column], gap=(top - bottom) / 32)
        for (name, cost, height), moved in zip(column, heights, strict=True):
            axis.annotate(
                name, (cost, height), (14, moved), textcoords=("offset points", "data"), fontsize=6.5, va="center",
                arrowprops={"arrowstyle": "-", "color": "0.6", "linewidth": 0.5, "relpos": (0, 0.5)},
            )  # fmt: skip
    return figure


def _columns(points: Sequence[tuple[str, float, float]]) -> list[list[tuple[str, float, float]]]:
    """Group points (name, cost, accuracy) into columns, each within a third of its lowest cost."""
    columns: list[list[tuple[str, float, float]]] = []
    for point in sorted(points, key=lambda each: each[1]):
        if columns and point[1] < 1.33 * columns[-1][0][1]:
            columns[-1].append(point)
        else:
            columns.append([point])
    return columns


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
                axis.plot(
                    range(1, epochs + 1),
                    means,
                    label=f"{variant.label}{network}",
                    linewidth=1,
                    markersize=2,
                    **_style(place),
                )
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
