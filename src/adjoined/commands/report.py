"""`adjoined report RUN`: one HTML page about one run or several."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from adjoined.atomic import write_text
from adjoined.commands.flags import parse
from adjoined.commands.option_fields import flags_set
from adjoined.commands.options import ChosenWeights, OfData, OwnCode, Workers
from adjoined.errors import AdjoinedError, check_range
from adjoined.files import as_path, check_writable
from adjoined.kinds import NAMES

if TYPE_CHECKING:
    from adjoined.report.page import Evidence, RunStory
    from adjoined.runs.finished import FinishedRun

PURPOSE = (
    "Write a self-contained HTML page about a run: both networks side by side, learning curves, disagreements, "
    "confusion, calibration, settings. For several runs, it compares them."
)


@dataclass(frozen=True, kw_only=True)
class ReportOptions(ChosenWeights, Workers, OfData, OwnCode):
    """What to write."""

    run: list[str]
    """The run folder, or hub:OWNER/NAME; several are compared."""
    out: str | None = None
    """Output file; none: report.html in the run folder, or for a run on a hub in the current one; for several runs,
    comparison.html in the current folder."""
    images: int = 10_000
    """Largest number of validation images to classify, sampled evenly from every class; 0 omits the sections that
    need them."""
    data: str | None = None
    """The new location of the run's images, if they have moved: folder:PATH, segmentation:PATH or labels:FILE.csv."""
    device: str = "cpu"
    """Device: cpu, cuda, mps."""

    def refuse_image_flags(self, why: str) -> None:
        """Raise AdjoinedError if a flag is given that matters only if images are classified."""
        if given := flags_set(self, ("data", "data_root", "device", "workers")):
            raise AdjoinedError(f"has no effect: {why}", where=given[0], fix="Leave it out.")


def main(argv: Sequence[str]) -> None:
    """Write the page and print its path."""
    (options,) = parse("report", argv, ReportOptions, purpose=PURPOSE)
    check_range(options.images >= 0, "--images", "at least 0", options.images)
    if len({as_path(each, "RUN").resolve() for each in options.run}) < len(options.run):
        raise AdjoinedError("the same run is given twice", where="RUN", got=", ".join(options.run))
    if len(options.run) > 1:
        options.refuse_image_flags("a comparison of runs shows their recorded figures and reads no images")
    from adjoined.runs.folder import name_for
    from adjoined.runs.hub import out_path, place_for

    own = name_for("report.html", options.weights)
    default = Path("comparison.html") if len(options.run) > 1 else place_for(own, options.run[0])
    out = out_path(options.out, "a report") if options.out else default
    page = _comparison(options, out) if len(options.run) > 1 else _page(options, out)

    from adjoined.report.console import show

    write_text(out, page)
    show(f"{out}  {out.stat().st_size / 1e6:.2f} MB")


def _page(options: ReportOptions, out: Path) -> str:
    from adjoined.report.page import run_page

    story, run = _tell(options.run[0], options)
    check_writable(out)
    if run is None:
        options.refuse_image_flags("the run is not finished, so its networks classify no images")
        return run_page(story)
    from adjoined.commands.device import check_device
    from adjoined.commands.outcome import outcome_table
    from adjoined.report.page.evidence import look_at
    from adjoined.report.page.masks import compare_masks
    from adjoined.runs.finished import open_images

    evidence, masks, task = None, (), run.info.task if options.images else ""
    if task in ("classification", "segmentation"):
        check_device(options.device)
        images = open_images(run, data=options.data, data_root=options.data_root, workers=options.workers)
        modules = {network.label: network.module for network in run.networks}
        if task == "classification":
            evidence = _with_layers(run, look_at(modules, images, most=options.images, device=options.device))
        else:
            masks = compare_masks(modules, images, most=options.images, device=options.device)
    elif task:
        options.refuse_image_flags(f"the report of a {task} run reads no images")
    return run_page(story, evidence, outcome_table(run, list(story.figures)), masks)


def _comparison(options: ReportOptions, out: Path) -> str:
    from adjoined.report.page import comparison_page

    stories, damaged = [], []
    for folder in options.run:
        try:
            stories.append(_tell(folder, options)[0])
        except AdjoinedError as error:
            damaged.append(error)
            print(f"adjoined: left out: {error}", file=sys.stderr)
    if not stories:
        raise damaged[0]
    if len({story.main for story in stories}) > 1:
        measures = ", ".join(f"{story.parts[-1]}: {NAMES[story.main]}" for story in stories)
        raise AdjoinedError("the runs are for different tasks", where="RUN", expected="one task", got=measures)
    check_writable(out)
    return comparison_page(stories)


def _tell(folder: str, options: ReportOptions) -> tuple[RunStory, FinishedRun | None]:
    """Read a run, load its networks if it has them, and measure figures that it has not recorded."""
    from adjoined.report.page import read_story

    story, final = read_story(folder, weights=options.weights), options.weights == "final"
    if story.result is None and final:
        return story, None
    from adjoined.commands.outcome import kept_or_measured, measure
    from adjoined.runs.finished import open_run

    own = story.settings.code is not None or len(options.run) == 1  # other runs beside it know their model
    run = open_run(folder, options.model if own else None, weights=options.weights)
    if final:
        return replace(story, figures=tuple(kept_or_measured(run))), run
    return replace(story, result=run.result, figures=tuple(measure(run)), when=run.when), run


def _with_layers(run: FinishedRun, evidence: Evidence) -> Evidence:
    """Add the layers of the networks, and why some stay at full width."""
    from adjoined.report.plan import layers, plan_table
    from adjoined.slicing import SlicePlan, cost_by_module

    modules = [network.module for network in run.networks]
    all_layers = layers(modules, [cost_by_module(module, run.example()) for module in modules])
    plans = [SlicePlan.from_json(each.description["plan"]) for each in run.networks if each.description["plan"]]
    notes = plan_table(all_layers, plans).notes if plans else ()
    return replace(evidence, layers=tuple(all_layers), notes=notes)
