"""`adjoined export RUN`: the networks of a run as files for other runtimes, each compared with PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from adjoined.commands.flags import parse
from adjoined.commands.option_fields import flag_of, flags_set
from adjoined.commands.options import AsJson, ChosenWeights, OfData, OfRun, OwnCode
from adjoined.commands.streams import print_json
from adjoined.errors import AdjoinedError, check_range
from adjoined.printable import counted

if TYPE_CHECKING:
    from adjoined.report.table import Table
    from adjoined.runs.finished import FinishedNetwork, FinishedRun

PURPOSE = (
    "Export the networks of a run to files for other runtimes; each file is run there and compared with PyTorch on "
    "validation images before it is kept."
)


@dataclass(frozen=True, kw_only=True)
class ExportOptions(AsJson, ChosenWeights, OfData, OwnCode, OfRun):
    """What to export."""

    to: tuple[str, ...] = ("onnx",)
    """Targets: onnx, openvino, executorch, torch-export."""
    which: tuple[str, ...] = ()
    """Networks: base, small (in a family, all small ones), small-1 and so on; none: all."""
    int8: bool = False
    """Also export each network in int8, calibrated on training images."""
    with_preprocessing: Literal["none", "uint8", "unit"] = "none"
    """Include the normalisation in the file, which then takes images as uint8, or as float32 in 0 to 1 (unit)."""
    out: str | None = None
    """Folder for the files; none: export in the run folder, or for a run on a hub in the current one."""
    images: int = 256
    """Largest number of validation images to compare on, spread over the set."""
    calibration: int = 256
    """Training images for int8 calibration, spread over the set."""
    max_drop: float = 0.05
    """Largest drop of top-1 accuracy allowed in int8, in [0, 1]."""
    largest_batch: int = 1
    """Batch size for which an ExecuTorch file reserves memory; other targets take any batch size."""
    data: str | None = None
    """The new location of the run's images, if they have moved: folder:PATH, segmentation:PATH or labels:FILE.csv."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        for name in ("images", "calibration", "largest_batch"):
            check_range(getattr(self, name) >= 1, flag_of(name), "at least 1", getattr(self, name))
        check_range(0 <= self.max_drop <= 1, "--max-drop", "a number in [0, 1]", self.max_drop)
        if not self.int8 and (given := flags_set(self, ("calibration", "max_drop"))):
            raise AdjoinedError("only an int8 export reads it", where=given[0], fix="Add --int8, or leave it out.")
        if not self.to:
            raise AdjoinedError("no target is given", where="--to", expected="one or more, such as onnx,openvino")


def main(argv: Sequence[str]) -> None:
    """Export, compare and report; if one file cannot be kept, the others still are."""
    (options,) = parse("export", argv, ExportOptions, purpose=PURPOSE)
    from adjoined.export import find_target
    from adjoined.export.of_run import Exporter
    from adjoined.export.record import refuse_other_networks
    from adjoined.files import make_folder
    from adjoined.report.console import show
    from adjoined.runs.finished import open_images, open_run
    from adjoined.runs.folder import name_for
    from adjoined.runs.hub import is_hub, out_path, place_for

    targets = [find_target(name) for name in dict.fromkeys(options.to)]
    for target in targets:  # before anything is written
        target.require()
        target.require(int8=options.int8)
    run = open_run(options.run, options.model, weights=options.weights)
    if options.int8:  # it is checked by top-1 accuracy
        run.require_classes("export --int8")
    networks = _chosen(run, options.which)
    default = place_for(name_for("export", options.weights), options.run)
    out = out_path(options.out, "an export", options.run) if options.out else default
    alone = options.out is not None or is_hub(options.run)
    if alone:  # now, not after minutes
        refuse_other_networks(out, run.checksums)
    make_folder(out, links=options.out is not None)
    exporter = Exporter(
        open_images(run, data=options.data, data_root=options.data_root),
        out,
        takes="normalised" if options.with_preprocessing == "none" else options.with_preprocessing,
        images=options.images,
        calibration=options.calibration,
        max_drop=options.max_drop,
        largest_batch=options.largest_batch,
        weights=run.checksums,
        alone=alone,
    )
    entries: list[dict[str, Any]] = []
    failures: list[AdjoinedError] = []
    for network, target, int8 in product(networks, targets, (False, True)[: 1 + options.int8]):
        if sys.stderr.isatty():
            print(f"{network.name} to {target.title}{', int8' if int8 else ''} …", file=sys.stderr)
        try:
            entries.append(exporter.export(network.module, network.name, target, int8=int8))
        except AdjoinedError as error:
            failures.append(error)
    if options.json:
        print_json({"run": options.run, "folder": str(exporter.folder), "files": entries})
    elif entries:
        show(_table(exporter.folder, entries, run.caveats))
    for error in failures[:-1]:
        print(f"adjoined: error: {error}", file=sys.stderr)
    if failures:
        raise failures[-1]


def _chosen(run: FinishedRun, which: Sequence[str]) -> list[FinishedNetwork]:
    names = [network.name for network in run.networks]
    for name in which:
        if not any(_means(name, each) for each in names):
            raise AdjoinedError(
                "the run has no such network", where=f"--which {name}", expected=f"one of {', '.join(names)}"
            )
    return [network for network in run.networks if not which or any(_means(name, network.name) for name in which)]


def _means(name: str, network: str) -> bool:
    return name == network or (name == "small" and network.startswith("small-"))


def _table(folder: Path, entries: list[dict[str, Any]], caveats: Sequence[str]) -> Table:
    from adjoined.report import units
    from adjoined.report.table import Table

    int8 = any(each["int8"] for each in entries)
    columns = ["", "size", "relative difference", "other class", *(["top-1 accuracy", "in PyTorch"] if int8 else [])]
    rows = []
    for each in entries:
        found = each["difference"]
        row = [each["file"], units.size(each["bytes"]), f"{found['relative']:.1e}", str(found["other_class"])]
        if int8:
            row += [units.percent(each["top1"]), units.percent(each["top1_pytorch"])]
        rows.append(tuple(row))
    compared = entries[0]["difference"]["images"]
    notes = [
        f"Each file was run in its own runtime and compared with PyTorch on {counted(compared, 'validation image')}."
    ]
    if int8:
        whole = next(each["accuracy_images"] for each in entries if each["int8"])
        notes.append(f"Accuracies: on {counted(whole, 'validation image')}.")
    return Table(tuple(columns), tuple(rows), title=f"{folder}", notes=(*notes, *caveats))
