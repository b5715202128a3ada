"""The results of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adjoined.names import check_name
from adjoined.plain import check


@dataclass(frozen=True)
class NetworkResult:
    """A finished network."""

    name: str
    """One of those in `adjoined.names`; sparse for one of full size whose small weights are zero."""
    parameters: int
    """Its parameters, all of them."""
    loss: float
    """Mean cross-entropy over the validation images, nats."""
    top1: float
    """Share of the validation images whose likeliest class is right, in [0, 1]."""
    top5: float | None
    """The same for the five likeliest classes; None where there are five classes or fewer."""
    nonzero: int | None = None
    """Parameters that are not zero, where the method sets single ones to zero."""
    running: float | None = None
    """Top-1 at the end of the last epoch, with the running statistics of the training; None where it is not known."""
    path: Path = Path()
    """Its weights, NAME.safetensors in the run folder; the JSON beside them tells how to build it. No file holds it."""


@dataclass(frozen=True)
class StageCost:
    """What one training of a run has cost."""

    name: str
    """The stage, or the method for a run's own training."""
    epochs: int
    macs: int | None
    """Multiply-adds of all forward and backward passes in training; None for a run of a version that did not count."""
    seconds: float
    """Time that the epochs took, training and validation, over all sittings."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    networks: tuple[NetworkResult, ...]
    """The base network first."""
    epochs: int
    """Epochs trained, all stages together."""
    seconds: float
    """Time that the epochs took, training and validation, over all sittings and stages."""
    images: int
    """Validation images."""
    val_name: str
    """What they are: a test set, or a split held out."""
    weights: str
    """Which weights were finished: "last" (those after the last step) or "ema" (their moving average)."""
    stages: tuple[StageCost, ...] = ()
    """What every training has cost, the run's own last."""
    statistics: int = 0
    """Training images that the running statistics of the finished networks were measured on; 0: they have none."""
    folder: Path = Path()
    """The run folder. No file holds it."""

    @property
    def macs(self) -> int | None:
        """Multiply-adds of all trainings together; None where one was not counted."""
        counted = [stage.macs for stage in self.stages if stage.macs is not None]
        return sum(counted) if self.stages and len(counted) == len(self.stages) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without paths."""
        told = asdict(self)
        networks = [{name: each[name] for name in each if name != "path"} for each in told["networks"]]
        return {name: told[name] for name in told if name != "folder"} | {"networks": networks}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> RunResult:
        """Read what `to_json` has written, for a run in this folder; where the networks lie follows from their names.

        Raises:
            AdjoinedError: an entry is missing or has no usable value.
        """
        from adjoined.schema import conform

        where = folder / "run.json"
        found = conform(cls, data, where=where)
        check(bool(found.networks), where, "at least one network", "none")
        for each in (found, *found.networks, *found.stages):
            for name, value in vars(each).items():
                check(not isinstance(value, int | float) or value >= 0, f"{where}, {name}", "at least 0", value)
        names = [check_name(each.name, where) for each in found.networks]
        check(len(set(names)) == len(names), where, "networks of different names", ", ".join(names))
        networks = (replace(each, path=folder / f"{each.name}.safetensors") for each in found.networks)
        return replace(found, networks=tuple(networks), folder=folder)
