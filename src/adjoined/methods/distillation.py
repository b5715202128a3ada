"""Distillation: a trained base network teaches the small architecture."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from adjoined.methods.alone import Alone
from adjoined.methods.base import BuiltNetwork, Stage, Step, the_small_plan
from adjoined.methods.scratch import fresh_small

TEACHER = "teacher"
TEMPERATURE = 4.0


class Distillation(Alone):
    """Train the small architecture with (1 - s) CE(q, y) + s T² KL(p ‖ q), where p are a finished teacher's logits.

    T = 4 and s = 0.9 unless set. With s = 0.5 both terms count the same, as at the end of `adjoint+`.

    Source: Hinton et al., "Distilling the knowledge in a neural network", arXiv 1503.02531; the defaults are those of
    RepDistiller (Tian et al., arXiv 1910.10699) for its baseline KD.
    """

    name = "small"
    from_pretrained = False

    def before(self) -> tuple[Stage, ...]:
        """Return the training of the teacher, whose base network is the run's."""
        return (Stage(TEACHER, self.settings.for_method("standard"), given=self.settings.teacher),)

    def build(self, model: nn.Module, example: Tensor, earlier: Mapping[str, nn.Module]) -> BuiltNetwork:
        """Return teacher and student."""
        plan = the_small_plan(self.settings, model, example)
        return self.built(Lesson(earlier[TEACHER], fresh_small(model, plan)), plan)

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return the student's loss."""
        assert isinstance(network, Lesson)
        with torch.no_grad():
            p = network.teacher(x)
        q = network.student(x)
        temperature = self.settings.temperature or TEMPERATURE
        ce = self.task.loss([q], y)
        kl = self.task.terms(p, q, y, detach=True, temperature=temperature).kl
        share = self.settings.kl_share
        return Step((1 - share) * ce + share * kl, {self.name: q}, {"ce": ce.detach(), "kl": kl.detach()})

    def trained(self, network: nn.Module) -> nn.Module:
        """Return the student."""
        return network.get_submodule("student")


class Lesson(nn.Module):
    """A student in training with a frozen teacher in evaluation mode."""

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        super().__init__()
        self.teacher, self.student = teacher.eval().requires_grad_(False), student

    def train(self, mode: bool = True) -> Lesson:
        """Set the mode of the student only."""
        super().train(mode)
        self.teacher.eval()
        return self
