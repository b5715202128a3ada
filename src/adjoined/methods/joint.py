"""What the methods share that train base and small networks on shared weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adjoined.methods.base import Finished, Method, small_names
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.slicing import SlicePlan


class Joint(Method):
    """Base and small networks on shared weights; the loss is left to fill in."""

    reads = frozenset({"order", "private_norms", "private_head", "masking_factor"})

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> AdjoinedNetwork:
        """Return base and small networks on shared weights."""
        settings = self.settings
        return adjoin(
            model,
            example,
            alpha=settings.alpha,
            keep=tuple(settings.keep),
            round_to=settings.round_to,
            compress=settings.compress,
            widths=settings.widths,
            order=settings.order,
            private_norms=settings.private_norms,
            private_head=settings.private_head,
            masking_factor=settings.masking_factor,
        )

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of base and small networks."""
        return dict(zip(self.plans(network), network(x), strict=True))

    def plans(self, network: nn.Module) -> dict[str, SlicePlan | None]:
        """Return base, small; or base, small-1, small-2 …"""
        plans = _joint(network).plans
        return {"base": None, **dict(zip(small_names(len(plans)), plans, strict=True))}

    def finish(self, network: nn.Module) -> dict[str, Finished]:
        """Return the base network and every small one, cut out."""
        joint = _joint(network)
        small = {
            name: Finished(joint.extract(which), plan, sparse=self.settings.masking_factor > 0)
            for which, (name, plan) in enumerate(zip(small_names(len(joint.plans)), joint.plans, strict=True))
        }
        return {"base": Finished(joint.base), **small}


def _joint(network: nn.Module) -> AdjoinedNetwork:
    assert isinstance(network, AdjoinedNetwork)
    return network
