"""What the methods share that train one plain network with cross-entropy."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.methods.base import Finished, Method, Step
from adjoined.slicing import SlicePlan


class Alone(Method):
    """One plain network, under one name; `build` is left to fill in."""

    name = "base"
    """Name of the network."""
    plan: SlicePlan | None = None
    """How it is cut out of the base network, for a method that builds a small one."""

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the cross-entropy."""
        logits = network(x)
        ce = self.cross_entropy(logits, y)
        return Step(ce, {self.name: logits}, {"ce": ce.detach()})

    def cross_entropy(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the mean cross-entropy, float32, nats."""
        return F.cross_entropy(logits.float(), y, label_smoothing=self.settings.label_smoothing)

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the network's logits."""
        return {self.name: network(x)}

    def plans(self, network: nn.Module) -> dict[str, SlicePlan | None]:
        """Return the one network."""
        return {self.name: self.plan}

    def finish(self, network: nn.Module) -> dict[str, Finished]:
        """Return the network itself."""
        return {self.name: Finished(network, self.plan)}
