"""Fine-tuning from pretrained weights: the small network inherits from the base and learns alongside it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from adjoined.methods.base import BuiltNetwork, Step
from adjoined.methods.joint import Joint, named
from adjoined.network import AdjoinedNetwork
from adjoined.transfer import inherit_important


class Transfer(Joint):
    """Fine-tune the base exactly as it would be alone, with a small network of separate weights alongside.

    Before the first step, a few hundred training images are used to fit a trial head to the pretrained features, to
    rank the channels by the change of the loss without them, and to fit each small network's layers to the base's
    activations on the most important ones (`adjoined.inherit`). The trial head is then dropped. Both networks learn
    from the labels, and the small one also from the base's logits; no gradient of its loss reaches the base.
    """

    tasks = frozenset({"classification"})
    samples = 768
    small_rate = 2.0

    @property
    def joining(self) -> dict[str, Any]:
        """Each network has its own weights."""
        return {"private": ("*",)}

    def prepare(self, built: BuiltNetwork, x: Tensor, y: Tensor) -> None:
        """Let the small networks inherit the base's most important channels."""
        assert isinstance(built.network, AdjoinedNetwork)
        inherit_important(built.network, x, y)

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return CE(p, y) + CE(q, y) + T² KL(p ‖ q), with p detached in the KL term."""
        p, *family = network(x)
        temperature = self.settings.temperature or 2.0
        ce, kl = self.task.terms(p, family, y, detach=True, temperature=temperature)
        small = self.task.loss(family, y)
        return Step(
            ce + small + kl,
            named([p, *family]),
            {"ce": ce.detach(), "kl": kl.detach(), "small_ce": small.detach()},
        )

    def apart(self, network: nn.Module) -> list[nn.Module]:
        """Return base and small networks: the base trains as it would alone, also with clipped gradients."""
        assert isinstance(network, AdjoinedNetwork)
        return [network.base, *network.smalls]
