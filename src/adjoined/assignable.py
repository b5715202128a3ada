"""Parameters of a small network during a call, to which its code may assign: `layer.weight /= norm`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn


class Assignable(dict[str, Any]):
    """A module's parameters, of which some are also its attributes.

    The weights of a small network are slices, and `nn.Module` refuses to assign anything but an `nn.Parameter` to a
    name that `_parameters` contains. These names are listed here, but looked up and assigned as attributes.

    Args:
        parameters: all parameters by name.

    Example:
        >>> import copy
        >>> layer = nn.Linear(2, 2, bias=False)
        >>> layer._parameters = parameters = Assignable(layer._parameters)
        >>> parameters.bind(layer, "weight", layer.weight.detach())
        >>> layer.weight /= 2
        >>> [name for name, _ in layer.named_parameters()], type(copy.deepcopy(parameters))
        (['weight'], <class 'dict'>)
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter | None]) -> None:
        super().__init__(parameters)
        self._attributes: set[object] = set()

    def bind(self, module: nn.Module, name: str, value: Any) -> None:
        """Bind a tensor as a parameter and as an attribute."""
        self[name] = vars(module)[name] = value
        self._attributes.add(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """Take a new parameter, which code has assigned."""
        super().__setitem__(name, value)
        self._attributes.discard(name)

    def __contains__(self, name: object) -> bool:
        return name not in self._attributes and super().__contains__(name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Copy as a plain dict: another thread may copy a module during a call."""
        return dict, (dict(self),)
