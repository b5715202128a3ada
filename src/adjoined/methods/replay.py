"""Replay: the base alone, then a slice of it, taught by logits recorded while the base was trained."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.base import BuiltNetwork, Stage, Step, the_small_plan
from adjoined.methods.distillation import TEMPERATURE
from adjoined.methods.finetune import Pruned
from adjoined.slicing import select


class Replay(Pruned):
    """Train the base; then its slice of the most important channels, with CE(q, y) + T² KL(p ‖ q), T = 4.

    p are the base's logits on the training images of its last epochs, recorded as it was trained. The small network
    sees the same images, augmented in the same way, again and again. So the base is trained as it is alone, and
    distillation costs no forward passes of a teacher.

    Source: stored logits of augmented images are from Shen and Xing, "A fast knowledge distillation framework for
    visual recognition", arXiv 2112.01528; importance by L1 norms from Li et al., arXiv 1608.08710.
    """

    tasks = frozenset({"classification"})
    replays = True

    def check(self) -> None:
        """Check that the images can be shown again.

        Raises:
            AdjoinedError: as for every method; or images are mixed.
        """
        super().check()
        if self.settings.mixup:
            raise AdjoinedError(
                "recorded logits belong to single images",
                where="--mixup",
                expected="0",
                got=self.settings.mixup,
                fix="Leave it out, or use --method adjoint+.",
            )

    def before(self) -> tuple[Stage, ...]:
        """Return the training of the base network, with its logits recorded."""
        (base,) = super().before()
        return (replace(base, records=True),)

    def prune(self, trained: nn.Module, example: Tensor) -> BuiltNetwork:
        """Return the small network next to the place of the recorded logits."""
        plan = select(trained, example, the_small_plan(self.settings, trained, example))
        return self.built(Pupil(plan.apply(trained)), plan)

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the small network's loss."""
        assert isinstance(network, Pupil)
        q = network.small(x)
        ce = self.task.loss([q], y)
        if network.recorded is None:  # only MACs are counted
            return Step(ce, {self.name: q}, {"ce": ce.detach()})
        kl = self.task.terms(network.recorded, q, y, detach=True, temperature=TEMPERATURE).kl
        return Step(ce + kl, {self.name: q}, {"ce": ce.detach(), "kl": kl.detach()})

    def trained(self, network: nn.Module) -> nn.Module:
        """Return the small network."""
        return network.get_submodule("small")


class Pupil(nn.Module):
    """A small network in training, and the base's recorded logits of the next batch."""

    def __init__(self, small: nn.Module) -> None:
        super().__init__()
        self.small = small
        self.recorded: Tensor | None = None
        """Float (N, K), set before each step."""
