"""Filter pruning: take the filters with the smallest L1 norms out of a trained network, and train on."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import Built
from adjoined.methods.channels import channels_kept
from adjoined.methods.finetune import FineTuned


class FilterPruning(FineTuned):
    """Prune the same share of every layer's filters, those of the smallest L1 norm, to the small network's size.

    Source: Li et al., "Pruning filters for efficient ConvNets", arXiv 1608.08710; channels that depend on each other
    are found by Torch-Pruning (Fang et al., arXiv 2301.12900) and ranked by the first layer that writes them.
    """

    extra, library = "pruning", "torch_pruning"

    def prune(self, trained: nn.Module, example: Tensor) -> Built:
        """Return the network without the filters."""
        from torch_pruning.pruner.importance import MagnitudeImportance

        importance = MagnitudeImportance(p=1, group_reduction="first", normalizer=None)  # pyright: ignore[reportArgumentType]
        plan = channels_kept(trained, example, importance, self.settings, over_all_layers=False)
        return self.built(plan.apply(trained), plan)
