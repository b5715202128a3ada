"""Plain training of the base network alone: the reference for every other method."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adjoined.method_settings import SMALL_ONLY
from adjoined.methods.alone import Alone
from adjoined.methods.base import BuiltNetwork


class Standard(Alone):
    """Train the base network with cross-entropy."""

    ignores = SMALL_ONLY

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the model itself."""
        return self.built(model)
