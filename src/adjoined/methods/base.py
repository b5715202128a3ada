"""The interface of a training method; everything else about a run is the same for all methods."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.slicing import Request, SlicePlan, Slicer
from adjoined.tasks import TASKS, task_of

if TYPE_CHECKING:
    from adjoined.settings import Settings


class Step(NamedTuple):
    """The result of one forward pass in training."""

    loss: Tensor
    """The scalar to minimise."""
    logits: dict[str, Tensor]
    """Network name -> logits, of the task's shape."""
    terms: dict[str, Tensor | float]
    """Name -> scalar to log, such as a term of the loss; the same names at every measured step."""


@dataclass(frozen=True)
class BuiltNetwork:
    """The result of `Method.build`: the module to train, and the networks in it."""

    network: nn.Module
    """The module to train."""
    plans: Mapping[str, SlicePlan | None]
    """Name of each network, the base first -> how it is cut out of the base network; None if it is not."""


@dataclass(frozen=True)
class TrainedNetwork:
    """A finished network: a plain module without adjoined's classes."""

    module: nn.Module
    plan: SlicePlan | None = None
    """How it was cut out of the base network; None if it has the base network's shapes."""
    sparse: bool = False
    """Whether the method pruned single weights."""


@dataclass(frozen=True)
class Stage:
    """A training stage before the method's own: a separate run in a subfolder of the run.

    Its base network is passed on to the method, and is part of the result of the whole run.
    """

    name: str
    settings: Settings
    """All settings of the stage; `settings.method` is its method."""
    given: str | None = None
    """Folder of a finished run to use instead of this training."""
    records: bool = False
    """Whether the base network's logits in the last epochs are recorded, for a method that `replays` them."""


class Method(ABC):
    """Builds the module to train, computes its loss, and names the finished networks.

    A method holds no tensors: everything learned is in the network that it builds. Checkpoints, weight averaging and
    multi-device training therefore need not know about methods.

    Args:
        settings: the settings of the run.
    """

    ignores: ClassVar[frozenset[str]] = frozenset()
    """Settings that the method accepts although they do not affect its result."""
    samples: ClassVar[int] = 0
    """Number of training images passed to `prepare`; 0: it is not called."""
    small_rate: ClassVar[float] = 1.0
    """Factor on the learning rate of the small networks' private parameters."""
    from_pretrained: ClassVar[bool] = True
    """Whether the model passed to `build` has pretrained weights, if the settings request them."""
    replays: ClassVar[bool] = False
    """Whether every step needs the logits that the stage of the base network recorded for its images."""
    extra: ClassVar[str] = ""
    """The extra of adjoined that installs a library that the method needs."""
    library: ClassVar[str] = ""
    """The import name of that library."""

    tasks: ClassVar[frozenset[str]] = frozenset(TASKS)
    """Tasks that the method can train."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.task = task_of(settings)

    def check(self) -> None:
        """Check the method's requirements before any training.

        Raises:
            AdjoinedError: a library is not installed, or a setting does not fit the method.
        """
        if self.task.kind not in self.tasks:
            raise AdjoinedError(
                f"the method does not train {self.task.kind}",
                where=f"--method {self.settings.method} with --data {self.settings.data}",
                expected=f"data for {' or '.join(sorted(self.tasks))}",
                fix="Use --method adjoint+.",
            )
        if self.library and find_spec(self.library) is None:
            raise AdjoinedError(
                f"the library {self.library} is not installed",
                where=f"--method {self.settings.method}",
                fix=f"Install it: pip install 'adjoined[{self.extra}]'.",
            )

    def before(self) -> tuple[Stage, ...]:
        """Return the earlier stages, in order."""
        return ()

    def adapt(self, model: nn.Module, example: Tensor) -> Settings:
        """Return the settings of this method's own training; epochs and learning rates may differ.

        Args:
            model: the base network, as for `build`.
            example: an example input of the model.
        """
        return self.settings

    @abstractmethod
    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the network to train, with the slice plans of its parts.

        Args:
            model: the untrained base network; it is used, not copied.
            example: an example input of the model, float32 (1, C, H, W).
            earlier: the finished networks of earlier stages, by name of the stage.

        Raises:
            AdjoinedError: the model cannot be trained by this method with these settings.
        """

    def prepare(self, built: BuiltNetwork, x: Tensor, y: Tensor) -> None:
        """Adapt the weights to some training images before the first step.

        A resumed run finds the result in its checkpoint; the networks keep their shapes and plans.

        Args:
            built: the result of `build`, in training mode.
            x: images, augmented as in training, float (N, C, H, W), on the device of the network.
            y: class indices, int64 (N,).
        """
        return

    @abstractmethod
    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return loss and logits of a batch.

        Args:
            network: the network that `build` returned, in training mode.
            x: images, float (N, C, H, W).
            y: the targets of the task: for classification class indices, int64 (N,), or probabilities, float (N, K).
            progress: fraction of the optimizer steps done, in [0, 1).
            measure: whether to compute display-only terms as well.

        Returns:
            Logits by network, with the names and in the order of the plans of `build`.
        """

    def apart(self, network: nn.Module) -> list[nn.Module]:
        """Return the parts of the network that share no weights, whose gradients are clipped separately."""
        return [network]

    @abstractmethod
    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the outputs of every trained network, float (N, K) or (N, K, H, W); it is in evaluation mode."""

    @abstractmethod
    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return every trained network as a plain module with its own tensors, the base network first.

        Args:
            built: the trained result of `build`, in evaluation mode.
        """


def the_small_plan(settings: Settings, model: nn.Module, example: Tensor) -> SlicePlan:
    """Return the slice plan of the single small network that the settings define.

    Raises:
        AdjoinedError: the settings define a family.
    """
    request = Request.of(settings)
    if len(request.alphas) > 1:
        raise AdjoinedError(
            f"the method {settings.method} has one small network",
            where="--alpha",
            expected="one number",
            got=", ".join(f"{alpha:g}" for alpha in request.alphas),
            fix="Use --method adjoint+ to train several.",
        )
    return Slicer(model, example).plans(request)[0]
