"""Two full-width branches on shared weights: the adjoint method without a small network."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import Step
from adjoined.methods.standard import Standard
from adjoined.objective import kl_weight


class Siamese(Standard):
    """Train the base network to give similar outputs for two augmented views of each image.

    The loss is the paper's, CE(p₁, y) + λ(t) · KL(p₁ ‖ p₂), with the second branch at full width: p₁ and p₂ are the
    same network's outputs for two views, in one batch. The branches follow Bertinetto et al., "Fully-convolutional
    Siamese networks", arXiv 1606.09549; the loss does not, as theirs compares positions in a video.
    """

    views = 2
    tasks = frozenset({"classification", "multilabel"})

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the loss; x is (N, 2, C, H, W)."""
        p, other = network(x.flatten(0, 1)).unflatten(0, (len(x), 2)).unbind(1)
        ce, kl = self.task.terms(p, other, y)
        weight = kl_weight(progress)
        return Step(ce + weight * kl, {self.name: p}, {"ce": ce.detach(), "kl": kl.detach(), "lambda": weight})
