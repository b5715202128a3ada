"""What a run has come to."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class NetworkResult:
    """A finished network."""

    name: str
    """base, small, or small-1, small-2 …"""
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


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    networks: tuple[NetworkResult, ...]
    """The base network first."""
    epochs: int
    """Epochs trained."""
    seconds: float
    """Time that the epochs took, training and validation, over all sittings."""
    images: int
    """Validation images."""
    val_name: str
    """What they are: a test set, or a split held out."""
    weights: str
    """Which weights were finished: "last" (those after the last step) or "ema" (their moving average)."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data; paths are relative to the folder."""
        networks = [{**asdict(each), "path": each.path.name} for each in self.networks]
        return {**asdict(self), "networks": networks, "folder": None}

    @classmethod
    def from_json(cls, data: dict[str, Any], folder: Path) -> RunResult:
        """Read what `to_json` has written."""
        networks = tuple(NetworkResult(**{**each, "path": folder / each["path"]}) for each in data["networks"])
        return cls(**{**data, "networks": networks, "folder": folder})
