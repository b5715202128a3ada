"""`adjoined predict RUN IMAGE ...`: predictions of both networks of a run for images or folders, and their latency."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import parse
from adjoined.commands.options import AsJson, ChosenWeights, OfRun, OwnCode
from adjoined.commands.streams import print_json
from adjoined.errors import AdjoinedError, check_range
from adjoined.printable import printable

if TYPE_CHECKING:
    from adjoined.report.table import Table
    from adjoined.runs.finished import FinishedRun

USUAL_TOP = 5
CALLS = 3
"""Timed calls per image and network; the median is reported."""

PURPOSE = "Classify images with both networks of a run, side by side; images in a folder take one line each."


@dataclass(frozen=True, kw_only=True)
class PredictOptions(AsJson, ChosenWeights, OwnCode, OfRun):
    """What to classify."""

    images: list[str] = field()
    """Image files, or folders: all images in them, one line each."""
    top: int | None = None
    """Number of classes to show, the most probable first; none: 5 for an image file, 1 for an image in a folder."""

    def __post_init__(self) -> None:
        """Check the options that only this command has."""
        check_range(self.top is None or self.top >= 1, "--top", "at least 1", self.top)


def main(argv: Sequence[str]) -> None:
    """Classify and print, image by image; unreadable images are reported, and the others are still classified."""
    (options,) = parse("predict", argv, PredictOptions, purpose=PURPOSE)
    from adjoined.report.console import show
    from adjoined.runs.finished import open_run

    run = open_run(options.run, options.model, weights=options.weights)
    run.require_classes("predict")
    paths = list(_paths(options.images))
    found: list[dict[str, Any]] = []
    failures: list[AdjoinedError] = []
    for number, (path, alone) in enumerate(paths):
        try:
            seen = _predictions(run, path, options.top or USUAL_TOP, calls=CALLS if alone else 0)
        except AdjoinedError as error:
            failures.append(error.at(path))
            found.append({"image": path, "error": str(failures[-1])})
            if not options.json and len(paths) > 1:
                print(f"adjoined: {failures[-1]}", file=sys.stderr)
            continue
        found.append({"image": path, "networks": seen})
        if options.json:
            continue
        if alone:
            print("" if number == 0 else "\n", end="")
            show(_table(path, seen))
        else:
            show(_line(path, seen, options.top or 1))
    if options.json:
        print_json(found)
    if failures:
        if len(paths) == 1:
            raise failures[0]
        advice = {each.fix for each in failures}
        what = f"{len(failures)} of {len(paths)} images cannot be read"
        raise AdjoinedError(what, fix=advice.pop() if len(advice) == 1 else "")


def _paths(given: Sequence[str]) -> Iterator[tuple[str, bool]]:
    """Yield every image file, and whether the user named it; report what is left out of folders."""
    from adjoined.data.scanning import LeftOut, images_below

    for path in map(os.path.expanduser, given):
        if not os.path.isdir(path):
            yield path, True
            continue
        left_out = LeftOut()
        inside = images_below(Path(path), left_out)
        if left_out.counts:
            print(f"adjoined: {path}: not read: {left_out}", file=sys.stderr)
        if not inside:
            raise AdjoinedError("no images in the folder", where=path)
        yield from ((each, False) for each in inside)


def _line(path: str, seen: Sequence[dict[str, Any]], top: int) -> str:
    from adjoined.data.scanning import as_text
    from adjoined.report import units

    guesses = (
        f"{network['name']}: "
        + ", ".join(f"{each['class']} {units.percent(each['probability'])}" for each in network["guesses"][:top])
        for network in seen
    )
    return printable(f"{as_text(path)}  {(', ' if top == 1 else '; ').join(guesses)}")  # one line each


def _predictions(run: FinishedRun, path: str, top: int, *, calls: int) -> list[dict[str, Any]]:
    """Return each network's most probable classes, their probabilities, and the time of a call, ms."""
    from adjoined.data import load_image
    from adjoined.runs.classify import classify

    modules = [network.module for network in run.networks]
    predictions = classify(modules, run.info, load_image(path), top=top, calls=calls)
    return [
        {
            "name": network.label,
            "guesses": [{"class": name, "probability": probability} for name, probability in each.guesses],
            "milliseconds": each.milliseconds,
        }
        for network, each in zip(run.networks, predictions, strict=True)
    ]


def _table(path: str, seen: Sequence[dict[str, Any]]) -> Table:
    from adjoined.report import units
    from adjoined.report.table import Table

    columns = ["", *(text for network in seen for text in (network["name"], "probability"))]
    rows = [
        (str(rank + 1), *(text for guess in each for text in (guess["class"], units.percent(guess["probability"]))))
        for rank, each in enumerate(zip(*(network["guesses"] for network in seen), strict=True))
    ]
    decimals = units.decimals_of(network["milliseconds"] for network in seen)
    times = ("time", *(t for each in seen for t in ("", units.milliseconds(each["milliseconds"], decimals))))
    return Table(tuple(columns), (*rows, times), title=path, totals=1)
