"""`adjoined evaluate RUN`: accuracy of both networks of a run, on its own validation images or on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import parse
from adjoined.commands.options import AsJson, ChosenWeights, OfData, OfRun, OwnCode, Workers
from adjoined.commands.streams import print_json
from adjoined.kinds import CLASSES, MEASURES, NAMES
from adjoined.printable import counted

if TYPE_CHECKING:
    from adjoined.data import ImageData
    from adjoined.report.table import Table
    from adjoined.runs.finished import FinishedRun
    from adjoined.training.evaluate import Scores

PURPOSE = (
    "Evaluate both networks of a run: on its own validation images, which reproduces the run's figures, or on others."
)


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(AsJson, ChosenWeights, Workers, OfData, OwnCode, OfRun):
    """What to measure."""

    data: str | None = None
    """Other images of the same classes: a data set, or folder:PATH (its val/ if there is one, otherwise all images); or
    the new location of the run's own images. None: the run's validation images."""
    all: bool = False
    """Evaluate on all images in val/ or, without val/, on all images, including those that the run was trained on."""
    device: str = "cpu"
    """Device: cpu, cuda, mps. The kind that the run used reproduces its figures bit for bit."""


def main(argv: Sequence[str]) -> None:
    """Evaluate and print."""
    (options,) = parse("evaluate", argv, EvaluateOptions, purpose=PURPOSE)
    from adjoined.commands.device import check_device
    from adjoined.report.console import show
    from adjoined.runs.finished import open_run
    from adjoined.training.evaluate import evaluate

    check_device(options.device)
    run = open_run(options.run, options.model, weights=options.weights)
    images, own = _open(run, options)
    images.check(training=False)  # now, not after half of them have been evaluated
    measured = {
        network.label: evaluate(
            network.module, images.val_loader(), run.info.num_classes, options.device, task=run.info.task
        )
        for network in run.networks
    }
    kept = {each.label: {"loss": each.result.loss, **each.result.measures()} for each in run.networks}
    recorded = kept if own else {}
    if options.json:
        networks = [{"name": name, **asdict(scores)} for name, scores in measured.items()]
        content = {
            "run": options.run,
            "data": images.settings.name,
            "measured_on": images.val_name,
            "left_out": images.left_out,
            "skipped": len(images.skipped),
            "networks": networks,
        }
        print_json(content | {"recorded": recorded or None})
    else:
        show(_table(options, images, measured, recorded, run.caveats))


def _open(run: FinishedRun, options: EvaluateOptions) -> tuple[ImageData, bool]:
    """Open the images, and return whether they are the run's validation images."""
    from adjoined.runs.finished import are_own, open_images, open_other_images

    where = {"data_root": options.data_root, "workers": options.workers}
    if not options.all and (options.data is None or are_own(run, options.data, options.data_root)):
        return open_images(run, data=options.data, **where), True
    return open_other_images(run, options.data, **where), False


def _table(
    options: EvaluateOptions,
    images: ImageData,
    measured: dict[str, Scores],
    recorded: dict[str, dict[str, Any]],
    caveats: Sequence[str],
) -> Table:
    from adjoined.report import units
    from adjoined.report.table import Table

    measures = MEASURES[images.info.task]
    shown = [each for each in measures if any(getattr(scores, each) is not None for scores in measured.values())]
    rows = tuple(
        (name, *(units.percent(getattr(scores, each)) for each in shown), f"{scores.loss:.4f}")
        for name, scores in measured.items()
    )
    count = next(iter(measured.values())).images
    title = f"{options.run} on {images.settings.name}: {counted(count, 'image')} ({images.val_name})"
    notes = [*_notes(images), *_comparison(measured, recorded), *caveats]
    return Table(("", *(NAMES[each] for each in shown), "loss"), rows, title, tuple(notes))


def _notes(images: ImageData) -> list[str]:
    """Return notes on classes without images and on images that were left out."""
    known, task, labels = images.info.num_classes, images.info.task, images.val.labels
    classes = ""
    if task != "segmentation":
        present = len(labels.unique()) if task == "classification" else int(labels.any(dim=0).sum())
        classes = f"{present} of {known} {CLASSES[task]} have images." if present < known else ""
    skipped = f"Damaged images left out: {len(images.skipped)} ({images.skipped[0]} …)." if images.skipped else ""
    left_out = f"Not read: {images.left_out}." if images.left_out else ""
    return [note for note in (classes, skipped, left_out) if note]


def _comparison(measured: dict[str, Scores], recorded: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    from adjoined.report import units

    if not recorded:
        return ()
    if all(scores.main == recorded[name][scores.main_name] for name, scores in measured.items()):
        return ("These are the accuracies that the run recorded.",)
    shares = ((name, scores[measured[name].main_name]) for name, scores in recorded.items())
    before = ", ".join(f"{name} {units.percent(share)}" for name, share in shares)
    return (f"The run recorded {before}: the device or the versions of the libraries differ.",)
