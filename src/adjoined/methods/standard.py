"""Plain training of the base network alone: what every other method is compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.methods.base import Finished, Method, Step


class Standard(Method):
    """Train the base network with cross-entropy."""

    def build(self, model: nn.Module, example: Tensor) -> nn.Module:
        """Return the model itself."""
        return model

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the cross-entropy."""
        logits = network(x)
        ce = F.cross_entropy(logits.float(), y, label_smoothing=self.settings.label_smoothing)
        return Step(ce, {"base": logits}, {"ce": ce.detach()})

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the model's logits."""
        return {"base": network(x)}

    def plans(self, network: nn.Module) -> dict[str, None]:
        """Return the base network alone."""
        return {"base": None}

    def finish(self, network: nn.Module) -> dict[str, Finished]:
        """Return the model itself."""
        return {"base": Finished(network)}
