"""Deep mutual learning: base and small network, with separate weights, teach each other."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.base import BuiltNetwork, Method, Step, TrainedNetwork, the_small_plan
from adjoined.methods.scratch import fresh_small


class Mutual(Method):
    """Train two separate networks, each with cross-entropy and towards the other's probabilities.

    Source: Zhang et al., "Deep mutual learning", arXiv 1706.00384, equations 5 and 6, both networks in one step.
    """

    def check(self) -> None:
        """Refuse pretrained weights, which only one of the two networks could have."""
        super().check()
        if self.settings.pretrained:
            raise AdjoinedError(
                "the small network has no pretrained weights to start from", where="--method mutual, --pretrained"
            )

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return both networks."""
        plan = the_small_plan(self.settings, model, example)
        both = nn.ModuleDict({"base": model, "small": fresh_small(model, plan)})
        return BuiltNetwork(both, {"base": None, "small": plan})

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return CE(p, y) + KL(q ‖ p) + CE(q, y) + KL(p ‖ q), with the first argument of each KL detached."""
        logits = self.logits(network, x)
        p, q = logits["base"], logits["small"]
        small, base = self.task.terms(p, q, y, detach=True), self.task.terms(q, p, y, detach=True)
        kl = small.kl + base.kl
        terms = {"ce": small.ce.detach(), "small_ce": base.ce.detach(), "kl": kl.detach()}
        return Step(small.ce + base.ce + kl, logits, {**terms})

    def logits(self, network: nn.Module, x: Tensor) -> dict[str, Tensor]:
        """Return the logits of both networks."""
        return {name: network.get_submodule(name)(x) for name in ("base", "small")}

    def finish(self, built: BuiltNetwork) -> dict[str, TrainedNetwork]:
        """Return both."""
        return {name: TrainedNetwork(built.network.get_submodule(name), plan) for name, plan in built.plans.items()}

    def apart(self, network: nn.Module) -> list[nn.Module]:
        """Return both networks."""
        return list(network.children())
