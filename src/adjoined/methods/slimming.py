"""Network slimming: train with an L1 penalty on BatchNorm scales, prune the smallest channels, and fine-tune."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.base import BuiltNetwork, Stage, Step
from adjoined.methods.channels import channels_kept
from adjoined.methods.finetune import BASE, FineTuned
from adjoined.methods.standard import Standard

BatchNorm = nn.modules.batchnorm._BatchNorm


class SparseScales(Standard):
    """The first stage of network slimming: cross-entropy and `slimming_l1` times Σ|γ| over all BatchNorm scales γ."""

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return CE(p, y) + slimming_l1 · Σ|γ|."""
        plain = super().step(network, x, y, progress=progress, measure=measure)
        scales: list[Tensor] = [m.weight for m in network.modules() if isinstance(m, BatchNorm) and m.affine]
        if not scales:
            raise AdjoinedError("the model has no BatchNorm scales", where=f"--method {self.settings.method}")
        l1 = torch.cat(scales).abs().sum()
        return Step(plain.loss + self.settings.slimming_l1 * l1, plain.logits, {**plain.terms, "l1": l1.detach()})


class Slimming(FineTuned):
    """Prune the channels with the smallest scales, over all layers, to the small network's size, and fine-tune.

    Source: Liu et al., "Learning efficient convolutional networks through network slimming", arXiv 1708.06519; the
    ranking is Torch-Pruning's, the mean scale of the channels that can only be pruned together.
    """

    extra, library = "pruning", "torch_pruning"

    def before(self) -> tuple[Stage, ...]:
        """Return the training with the L1 penalty."""
        return (Stage(BASE, self.settings.for_method("sparse-scales"), carried=True),)

    def prune(self, trained: nn.Module, example: Tensor) -> BuiltNetwork:
        """Return the pruned network."""
        from torch_pruning.pruner.importance import BNScaleImportance

        importance = BNScaleImportance(group_reduction="mean", normalizer=None)  # pyright: ignore[reportArgumentType]
        plan = channels_kept(trained, example, importance, self.settings, over_all_layers=True)
        return self.built(plan.apply(trained), plan)
