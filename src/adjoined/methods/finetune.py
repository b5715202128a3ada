"""The base class of methods that train the base, cut a network out of it, and train that one alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from adjoined.methods.alone import Alone
from adjoined.methods.base import BuiltNetwork, Stage
from adjoined.names import BASE
from adjoined.settings import Settings


class Pruned(Alone):
    """Prunes the trained base network and continues the training of the result; a subclass defines `prune`.

    By default, epochs and learning-rate schedule repeat the earlier ones: the learning-rate rewinding of Renda et al.,
    arXiv 2003.02389, the strongest of the simple schedules.
    """

    name = "small"

    def before(self) -> tuple[Stage, ...]:
        """Return the training of the base network."""
        return (Stage(BASE, self.settings.for_method("standard")),)

    def adapt(self, model: nn.Module, example: Tensor) -> Settings:
        """Return the settings with epochs and learning rate of the second training."""
        settings = self.settings
        epochs = settings.finetune_epochs or settings.epochs
        warmup = settings.warmup_epochs * epochs / settings.epochs
        return replace(settings, epochs=epochs, warmup_epochs=warmup, lr=settings.finetune_lr or settings.lr)

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the trained base network, pruned."""
        return self.prune(earlier[BASE], example)

    @abstractmethod
    def prune(self, trained: nn.Module, example: Tensor) -> BuiltNetwork:
        """Return the pruned network; `trained` may be changed."""
