"""`adjoined predict RUN IMAGE ...`: what both networks of a run see in images, and how long they take."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from adjoined.commands.flags import parse
from adjoined.commands.options import AsJson, ChosenWeights, OfRun, OwnCode
from adjoined.errors import AdjoinedError

if TYPE_CHECKING:
    import torch

    from adjoined.report.table import Table
    from adjoined.runs.finished import FinishedRun

CALLS = 3
"""Timed calls for each image and network; the median is told."""

PURPOSE = "Classify images with both networks of a run, side by side."


@dataclass(frozen=True, kw_only=True)
class PredictOptions(AsJson, ChosenWeights, OwnCode, OfRun):
    """What to look at."""

    images: list[str] = field()
    """Image files."""
    top: int = 5
    """Classes to show, the likeliest first."""

    def __post_init__(self) -> None:
        """Check what only this command knows of."""
        if self.top < 1:
            raise AdjoinedError("out of range", where="--top", expected="at least 1", got=self.top)


def main(argv: Sequence[str]) -> None:
    """Classify and print, image by image."""
    (options,) = parse("predict", argv, PredictOptions, purpose=PURPOSE)
    import torch

    from adjoined.data import load_image, preprocess
    from adjoined.report.console import show
    from adjoined.runs.finished import open_run

    run = open_run(options.run, options.model, weights=options.weights)
    with torch.inference_mode():
        found = []
        for number, path in enumerate(options.images):
            seen = _look(run, preprocess(run.info, load_image(path)), options.top)
            if options.json:
                found.append({"image": path, "networks": seen})
            else:
                print("" if number == 0 else "\n", end="")
                show(_table(path, seen))
    if options.json:
        print(json.dumps(found, indent=1))


def _look(run: FinishedRun, x: torch.Tensor, top: int) -> list[dict[str, Any]]:
    """Return for each network its likeliest classes, their probabilities, and the time of a call, ms."""
    seen = []
    for network in run.networks:
        logits, times = network.module(x), []  # a first call is slow, and not timed
        for _ in range(CALLS):
            begin = time.perf_counter()
            network.module(x)
            times.append(1000 * (time.perf_counter() - begin))
        likeliest = logits[0].softmax(dim=0).topk(min(top, run.info.num_classes))
        guesses = [
            {"class": run.info.class_names[index], "probability": probability}
            for probability, index in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        ]
        seen.append({"name": network.label, "guesses": guesses, "milliseconds": median(times)})
    return seen


def _table(path: str, seen: Sequence[dict[str, Any]]) -> Table:
    from adjoined.report import units
    from adjoined.report.table import Table

    columns = ["", *(text for network in seen for text in (network["name"], "probability"))]
    rows = [
        (str(rank + 1), *(text for network in seen for text in _guess(network["guesses"][rank])))
        for rank in range(len(seen[0]["guesses"]))
    ]
    times = ("time", *(text for network in seen for text in ("", units.milliseconds(network["milliseconds"]))))
    return Table(tuple(columns), (*rows, times), title=path, totals=1)


def _guess(guess: dict[str, Any]) -> tuple[str, str]:
    from adjoined.report import units

    return guess["class"], units.percent(guess["probability"])
