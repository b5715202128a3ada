"""Warns if only the base network was trained: such a loop raises no error, but gives a poor small network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from torch import nn


def versions(network: nn.Module) -> dict[str, int]:
    """Return how often each parameter has been changed in place.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> before = versions(layer)
        >>> versions(nn.init.zeros_(layer.bias) is layer.bias and layer)["bias"] - before["bias"]
        1
    """
    return {name: each._version for name, each in network.named_parameters() if not each.is_inference()}


def warn_if_untrained(network: nn.Module, joined: Mapping[str, int], prefix: str) -> None:
    """Warn if the base's parameters have changed, and none of a small network's own.

    Args:
        network: the joint network.
        joined: the versions of its parameters when it was made.
        prefix: begins the names of the small network's own parameters; frozen ones do not count.
    """
    changed = {name for name, count in versions(network).items() if count > joined.get(name, count)}
    own = [name for name, each in network.named_parameters() if name.startswith(prefix) and each.requires_grad]
    if own and changed.isdisjoint(own) and any(name.startswith("base.") for name in changed):
        warnings.warn(
            "the base network has changed since it was joined, but the small network's own parameters have not, such "
            f"as {own[0]}: make the optimizer from net.parameters(), include the small network's output in the loss, "
            "and load weights before calling adjoin",
            stacklevel=4,  # the caller of extract, which torch wraps
        )
