"""What is measured before a run starts, so that it resumes with the same networks: alpha for a latency, and widths."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.choices import Choice, searches_widths
from adjoined.commands.latency_flags import LatencyOptions
from adjoined.errors import AdjoinedError
from adjoined.method_settings import SEARCH, UNIFORM
from adjoined.settings import Settings

if TYPE_CHECKING:
    from adjoined.slicing import SlicePlan
    from adjoined.width_search import Progress

MEASURED = "ADJOINED_MEASURED"
"""Environment variable in which the processes that a run starts find what the first one measured."""


def measure_first(
    settings: Settings, timing: LatencyOptions, folder: Path | None = None, *, dry: bool = False
) -> tuple[Settings, list[Choice]]:
    """Return the settings with measured alpha and widths, and these two as choices.

    Args:
        settings: the settings of a new run.
        timing: how milliseconds are measured.
        folder: the folder of the run; None for one that writes nothing.
        dry: leave out the search that a run starts with by default, which takes minutes.

    Raises:
        AdjoinedError: the budget cannot be met, several processes would each measure for themselves, or the run could
            not start.
    """
    from adjoined.slicing import read_budget

    limits = read_budget(settings.budget) if settings.budget else ()
    timed = any(limit.quantity == "ms" for limit in limits)
    by_default = searches_widths(settings) and not timed
    searched = settings.widths == SEARCH or by_default
    if not timed and not searched:
        return replace(settings, widths=settings.widths or {}), []
    if os.environ.get("LOCAL_RANK", "0") != "0" and MEASURED in os.environ:
        return replace(settings, budget=None, compress=None, **json.loads(os.environ[MEASURED])), []
    if reason := _unsearchable(settings) if by_default else "":
        return replace(settings, widths={}), [Choice("widths", UNIFORM, reason)]
    if by_default and dry:
        why = "found before the first step; shown here: uniform ones (a dry run with --widths search finds them)"
        return replace(settings, widths={}), [Choice("widths", SEARCH, why)]
    if _several(settings):
        raise AdjoinedError(
            "each process would measure separately and might choose a different small network",
            where="--widths search" if searched else f"--budget {settings.budget!r}",
            fix="Add --dry-run in one process, and give the --alpha and --widths that it prints.",
        )
    if folder is not None:
        from adjoined.runs import RunFolder

        RunFolder(folder).check(settings, resume=False)
    within = f" within {settings.budget}" if settings.budget else ""
    how = f", measured {timing.in_words()}" if timed else ""
    if searched:
        from adjoined.training.searching import searched_plan

        try:
            with _progress() as progress:
                plan = searched_plan(settings, timing.measure if timed else None, progress)
        except AdjoinedError as error:
            if not by_default:
                raise
            return replace(settings, widths={}), [Choice("widths", UNIFORM, f"the search failed: {error.what}")]
        found = {"alpha": plan.alpha, "widths": dict(plan.widths)}
        if plan.widths:
            value, why, note = SEARCH, "a width for each channel group", " (uniform: one alpha for all)"
        else:
            value, why, note = UNIFORM, "the search found nothing better", ""
        choices = [Choice("widths", value, f"{why}{within}{how}{note}")]
    else:
        plan = _fastest_enough(settings, timing)
        found, choices = {"alpha": plan.alpha, "widths": settings.widths or {}}, []
    if settings.budget:
        choices.insert(0, Choice("alpha", plan.alpha, f"the largest small network{within}{how}"))
    elif settings.compress:
        choices.insert(0, Choice("alpha", plan.alpha, f"for a ratio of {settings.compress:g} in parameters"))
    os.environ[MEASURED] = json.dumps(found)
    return replace(settings, budget=None, compress=None, **found), choices


def _several(settings: Settings) -> bool:
    """Return whether a launcher such as torchrun or srun starts the processes of the run: each one comes here."""
    counts = (os.environ.get(name, "1") for name in ("WORLD_SIZE", "SLURM_NTASKS"))
    return settings.nodes > 1 or any(int(count) > 1 for count in counts)


def _unsearchable(settings: Settings) -> str:
    """Return why widths that would be searched by default stay uniform; "" if they are searched."""
    from adjoined.data import open_data
    from adjoined.transfer import ENOUGH_TO_SEARCH

    if _several(settings):
        return "a search needs a single process"
    images = len(open_data(settings.data_settings()).train)
    return f"{images} training images are too few to search widths" if images < ENOUGH_TO_SEARCH else ""


@contextmanager
def _progress() -> Iterator[Progress]:
    """Show the progress of the search: as a bar in a terminal, as lines in a log."""
    print("Searching for the width of each channel group (--widths uniform skips this)", flush=True)
    if not sys.stdout.isatty():
        from adjoined.width_search import ProgressLines

        yield ProgressLines(sys.stdout)
        return
    from rich import progress

    columns = progress.BarColumn(12), progress.TaskProgressColumn(), progress.TimeRemainingColumn()
    with progress.Progress(progress.TextColumn("{task.description}"), *columns, transient=True) as bar:
        task = bar.add_task("", total=1)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _fastest_enough(settings: Settings, timing: LatencyOptions) -> SlicePlan:
    """Return the plan of the largest small network within a budget that has milliseconds."""
    import torch

    from adjoined.slicing import Request, Slicer
    from adjoined.training.job import images_and_base

    images, model = images_and_base(settings, pretrained=False)
    info = images.info
    example = torch.zeros(1, info.channels, info.image_size, info.image_size)
    (plan,) = Slicer(model, example).plans(Request.of(settings), latency=timing.measure(example))
    return plan
