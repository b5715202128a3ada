"""A failed attempt to run the small network."""

from __future__ import annotations

from dataclasses import dataclass

from adjoined.slicing.flow.labels import OutOfStep
from adjoined.slicing.flow.sizes import Mismatch
from adjoined.slicing.plan.reasons import Kind, Reason

Progress = tuple[int, int]
"""How far a run got: number of operators, position of the wrong size among the last one's arguments."""


@dataclass
class Failure:
    """A failed attempt to run the small network."""

    error: Exception
    module: str
    """The module that ran."""
    steps: int
    """Number of operators that had run."""
    last: tuple[int, ...] = ()
    """Labels of the channels that the last of them returned."""

    @property
    def progress(self) -> Progress:
        """How far the run got; later is greater."""
        return self.steps, self.error.position if isinstance(self.error, Mismatch) else 0

    @property
    def labels(self) -> tuple[int, ...]:
        """Labels of the channels concerned, as far as they are known."""
        return self.error.labels if isinstance(self.error, OutOfStep) else self.last

    @property
    def why(self) -> Reason:
        """Why the channels concerned stay at full width, if nothing helps."""
        if isinstance(self.error, OutOfStep):
            return self.error.why
        return Reason(Kind.DOES_NOT_RUN, f"{type(self.error).__name__}: {self.error} in '{self.module}'")
