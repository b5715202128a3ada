"""The sections of the page that need no images: headline, learning curves, comparisons, settings, exported files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from adjoined.benchmark.environment import command_line
from adjoined.export.record import ExportedFile
from adjoined.kinds import NAMES, heading
from adjoined.report import units
from adjoined.report.figures import Figures, is_doubtful
from adjoined.report.page.charts import Axis, Chart, Line, Mark, lines, marks, place
from adjoined.report.page.story import RunStory
from adjoined.report.table import Table
from adjoined.settings import Settings

EPOCH = Axis("epoch", lambda value: f"{value:.0f}")
_SCHEDULES = {"paper": "min(4 t², 1)", "constant": "1"}
MOST_EPOCHS = 400
"""Most points of a curve; a longer run shows evenly spaced epochs."""
MOST_COMMANDS = 20


@dataclass(frozen=True)
class Tile:
    """One headline figure."""

    label: str
    value: str
    detail: str
    saves: bool = True
    """Whether the figure is a saving; a change in quality is not."""


def share(measure: str) -> Axis:
    """Return the axis of a measure."""
    return Axis(
        NAMES[measure],
        lambda value: f"{100 * value:.4g} %",
        bounds=(0.0, 1.0),
        column=lambda values: [units.percent(value) for value in values],
    )


def title(story: RunStory) -> str:
    """Return the model and the data set in a few words."""
    return f"{short(story.settings.model)} on {short(story.settings.data)}"


def facts(story: RunStory) -> list[tuple[str, str]]:
    """Return the short list under the title."""
    settings, result = story.settings.without_folders(), story.result
    done = len(story.history)
    method = "your own training loop" if story.own_loop else settings.method
    pairs = [("Model", settings.model), ("Data", settings.data), ("Method", method)]
    if settings.method != "standard":
        compressed = f"chosen for {settings.compress:.3g}x" if settings.compress else ""
        compressed = f"chosen for {settings.budget}" if settings.budget else compressed
        kept = ", ".join(f"{alpha:.3g}" for alpha in settings.alphas)
        pairs.append(("α (keeps 1/α of the channels)", compressed or kept))
    if not story.own_loop:
        pairs.append(("Epochs", f"{done} of {settings.epochs}" if result is None else f"{result.epochs}"))
        seconds = sum(row.get("seconds", 0.0) for row in story.history)
        pairs += [("Training time", str(timedelta(seconds=round(seconds)))), ("Seed", str(settings.seed))]
    if result and not story.own_loop:
        averaged = "moving average " if result.weights == "ema" else ""
        pairs.append(("Weights", averaged + (story.when or "after the last step")))
    finished = story.record.get("finished")
    if isinstance(finished, str):
        pairs.append(("Finished", _day(finished)))
    return pairs


def tiles(figures: Sequence[Figures]) -> list[Tile]:
    """Return how the small network compares with the base; nothing for a family, which a table shows better."""
    if len(figures) != 2:
        return []
    base, small = figures
    quantities = [
        ("fewer parameters", base.parameters, small.parameters, units.count),
        ("fewer multiply-adds (MACs)", base.macs, small.macs, units.count),
        ("smaller file", base.file_bytes, small.file_bytes, units.size),
    ]
    found = [
        Tile(label, units.times(a, b), f"{write(a)} → {write(b)}")
        for label, a, b, write in quantities
        if a is not None and b
    ]
    if base.median_ms is not None and small.median_ms:
        decimals = units.decimals_of((base.median_ms, small.median_ms))
        slow, fast = (units.milliseconds(each, decimals) for each in (base.median_ms, small.median_ms))
        doubt = is_doubtful(base, small)
        value = units.times(base.median_ms, small.median_ms) + (units.DOUBT if doubt else "")
        detail = f"{slow} → {fast}" + ("; unreliable, the machine was busy" if doubt else "")
        found.append(Tile("lower latency, one image", value, detail))
    if base.main is not None and small.main is not None:
        change = f"{units.change(base.main, small.main):+.2f}".replace("-", "−")
        detail = f"{units.percent(base.main)} → {units.percent(small.main)}"
        found.append(Tile(f"points of {NAMES[base.main_name]}", change, detail, saves=False))
    return found


def learning_curves(story: RunStory) -> list[Chart]:
    """Return accuracy, loss, λ and learning rate over the epochs."""
    rows, names = story.history, list(zip(story.names, story.labels, strict=True))
    if not rows:
        return []
    accuracy = [
        line
        for name, label in names
        for line in (
            curve(rows, f"val_{name}_{story.main}", label, place(name)),
            curve(rows, f"train_{name}_{story.main}", f"{label}, training", place(name), faint=True),
        )
    ]
    loss = [curve(rows, f"val_{name}_loss", label, place(name)) for name, label in names]
    most = max(1.0, *(row.get("lambda", 0.0) for row in rows))
    weights = Axis("λ", _plain, low=0.0, high=1.05 * most, column=units.column)
    charts = [
        epoch_chart(heading(story.main), accuracy, share(story.main),
                    "Validation images; faint: training images, as augmented."),
        epoch_chart("Validation loss", loss, *_nats(loss, "Cross-entropy, nats.", from_zero=False)),
        epoch_chart("Weight of the KL term, λ", [curve(rows, "lambda", "λ", -1)], weights,
                    "The KL term pulls the networks' class probabilities together. Mean over the epoch of "
                    f"λ(t) = {_SCHEDULES[story.settings.kl_schedule]}; t is the fraction of training done."),
        epoch_chart("Learning rate", [curve(rows, "lr", "learning rate", -1)],
                    Axis("learning rate", _plain, low=0.0, column=units.column), "At the start of the epoch."),
    ]  # fmt: skip
    return [chart for chart in charts if chart]


def penalty_chart(story: RunStory) -> Chart | None:
    """Return the KL term and the quadratic penalty that approximates it, by epoch; None if not logged."""
    if not any("penalty" in row for row in story.history):
        return None
    both = [curve(story.history, "kl", "KL(p ‖ q)", 4), curve(story.history, "penalty", "quadratic penalty", 5)]
    return epoch_chart("KL term and quadratic penalty", both, *_nats(both, "Means over the epoch, nats, without λ."))


def is_paper_loss(settings: Settings) -> bool:
    """Return whether the networks were trained with the loss of the paper, CE(p, y) + λ(t) · KL(p ‖ q)."""
    usual = not settings.kl_detach and not settings.small_ce
    return settings.method == "adjoint" and usual and settings.temperature in (None, 1)


def trade_offs(networks: Sequence[tuple[str, int, Figures]]) -> list[Chart]:
    """Return accuracy against parameters and latency of networks, given as name, look and figures.

    A chart needs at least three points; fewer are in the table anyway.
    """
    if len(networks) < 3:
        return []
    charts = []
    parameters = Axis("parameters", _count, log=True, column=lambda values: [*map(units.count, values)])
    latency = Axis("latency, batch 1", "{:.3g} ms".format, log=True, column=_milliseconds)
    costs = (("parameters", parameters, lambda f: f.parameters), ("latency", latency, lambda f: f.median_ms))
    for name, axis, cost in costs:
        found = [
            Mark(label, look, value, each.main)
            for label, look, each in networks
            if (value := cost(each)) and each.main is not None
        ]
        if len(found) == len(networks):
            measure = networks[0][2].main_name
            accuracy = replace(share(measure), least=0.04)
            charts.append(marks(f"{heading(measure)} against {name}", found, axis, accuracy))
    return charts


def settings_tables(story: RunStory) -> list[Table]:
    """Return the settings that differ from the defaults, all settings, and the versions."""
    values, default = asdict(story.settings.without_folders()), asdict(Settings())
    rows = tuple((name, written(value)) for name, value in values.items())
    changed = tuple(row for row in rows if row[1] != written(default[row[0]]))
    versions = story.record.get("versions")
    found = [
        Table(("setting", "value"), changed, "Settings that differ from the defaults"),
        Table(("setting", "value"), rows, "All settings"),
    ]
    if isinstance(versions, dict):
        found.append(Table(("library", "version"), tuple((str(a), str(b)) for a, b in versions.items()), "Versions"))
    return found


def export_tables(files: Sequence[ExportedFile]) -> list[Table]:
    """Return the exported files and how they compared with PyTorch; a figure missing from the record is a dash."""
    if not files:
        return []
    rows = tuple(
        (
            each.file,
            units.size(each.bytes),
            each.takes or units.ABSENT,
            units.ABSENT if each.difference.relative is None else f"{each.difference.relative:.1e}",
            _of(each.difference.other_class, each.difference.images),
            units.percent(each.top1),
        )
        for each in files
    )
    notes = (
        "A file takes images normalised as in training, as uint8 from 0 to 255, or as floats from 0 to 1 (unit).",
        "Every file was run in its own runtime on validation images and compared with PyTorch: the largest difference "
        "between logits relative to the largest logit, and how many images get another class. Accuracy is measured "
        "only for int8 files.",
    )
    columns = ("file", "size", "takes images", "difference", "other class", "top-1")
    return [Table(columns, rows, "Exported files", notes)]


def commands(story: RunStory) -> list[str]:
    """Return the command line of every session, and the commit that it ran at."""
    found = []
    for sitting in (story.record.get("sittings") or [])[-MOST_COMMANDS:]:
        words = [str(word) for word in sitting.get("command") or []]
        if words:
            found.append(f"# {_day(str(sitting.get('started', '')))}\n{command_line(words)}")
    return found


def commit(story: RunStory) -> str:
    """Return the commit of the folder in which the run was started, or ""."""
    git = story.record.get("git")
    return str(git.get("commit") or "")[:12] if isinstance(git, dict) else ""


def _of(number: int | None, whole: int | None) -> str:
    return units.ABSENT if number is None or whole is None else f"{number} of {whole}"


def _nats(all_lines: Sequence[Line], note: str, *, from_zero: bool = True) -> tuple[Axis, str]:
    """Return the axis for losses, logarithmic if they span a wide range, and the note that says so."""
    values = [value for line in all_lines for _, value in line.points if value > 0]
    if values and max(values) > 30 * min(values):
        return Axis("nats", _plain, log=True, column=units.column), f"{note} Logarithmic axis."
    return Axis("nats", _plain, low=0.0 if from_zero else None, column=units.column), note


def epoch_chart(name: str, all_lines: Sequence[Line], axis: Axis, note: str) -> Chart | None:
    """Return lines over the epochs as a chart; None if nothing can be shown."""
    there = [line for line in all_lines if line.points]
    if not any(b == b and (b > 0 or not axis.log) for line in there for _, b in line.points):
        return None
    epochs = sorted({a for line in there for a, _ in line.points})
    across = EPOCH if len(epochs) > 6 else Axis(EPOCH.label, EPOCH.write, ticks=epochs)
    return lines(name, there, across, axis, note=note)


def curve(rows: Sequence[dict[str, float]], key: str, name: str, look: int, *, faint: bool = False) -> Line:
    """Return a column of the history as a line over the epochs."""
    step = -(-len(rows) // MOST_EPOCHS)
    chosen = rows[::-step][::-1] if step > 1 else rows
    return Line(name, look, [(row["epoch"], row[key]) for row in chosen if key in row], faint)


def short(name: str) -> str:
    """Return the last part of a path, or a name without its library's prefix.

    Example:
        >>> [short(name) for name in ("timm:resnet18", "folder:/home/ann/pets", "net.py:make")]
        ['resnet18', 'pets', 'net.py:make']
    """
    name = name.rpartition("/")[2]
    return name if ".py:" in name else name.rpartition(":")[2] or name


def _count(value: float) -> str:
    return units.count(value).replace(".00", "")


def _milliseconds(values: Sequence[float]) -> list[str]:
    decimals = units.decimals_of(values)
    return [units.milliseconds(value, decimals) for value in values]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"


def written(value: Any) -> str:
    """Format the value of a setting for people."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(written, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {each}" for name, each in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _day(moment: str) -> str:
    try:
        return f"{datetime.fromisoformat(moment):%d %B %Y, %H:%M %Z}".strip()
    except ValueError:
        return moment
