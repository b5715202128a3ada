"""What a training method has to say; everything else about a run is the same for all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from adjoined.settings import Settings
    from adjoined.slicing import SlicePlan


class Step(NamedTuple):
    """What one forward pass in training gives."""

    loss: Tensor
    """The scalar to minimise."""
    logits: dict[str, Tensor]
    """Network name -> logits (N, C)."""
    terms: dict[str, Tensor | float]
    """Name -> scalar to log, the parts of the loss and the like; the same names at every measured step."""


@dataclass(frozen=True)
class Finished:
    """A network as it leaves the run: a plain module, nothing of adjoined in it."""

    module: nn.Module
    plan: SlicePlan | None = None
    """How it was cut out of the base network; None for the base network itself."""


class Method(ABC):
    """Builds what is trained, gives its loss, and names the finished networks.

    A method holds no tensors: everything that is learned is in the network that it builds, so that checkpoints,
    averages of the weights and several devices need to know nothing of methods.

    Args:
        settings: the settings of the run.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @abstractmethod
    def build(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return the network to train.

        Args:
            model: the base network, used, not copied.
            example: an input as the model takes it, float32 (1, C, H, W).

        Raises:
            AdjoinedError: the model cannot be trained by this method with these settings.
        """

    @abstractmethod
    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return loss and logits of a batch.

        Args:
            network: what `build` returned, in training mode.
            x: images, float (N, C, H, W).
            y: class indices, int64 (N,), or class probabilities, float (N, K).
            progress: share of the optimizer steps done, in [0, 1).
            measure: whether to compute terms that are only for the eye, too.
        """

    @abstractmethod
    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of every network, float (N, K); the network is in evaluation mode."""

    @abstractmethod
    def plans(self, network: nn.Module) -> Mapping[str, SlicePlan | None]:
        """Return the names of all networks, the base network first, and how each is cut out of it."""

    @abstractmethod
    def finish(self, network: nn.Module) -> dict[str, Finished]:
        """Return every network as a plain module with tensors of its own, the base network first."""


def small_names(count: int) -> tuple[str, ...]:
    """Return the names of the small networks of a run.

    Example:
        >>> small_names(1), small_names(2)
        (('small',), ('small-1', 'small-2'))
    """
    return ("small",) if count == 1 else tuple(f"small-{i + 1}" for i in range(count))
