"""What a run has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NetworkResult:
    """A finished network."""

    name: str
    """base, small, or small-1, small-2 …; sparse for one of full size whose small weights are zero."""
    parameters: int
    """Its parameters, all of them."""
    loss: float
    """Mean cross-entropy over the validation images, nats."""
    top1: float
    """Share of the validation images whose likeliest class is right, in [0, 1]."""
    top5: float | None
    """The same for the five likeliest classes; None where there are five classes or fewer."""
    path: Path
    """Its weights; the JSON beside them tells how to build it."""
    nonzero: int | None = None
    """Parameters that are not zero, where the method sets single ones to zero."""


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

    folder: Path
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

    @property
    def macs(self) -> int | None:
        """Multiply-adds of all trainings together; None where one was not counted."""
        counted = [stage.macs for stage in self.stages if stage.macs is not None]
        return sum(counted) if self.stages and len(counted) == len(self.stages) else None

    def to_json(self) -> dict[str, Any]:
        """Return plain data; paths are relative to the folder."""
        networks = [{**asdict(each), "path": each.path.name} for each in self.networks]
        return {**asdict(self), "networks": networks, "folder": None}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> RunResult:
        """Read what `to_json` has written."""
        networks = tuple(NetworkResult(**{**each, "path": folder / each["path"]}) for each in data["networks"])
        stages = tuple(StageCost(**each) for each in data.get("stages", ()))
        return cls(**{**data, "networks": networks, "folder": folder, "stages": stages})
