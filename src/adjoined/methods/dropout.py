"""The base network with dropout: the regulariser that the paper compares with."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.alone import Alone
from adjoined.methods.base import BuiltNetwork, TrainedNetwork
from adjoined.slicing import last_linear


class Dropout(Alone):
    """Train the base network with cross-entropy and dropout before its last linear layer.

    Source: Srivastava et al., "Dropout", JMLR 2014, placed as in the classifiers of Wide ResNets and EfficientNets,
    which works for every model with a linear classifier.
    """

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the model with a dropout hook."""
        name = last_linear(model, example)
        if name is None:
            raise AdjoinedError(
                "the model has no linear layer for dropout", where="--method dropout", got=type(model).__name__
            )
        model.get_submodule(name).register_forward_pre_hook(_Drop(self.settings.dropout_rate))
        return self.built(model)

    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return the model without the dropout."""
        plain = copy.deepcopy(built.network)
        for module in plain.modules():
            for key, hook in list(module._forward_pre_hooks.items()):
                if isinstance(hook, _Drop):
                    del module._forward_pre_hooks[key]
        return {self.name: TrainedNetwork(plain)}


class _Drop:
    """A hook that drops inputs of a module while it is in training."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (F.dropout(args[0], self.rate, module.training), *args[1:])
