"""What a training method defines; everything else about a run is the same for all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing import Request, SlicePlan, Slicer

if TYPE_CHECKING:
    from adjoined.settings import Settings


class Step(NamedTuple):
    """What one forward pass in training returns."""

    loss: Tensor
    """The scalar to minimise."""
    logits: dict[str, Tensor]
    """Network name -> logits (N, C)."""
    terms: dict[str, Tensor | float]
    """Name -> scalar to log, such as the parts of the loss; the same names at every measured step."""


@dataclass(frozen=True)
class Built:
    """What a method trains: one module, and the networks in it."""

    network: nn.Module
    """What is trained, as one module."""
    plans: Mapping[str, SlicePlan | None]
    """Name of each network in it, the base network first -> how it is cut out of the base network; None: it is not."""


@dataclass(frozen=True)
class Finished:
    """A finished network: a plain module, with nothing of adjoined in it."""

    module: nn.Module
    plan: SlicePlan | None = None
    """How it was cut out of the base network; None for one that has the base network's shapes."""
    sparse: bool = False
    """Whether the method has set single weights to zero."""


@dataclass(frozen=True)
class Stage:
    """A training before the method's own: a run by itself, in a folder of the run."""

    name: str
    settings: Settings
    """All of them; `settings.method` says how this stage trains."""
    network: str = "base"
    """Which of its finished networks the later stages get."""
    carried: bool = False
    """Whether that network is part of the result of the whole run."""
    given: str | None = None
    """Folder of a finished run to use instead of this training."""


class Method(ABC):
    """Builds what is trained, gives its loss, and names the finished networks.

    A method holds no tensors: everything that is learned is in the network that it builds. Checkpoints, averages of the
    weights and several devices therefore need to know nothing about methods.

    Args:
        settings: the settings of the run.
    """

    ignores: ClassVar[frozenset[str]] = frozenset()
    """Settings that the method takes, although they make no difference to what it computes."""
    views: ClassVar[int] = 1
    """Augmented views of each training image; above 1, x is (N, views, C, H, W)."""
    samples: ClassVar[int] = 0
    """Training images that `prepare` gets; 0: it is not called."""
    small_rate: ClassVar[float] = 1.0
    """Factor on the learning rate of what small networks have for themselves."""
    from_pretrained: ClassVar[bool] = True
    """Whether the model that `build` gets has pretrained weights, where the settings ask for them."""
    extra: ClassVar[str] = ""
    """The extra of adjoined with a library that the method needs."""
    library: ClassVar[str] = ""
    """That library, as it is imported."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def check(self) -> None:
        """Check before any training that nothing is missing.

        Raises:
            AdjoinedError: a library is not installed, or a setting does not fit the method.
        """
        if self.library and find_spec(self.library) is None:
            raise AdjoinedError(
                f"the library {self.library} is not installed",
                where=f"--method {self.settings.method}",
                fix=f"Install it: pip install 'adjoined[{self.extra}]'.",
            )

    def before(self) -> tuple[Stage, ...]:
        """Return the stages before, in order.

        If a stage needs others before it, its own `before` is the beginning of this list.
        """
        return ()

    def adapt(self, model: nn.Module, example: Tensor) -> Settings:
        """Return the settings of this method's own training; epochs and learning rates may differ.

        Args:
            model: the base network, as for `build`.
            example: an input as the model takes it.
        """
        return self.settings

    @abstractmethod
    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> Built:
        """Return the network to train, with the slice plans of its parts.

        Args:
            model: the base network as it is before any training, used, not copied.
            example: an input as the model takes it, float32 (1, C, H, W).
            earlier: the finished networks of the stages before, by name of the stage.

        Raises:
            AdjoinedError: the model cannot be trained by this method with these settings.
        """

    def prepare(self, built: Built, x: Tensor, y: Tensor) -> None:
        """Change the weights before the first step, by what they do with some training images.

        A run that is resumed finds the outcome in its checkpoint; the networks keep their shapes and plans.

        Args:
            built: what `build` returned, in training mode.
            x: images, varied as in training, float (N, C, H, W), on the device of the network.
            y: class indices, int64 (N,).
        """
        return

    @abstractmethod
    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return loss and logits of a batch.

        Args:
            network: the one that `build` returned, in training mode.
            x: images, float (N, C, H, W).
            y: class indices, int64 (N,), or class probabilities, float (N, K).
            progress: share of the optimizer steps done, in [0, 1).
            measure: whether to compute terms that are only shown as well.

        Returns:
            Logits under the names that the plans of `build` have, in their order.
        """

    @abstractmethod
    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of every network trained, float (N, K); the network is in evaluation mode."""

    @abstractmethod
    def finish(self, built: Built) -> dict[str, Finished]:
        """Return every network trained as a plain module with tensors of its own, the base network first.

        Args:
            built: what `build` returned, trained, in evaluation mode.
        """


def the_small_plan(settings: Settings, model: nn.Module, example: Tensor) -> SlicePlan:
    """Return the slice plan of the one small network that the settings ask for.

    Raises:
        AdjoinedError: they ask for a family.
    """
    request = Request.of(settings)
    if len(request.alphas) > 1:
        raise AdjoinedError(
            f"the method {settings.method} has one small network",
            where="--alpha",
            expected="one number",
            got=", ".join(f"{alpha:g}" for alpha in request.alphas),
        )
    return Slicer(model, example).plans(request)[0]
