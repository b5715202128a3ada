"""The base class of methods that train base and small networks on shared weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from adjoined.methods.base import BuiltNetwork, Method, TrainedNetwork
from adjoined.names import small_names
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.slicing import Request

T = TypeVar("T")


class Joint(Method):
    """Trains base and small networks on shared weights; a subclass defines the loss."""

    @property
    def joining(self) -> dict[str, Any]:
        """Settings of `adjoin` besides the request: what is private, and how the networks share the rest."""
        return {"private_head": self.settings.private_head}

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return base and small networks on shared weights."""
        settings = self.settings
        network = adjoin(model, example, **vars(Request.of(settings)), order=settings.order, **self.joining)
        return BuiltNetwork(network, named([None, *network.plans]))

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of base and small networks."""
        return named(network(x))

    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return the base network and every small one, cut out."""
        joint = built.network
        assert isinstance(joint, AdjoinedNetwork)
        modules = named([joint.base, *(joint.extract(which) for which in range(len(joint.plans)))])
        return {name: TrainedNetwork(module, built.plans[name]) for name, module in modules.items()}


def named(each: Sequence[T]) -> dict[str, T]:
    """Return values of base and small networks by the networks' names.

    Example:
        >>> named([0, 1]), named([0, 1, 2])
        ({'base': 0, 'small': 1}, {'base': 0, 'small-1': 1, 'small-2': 2})
    """
    return dict(zip(("base", *small_names(len(each) - 1)), each, strict=True))
