"""Filter pruning: remove the filters with the smallest L1 norms from a trained network, and continue training."""

from __future__ import annotations

from torch import Tensor, nn

from adjoined.methods.base import BuiltNetwork
from adjoined.methods.channels import channels_kept
from adjoined.methods.finetune import Pruned


class FilterPruning(Pruned):
    """Prune the same fraction of every layer's filters, by smallest L1 norm, to the small network's size.

    Source: Li et al., "Pruning filters for efficient ConvNets", arXiv 1608.08710; Torch-Pruning (Fang et al., arXiv
    2301.12900) finds coupled channels, which are ranked by the first layer that writes them.
    """

    extra, library = "pruning", "torch_pruning"

    def prune(self, trained: nn.Module, example: Tensor) -> BuiltNetwork:
        """Return the network without the filters."""
        from torch_pruning.pruner.importance import MagnitudeImportance

        importance = MagnitudeImportance(p=1, group_reduction="first", normalizer=None)  # pyright: ignore[reportArgumentType]
        plan = channels_kept(trained, example, importance, self.settings)
        return self.built(plan.apply(trained), plan)
