"""Slimmable networks: base and small networks on shared weights, without the paper's KL term."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import Step
from adjoined.methods.joint import Joint, named


class Slimmable(Joint):
    """Train base and small networks with a cross-entropy each.

    Source: Yu et al., "Slimmable neural networks", arXiv 1812.08928. Norms are private ("switchable").
    """

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the sum of the cross-entropies."""
        p, *family = network(x)
        ce, small = self.task.loss([p], y), self.task.loss(family, y)
        return Step(ce + small, named([p, *family]), {"ce": ce.detach(), "small_ce": small.detach()})


class SlimmableDistill(Joint):
    """Train the base network with cross-entropy and every small one to match the base's current probabilities.

    Source: Yu and Huang, "Universally slimmable networks", arXiv 1903.05134, in-place distillation. Here the widths
    come from `--alpha` (none are random), and norms are private. A cross-entropy with soft targets differs from the KL
    term by the base's entropy, which has no gradient here.
    """

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return CE(p, y) + KL(p ‖ q), with p detached in the KL term."""
        p, *family = network(x)
        ce, kl = self.task.terms(p, family, y, detach=True)
        return Step(ce + kl, named([p, *family]), {"ce": ce.detach(), "kl": kl.detach()})
