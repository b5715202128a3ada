"""The method of the paper: base and small network on shared weights, CE(p, y) + λ(t) · KL(p ‖ q)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from adjoined.methods.base import Step
from adjoined.methods.joint import Joint, named
from adjoined.network import ADJOINT_PLUS
from adjoined.objective import kl_weight


@dataclass(frozen=True)
class Mix:
    """The parts of the adjoint loss; the defaults are the paper's."""

    schedule: Literal["paper", "constant"] = "paper"
    """Schedule of λ over the run."""
    detach: bool = False
    """Whether the KL term trains the small network only."""
    temperature: float = 1.0
    """Temperature of the KL term."""
    small_ce: float = 0.0
    """Weight of the small network's own cross-entropy, in addition to the KL term; λ multiplies both."""


class Adjoint(Joint):
    """Train both networks in one pass: the small one imitates the base, which is regularised towards it."""

    @property
    def mix(self) -> Mix:
        """The loss that the settings define."""
        settings = self.settings
        return Mix(settings.kl_schedule, settings.kl_detach, settings.temperature or 1.0, settings.small_ce)

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the adjoint loss; λ depends only on the fraction of training done."""
        mix = self.mix
        p, *family = network(x)
        ce, kl = self.task.terms(p, family, y, detach=mix.detach, temperature=mix.temperature)
        weight = kl_weight(progress, mix.schedule)
        terms: dict[str, Tensor | float] = {"ce": ce.detach(), "kl": kl.detach(), "lambda": weight}
        of_small = kl
        if mix.small_ce:
            small = self.task.loss(family, y)
            of_small, terms = kl + mix.small_ce * small, {**terms, "small_ce": small.detach()}
        if measure:
            with torch.no_grad():
                terms["penalty"] = torch.stack([self.task.penalty(p, q) for q in family]).sum()
        return Step(ce + weight * of_small, named([p, *family]), terms)


class AdjointPlus(Adjoint):
    """The adjoint method with the loss that was best for both networks in short comparisons, without settings.

    The small network has a private last layer, so that the base's serves only the base. The KL term, at temperature 4,
    trains only the small network (detached), together with the small network's own cross-entropy. λ, as in the paper,
    multiplies both, so the base starts alone. The shared weights get half of the small network's gradients, so that the
    base dominates them. benchmarks/results/README.md has the comparisons.
    """

    @property
    def joining(self) -> dict[str, Any]:
        """A private head and half of the gradient, which are part of the method."""
        return ADJOINT_PLUS

    @property
    def mix(self) -> Mix:
        """The loss, which no setting changes."""
        return Mix(detach=True, temperature=4.0, small_ce=1.0)
