"""Plain training of the base network alone: what every other method is compared with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adjoined.methods.alone import Alone


class Standard(Alone):
    """Train the base network with cross-entropy."""

    ignores = frozenset({"alpha", "compress", "keep", "round_to"})

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> nn.Module:
        """Return the model itself."""
        return model
