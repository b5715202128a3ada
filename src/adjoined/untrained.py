"""Warns if the small network's own parameters were left out of training: nothing fails, but the network is poor."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from adjoined.warn import warn


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
    """Warn if a small network's own parameters have not changed, and those of the same names in the base have.

    Where the base's norms and last layer are frozen, it is enough that others of its parameters have changed.

    Args:
        network: the joint network.
        joined: the versions of its parameters when it was made.
        prefix: begins the names of the small network's own parameters.
    """
    changed = {name for name, count in versions(network).items() if count > joined.get(name, count)}
    own = {name: each for name, each in network.named_parameters() if name.startswith(prefix)}
    behind = [name for name in own if name not in changed and f"base.{name.removeprefix(prefix)}" in changed]
    trained = [name for name, each in own.items() if each.requires_grad]
    if changed.isdisjoint(trained) and any(name.startswith("base.") for name in changed):
        behind = behind or trained
    if behind:
        warn(
            f"the base network has changed since it was joined, but {len(behind)} of the small network's {len(own)} "
            f"own parameters have not, such as {behind[0]}: make the optimizer from net.parameters(), unfreeze them "
            "with net.requires_grad_(True), include the small network's output in the loss, and load weights before "
            "calling adjoin"
        )
