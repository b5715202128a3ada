"""A memory limit for building the network that a file describes: what the file's tensors account for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adjoined.errors import AdjoinedError

SLACK = 64 << 20
"""Allowance in bytes for unsaved tensors of a network, such as position tables."""
MOST_CREATIONS = 4
"""How many times a network may create its tensors: some libraries replace layers that they have just created."""
MORE_TENSORS = 1000
"""Allowed number of unsaved tensors; a network of a million one-channel layers would take memory and minutes, too."""


class Ceiling(TorchDispatchMode):
    """Within the block, refuse to allocate more tensors than a network of this size needs.

    Raises:
        AdjoinedError: an allocation would exceed the limit; raised before it happens.
    """

    def __init__(self, tensors: int, bytes: int, where: object) -> None:
        super().__init__()
        self.most, self.taken, self.where = MOST_CREATIONS * bytes + SLACK, 0, where
        self.most_tensors, self.tensors = MOST_CREATIONS * tensors + MORE_TENSORS, 0

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the tensors that a call allocates."""
        kwargs = dict(kwargs or {})
        new = not any(isinstance(each, Tensor) for each in args)
        if new and any(argument.name == "device" for argument in func._schema.arguments):
            result = func(*args, **{**kwargs, "device": torch.device("meta"), "pin_memory": None})
            self.taken += result.numel() * result.element_size() if isinstance(result, Tensor) else 0
            self.tensors += 1
            if self.taken > self.most or self.tensors > self.most_tensors:
                raise AdjoinedError(
                    "the network is far larger than its saved tensors",
                    where=self.where,
                    expected=f"at most {self.most} bytes in {self.most_tensors} tensors",
                    got=f"{self.taken} bytes in {self.tensors} tensors",
                    fix="The file is damaged or wrong.",
                )
        return func(*args, **kwargs)
