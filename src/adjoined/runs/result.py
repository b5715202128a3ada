"""The results of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adjoined.kinds import Measures
from adjoined.names import check_name
from adjoined.plain import check


@dataclass(frozen=True)
class NetworkResult(Measures):
    """A finished network, with its quality on the validation images."""

    name: str
    """A name from `adjoined.names`; "sparse" for a network of full size with its smallest weights set to zero."""
    parameters: int
    """Number of parameters."""
    loss: float
    """Mean loss over the validation images, nats."""
    nonzero: int | None = None
    """Nonzero parameters, if the method prunes single weights."""
    running: float | None = None
    """The main measure at the end of the last epoch, with the running statistics of the training; None: not known."""
    path: Path = Path()
    """Its weights, NAME.safetensors in the run folder, beside a JSON to build it from. Not saved in the result."""


@dataclass(frozen=True)
class StageCost:
    """The cost of one training stage of a run."""

    name: str
    """Name of the stage, or the method for a run's own training."""
    epochs: int
    macs: int | None
    """Multiply-adds of all forward and backward passes in training; None for networks from your own loop."""
    seconds: float
    """Time of all epochs, training and validation, over all sessions, s."""


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    networks: tuple[NetworkResult, ...]
    """The base network first."""
    epochs: int
    """Epochs trained, over all stages."""
    seconds: float
    """Time of all epochs, training and validation, over all sessions and stages, s."""
    images: int
    """Validation images."""
    val_name: str
    """Description of these images: a test set, or a held-out split."""
    weights: str
    """Which weights the networks have: "last" (those after the last step) or "ema" (their moving average)."""
    stages: tuple[StageCost, ...]
    """The cost of every training stage, the run's own training last."""
    statistics: int = 0
    """Training images that the running statistics of the finished networks were measured on; 0: they have none."""
    folder: Path = Path()
    """The run folder. Not saved in the result."""

    @property
    def macs(self) -> int | None:
        """Multiply-adds of all training stages; None if one was not counted."""
        counted = [stage.macs for stage in self.stages if stage.macs is not None]
        return sum(counted) if len(counted) == len(self.stages) else None

    @property
    def own_loop(self) -> bool:
        """Whether `adjoined.save` wrote it: the settings then tell model and data, but not the training."""
        return self.epochs == 0

    def to_json(self) -> dict[str, Any]:
        """Return plain data, without paths."""
        content = asdict(self)
        networks = [{name: each[name] for name in each if name != "path"} for each in content["networks"]]
        return {name: content[name] for name in content if name != "folder"} | {"networks": networks}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> RunResult:
        """Read data written by `to_json`, for a run in this folder; the networks' paths follow from their names.

        Raises:
            AdjoinedError: an entry is missing or has no usable value.
        """
        from adjoined.schema import conform

        where = folder / "run.json"
        found = conform(cls, data, where=where)
        check(bool(found.networks), where, "at least one network", "none")
        check(bool(found.stages), where, "at least one stage", "none")
        for each in (found, *found.networks, *found.stages):
            for name, value in vars(each).items():
                check(not isinstance(value, int | float) or value >= 0, f"{where}, {name}", "at least 0", value)
        names = [check_name(each.name, where) for each in found.networks]
        check(len(set(names)) == len(names), where, "networks of different names", ", ".join(names))
        networks = (replace(each, path=folder / f"{each.name}.safetensors") for each in found.networks)
        return replace(found, networks=tuple(networks), folder=folder)
