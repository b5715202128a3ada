"""The figures of a run in result.json: written when the run finishes, read only here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adjoined.errors import AdjoinedError
from adjoined.json_files import read_json, write_json
from adjoined.report.figures import Figures
from adjoined.schema import conform
from adjoined.slicing import measure_cost

if TYPE_CHECKING:
    from adjoined.benchmark.turns import Latency
    from adjoined.runs import RunResult
    from adjoined.runs.finished import FinishedRun

NAME = "result.json"


def figures_from(run: FinishedRun, times: Mapping[str, Latency | None] | None = None) -> list[Figures]:
    """Return sizes and accuracies of a run's networks, the base network first."""
    example = run.example()
    return [
        Figures.of(
            network.label,
            measure_cost(network.module, example),
            file_bytes=network.result.path.stat().st_size,
            latency=(times or {}).get(network.name),
            **network.result.measures(),
        )
        for network in run.networks
    ]


def keep_figures(result: RunResult, figures: Sequence[Figures], folder: Path) -> None:
    """Write result.json into a run folder atomically."""
    content: dict[str, Any] = result.to_json()
    for network, measured in zip(content["networks"], figures, strict=True):
        network["figures"] = asdict(measured)
    write_json(folder / NAME, content)


def kept_figures(folder: Path) -> list[Figures]:
    """Return the figures in a run's result.json; empty if there is no such file.

    Raises:
        AdjoinedError: the file is damaged.
    """
    path = folder / NAME
    if not path.is_file():
        return []
    fix = "Delete the file: the figures will be measured again."
    content = read_json(path, "the result of a run")
    networks = conform(list[dict[str, Any]], content.get("networks"), where=path, fix=fix)
    found = [conform(Figures, network.get("figures"), where=path, fix=fix) for network in networks]
    for each in found:
        for name, value in vars(each).items():
            if isinstance(value, int | float) and value < 0:
                raise AdjoinedError("a value does not fit", where=path, expected=f"{name} of at least 0", fix=fix)
    return found
