"""The method of the paper: base and small network on shared weights, CE(p, y) + λ(t) · KL(p ‖ q)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adjoined.loss import adjoint_terms, kl_weight, sum_cross_entropy
from adjoined.methods.base import Step
from adjoined.methods.joint import Joint
from adjoined.penalty import quadratic_penalty
from adjoined.settings import Settings


class Adjoint(Joint):
    """Train both networks in one pass, the small one towards the base, the base towards what both can do."""

    reads = Joint.reads | {"kl_schedule", "kl_scale", "kl_detach", "kl_direction", "small_ce", "temperature"}

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the adjoint loss; λ depends on the share of the training done alone."""
        settings = self.settings
        p, *family = network(x)
        ce, kl = adjoint_terms(
            p,
            family,
            y,
            label_smoothing=settings.label_smoothing,
            detach=settings.kl_detach,
            direction=settings.kl_direction,
            temperature=settings.temperature or 1.0,
        )
        weight = settings.kl_scale * kl_weight(progress, settings.kl_schedule)
        terms: dict[str, Tensor | float] = {"ce": ce.detach(), "kl": kl.detach(), "lambda": weight}
        loss = ce + weight * kl
        if settings.small_ce:
            small = sum_cross_entropy(family, y, label_smoothing=settings.label_smoothing)
            loss, terms = loss + settings.small_ce * small, {**terms, "small_ce": small.detach()}
        if measure:
            with torch.no_grad():
                terms["penalty"] = torch.stack([quadratic_penalty(p.float(), q.float()) for q in family]).sum()
        return Step(loss, dict(zip(self.plans(network), (p, *family), strict=True)), terms)


class AdjointPlus(Adjoint):
    """The adjoint method with the settings that served both networks best in short comparisons: nothing to tune.

    The small network has a last layer of its own, so that the base's is left to the base. The KL term, at temperature
    4, trains the small network only (detached), beside a cross-entropy of the small network's own; λ rises as in the
    paper. docs/results.md has what that was chosen from, and what it gave.
    """

    reads = frozenset({"order"})

    def __init__(self, settings: Settings) -> None:
        chosen = {"kl_detach": True, "small_ce": 1.0, "temperature": 4.0, "private_head": True}
        super().__init__(settings.for_method("adjoint", **chosen))

    def adapt(self, model: nn.Module, example: Tensor) -> Settings:
        """Return the settings under the name of this method."""
        return self.settings.for_method("adjoint+")
