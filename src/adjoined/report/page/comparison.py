"""The page about several runs: one table, overlaid curves, and the settings that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from adjoined import kinds
from adjoined.printable import counted
from adjoined.report import units
from adjoined.report.page import sections
from adjoined.report.page.charts import Chart, look
from adjoined.report.page.story import RunStory
from adjoined.report.table import Table


def contents(stories: Sequence[RunStory]) -> dict[str, Any]:
    """Return everything that a comparison page shows."""
    names = run_names(stories)
    own = [
        (f"{name} {figures.name}", number, figures)
        for number, (name, story) in enumerate(zip(names, stories, strict=True))
        for figures in story.figures
    ]
    return {
        "title": f"{counted(len(stories), 'run')} compared",
        "networks": [(name, look(number)) for number, name in enumerate(names)],
        "runs": [(name, sections.title(story), story.result is not None)
                 for name, story in zip(names, stories, strict=True)],
        "comparable": comparable(stories),
        "results": results(stories, names),
        "curves": curves(stories, names),
        "trade_offs": sections.trade_offs(own),
        "settings": [differing_settings(stories, names)],
        "commands": [line for story in stories for line in sections.commands(story)],
    }  # fmt: skip


def run_names(stories: Sequence[RunStory]) -> list[str]:
    """Return a short name for each run: its folder's name, with as much of the path as makes it unique."""
    parts = [story.parts for story in stories]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{each[-1]} ({number})" for number, each in enumerate(parts, 1)]


def comparable(stories: Sequence[RunStory]) -> bool:
    """Return whether all runs were measured on the same images at the same size."""
    what = ("data", "image_size", "val_fraction", "split_seed")
    return len({tuple(getattr(story.settings, name) for name in what) for story in stories}) == 1


def results(stories: Sequence[RunStory], names: Sequence[str]) -> Table:
    """Return one row per network of every run."""
    rows = []
    decimals = units.decimals_of(figures.median_ms for story in stories for figures in story.figures)
    for name, story in zip(names, stories, strict=True):
        for each in story.figures:
            sizes = units.count(each.parameters), units.count(each.macs), units.size(each.file_bytes)
            time = units.milliseconds(each.median_ms, decimals)
            rows.append((f"{name}, {each.name}", units.percent(each.main), *sizes, time))
        if not story.figures:
            last = story.history[-1] if story.history else {}
            progress = f"{len(story.history)} of {counted(story.settings.epochs, 'epoch')}"
            for network in story.names or ("–",):
                main = units.percent(last.get(f"val_{network}_{story.main}"))
                rows.append((f"{name}, {network}, {progress}", main, *[units.ABSENT] * 4))
    columns = ("network", kinds.short_name(stories[0].main), "parameters", "MACs", "file", "latency")
    notes = ("Latencies were measured at the end of each run, not interleaved.",)
    return Table(columns, tuple(rows), "All networks of all runs", notes)


def curves(stories: Sequence[RunStory], names: Sequence[str]) -> list[Chart]:
    """Return the validation accuracy of the base networks and of the small ones, with all runs overlaid."""
    charts, measure = [], stories[0].main
    note = f"{kinds.heading(measure)} on the validation images."
    for heading, wanted in (("Base networks", True), ("Small networks", False)):
        overlaid = [
            sections.curve(story.history, f"val_{network}_{measure}", name if wanted else f"{name} {network}", number)
            for number, (name, story) in enumerate(zip(names, stories, strict=True))
            for network in story.names
            if (network == "base") is wanted
        ]
        charts.append(sections.epoch_chart(heading, overlaid, sections.share(measure), note))
    return [chart for chart in charts if chart]


def differing_settings(stories: Sequence[RunStory], names: Sequence[str]) -> Table:
    """Return the settings that differ between the runs."""
    each = [asdict(story.settings.without_folders()) for story in stories]
    different = [name for name in each[0] if any(settings[name] != each[0][name] for settings in each)]
    rows = tuple((name, *(sections.written(settings[name]) for settings in each)) for name in different)
    notes = () if rows else ("All settings are the same.",)
    return Table(("setting", *names), rows, "Settings that differ", notes)
