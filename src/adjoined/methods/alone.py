"""The base class of methods that train one plain network on its task alone."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import BuiltNetwork, Method, Step, TrainedNetwork
from adjoined.slicing import SlicePlan


class Alone(Method):
    """Trains one plain network; a subclass defines `build`."""

    name = "base"
    """Name of the network."""

    def built(self, network: nn.Module, plan: SlicePlan | None = None) -> BuiltNetwork:
        """Wrap a network as the result of `build`; `plan` says how it was cut out of the base network, if it was."""
        return BuiltNetwork(network, {self.name: plan})

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the task's loss."""
        logits = network(x)
        ce = self.task.loss([logits], y)
        return Step(ce, {self.name: logits}, {"ce": ce.detach()})

    def trained(self, network: nn.Module) -> nn.Module:
        """Return the network that is trained in the result of `build`, which may hold more."""
        return network

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the network's logits."""
        return {self.name: self.trained(network)(x)}

    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return the network itself."""
        return {self.name: TrainedNetwork(self.trained(built.network), built.plans[self.name])}
