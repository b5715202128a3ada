"""Polishing: both networks by `adjoint+`, then the small network alone."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from adjoined.methods.base import BuiltNetwork, Stage, the_small_plan
from adjoined.methods.finetune import FineTuned
from adjoined.names import SMALL

JOINT = "joint"


class Polished(FineTuned):
    """Train both networks by `adjoint+`, then the small one alone with cross-entropy.

    The base is finished after the first stage. An epoch of the small network alone costs a fraction of a joint one, and
    a small network needs more epochs than its base.
    """

    def before(self) -> tuple[Stage, ...]:
        """Return the joint training."""
        return (Stage(JOINT, self.settings.for_method("adjoint+"), passes=SMALL),)

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return the small network of the joint training."""
        return self.built(earlier[JOINT], the_small_plan(self.settings, model, example))
