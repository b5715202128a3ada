"""Options that several commands share, each with its help; a command's options class inherits those it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """The run."""

    run: str
    """The run folder, or hub:OWNER/NAME."""


@dataclass(frozen=True, kw_only=True)
class OwnCode:
    """A model of your own."""

    model: str | None = None
    """FILE.py:FUNCTION or package.module:FUNCTION, for a run of your own model: no file decides which code runs."""


@dataclass(frozen=True, kw_only=True)
class ChosenWeights:
    """Which weights."""

    weights: Literal["last", "best", "final"] = "final"
    """The finished networks, those of the last checkpoint, or those of the epoch with the best small network; last and
    best also work for a stopped run."""


@dataclass(frozen=True, kw_only=True)
class OfData:
    """The data."""

    data_root: str | None = None
    """Folder that holds the data sets; none: the run's."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Loading images."""

    workers: int = 0
    """Processes that load images; 0 loads them in this process."""


@dataclass(frozen=True, kw_only=True)
class AsJson:
    """Output."""

    json: bool = False
    """Print everything as JSON instead of tables."""


@dataclass(frozen=True, kw_only=True)
class FromRecipe:
    """The starting point of the settings."""

    recipe: str | None = None
    """Named settings to start from."""
