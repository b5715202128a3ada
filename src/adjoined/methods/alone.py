"""The base class of methods that train one plain network on its task alone."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import Built, Finished, Method, Step
from adjoined.slicing import SlicePlan


class Alone(Method):
    """Trains one plain network; a subclass defines `build`."""

    name = "base"
    """Name of the network."""

    def built(self, network: nn.Module, plan: SlicePlan | None = None) -> Built:
        """Wrap a network as the result of `build`; `plan` says how it was cut out of the base network, if it was."""
        return Built(network, {self.name: plan})

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the task's loss."""
        logits = network(x)
        ce = self.task.loss([logits], y)
        return Step(ce, {self.name: logits}, {"ce": ce.detach()})

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the network's logits."""
        return {self.name: network(x)}

    def finish(self, built: Built) -> dict[str, Finished]:
        """Return the network itself."""
        return {self.name: Finished(built.network, built.plans[self.name])}
