"""Frozen modules: their weights and the running statistics of their norms do not change."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from adjoined.slicing import matching_modules


def freeze(network: nn.Module, model: nn.Module, patterns: Collection[str]) -> None:
    """Freeze the base's parameters in some modules.

    Weights that a small network shares are frozen with them; its norms and other private tensors are trained.

    Raises:
        AdjoinedError: a pattern matches no module.
    """
    names = matching_modules(model, patterns, setting="freeze")
    wanted = {*names, *(f"base.{name}" for name in names)}
    for name, module in network.named_modules():
        if name in wanted:
            module.requires_grad_(False)


def hold_frozen(network: nn.Module) -> None:
    """Put modules without trainable parameters into evaluation mode, so that their statistics do not change."""
    for module in network.modules():
        parameters = list(module.parameters())
        if parameters and not any(each.requires_grad for each in parameters):
            module.eval()
