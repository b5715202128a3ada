"""The method of the paper: base and small network on shared weights, CE(p, y) + λ(t) · KL(p ‖ q)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adjoined.loss import adjoint_terms, kl_weight
from adjoined.methods.base import Finished, Method, Step, small_names
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.penalty import quadratic_penalty
from adjoined.slicing import SlicePlan


class Adjoint(Method):
    """Train both networks in one pass, the small one towards the base, the base towards what both can do."""

    def build(self, model: nn.Module, example: Tensor) -> AdjoinedNetwork:
        """Return base and small networks on shared weights."""
        settings = self.settings
        return adjoin(
            model,
            example,
            alpha=settings.alpha,
            keep=tuple(settings.keep),
            round_to=settings.round_to,
            compress=settings.compress,
        )

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the adjoint loss; λ depends on the share of the training done alone."""
        p, *family = network(x)
        ce, kl = adjoint_terms(p, family, y, label_smoothing=self.settings.label_smoothing)
        weight = kl_weight(progress)
        terms: dict[str, Tensor | float] = {"ce": ce.detach(), "kl": kl.detach(), "lambda": weight}
        if measure:
            with torch.no_grad():
                terms["penalty"] = torch.stack([quadratic_penalty(p.float(), q.float()) for q in family]).sum()
        return Step(ce + weight * kl, dict(zip(self.plans(network), (p, *family), strict=True)), terms)

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
            name: Finished(joint.extract(which), plan)
            for which, (name, plan) in enumerate(zip(small_names(len(joint.plans)), joint.plans, strict=True))
        }
        return {"base": Finished(joint.base), **small}


def _joint(network: nn.Module) -> AdjoinedNetwork:
    assert isinstance(network, AdjoinedNetwork)
    return network
