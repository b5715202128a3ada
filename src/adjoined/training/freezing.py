"""Modules that are not trained: their weights stay, and so do the running statistics of norms in them."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from adjoined.slicing import matching_modules


def freeze(network: nn.Module, model: nn.Module, patterns: Collection[str]) -> None:
    """Take the base's parameters in some modules out of training.

    Weights that a small network shares are frozen with them; its norms, and what else it has for itself, are trained.

    Args:
        network: what a method trains; the base is this network, or its `base`.
        model: the base network, whose modules are named.
        patterns: names or patterns (as for file names).

    Raises:
        AdjoinedError: a pattern matches no module.
    """
    names = matching_modules(model, patterns, setting="freeze")
    wanted = {*names, *(f"base.{name}" for name in names)}
    for name, module in network.named_modules():
        if name in wanted:
            module.requires_grad_(False)


def hold_frozen(network: nn.Module) -> None:
    """Put the modules of which no parameter is trained into evaluation mode, so that their statistics stay."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(each.requires_grad for each in parameters):
            module.eval()
