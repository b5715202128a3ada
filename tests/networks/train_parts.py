"""Parts of a network that scale channels in train mode, and whose code reads the mode in different places."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


def weigh_in_training(module: nn.Module, _: object, out: Tensor) -> Tensor:
    return out * module.scale[:, None, None] if module.training else out  # pyright: ignore


class Part(nn.Module):
    scale: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return weigh_in_training(self, None, x)


class Inheriting(Part):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class NamingItsParent(Part):
    def forward(self, x: Tensor) -> Tensor:
        return Part.forward(self, x)


class Calling(nn.Identity):
    def __call__(self, x: Tensor) -> Tensor:
        return weigh_in_training(self, None, super().__call__(x))


class FromADict(nn.Module):
    ways: ClassVar = {"weigh": weigh_in_training}

    def forward(self, x: Tensor) -> Tensor:
        return self.ways["weigh"](self, None, x)


def decorated(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any) -> Tensor:
        return function(*args)

    return run


class Decorated(nn.Module):
    forward = decorated(Part.forward)


class Ways:
    weigh = staticmethod(weigh_in_training)


class FromAClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Ways.weigh(self, None, x)


class ByAMadeName(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "weigh_" + "fast")(x)

    def weigh_fast(self, x: Tensor) -> Tensor:
        return weigh_in_training(self, None, x)


PARTS = (Part, Inheriting, NamingItsParent, Calling, FromADict, Decorated, FromAClass, ByAMadeName)
