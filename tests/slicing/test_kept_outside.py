"""Planning and checking leave nothing in caches outside of a model's modules, which copies of it share."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adjoined
from adjoined.slicing import check_plan

BY_SIZE: dict[int, Tensor] = {}
LISTED: list[Tensor] = []
DRAWN: Tensor | None = None


class Shelf:
    """An object with a cache inside."""

    def __init__(self) -> None:
        self.last: Tensor | None = None
        self.by_size: dict[str, tuple[Tensor, ...]] = {}


SHELF = Shelf()


def ramp(x: Tensor) -> Tensor:
    """Return one number for each place in a row, on the device and of the type of `x`."""
    return torch.linspace(0, 1, x.shape[-1], device=x.device, dtype=x.dtype)


@functools.cache
def ramp_of(size: int) -> Tensor:
    """Return one number for each place, of the default type."""
    return torch.linspace(0, 1, size)


class Net(nn.Module):
    """Adds a ramp, which each subclass keeps somewhere, to the channels."""

    kept: Tensor | None = None

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def ramp(self, x: Tensor) -> Tensor:
        """Return the ramp, from where it is kept."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.ramp(x)).relu().mean((2, 3)))


class InGlobalDict(Net):
    def ramp(self, x: Tensor) -> Tensor:
        if x.shape[-1] not in BY_SIZE:
            BY_SIZE[x.shape[-1]] = ramp(x)
        return BY_SIZE[x.shape[-1]]


class InGlobalList(Net):
    def ramp(self, x: Tensor) -> Tensor:
        if not LISTED:
            LISTED.append(ramp(x))
        return LISTED[0]


class InGlobalName(Net):
    def ramp(self, x: Tensor) -> Tensor:
        global DRAWN
        DRAWN = ramp(x) if DRAWN is None else DRAWN
        return DRAWN


class InObject(Net):
    def ramp(self, x: Tensor) -> Tensor:
        if SHELF.last is None:
            SHELF.last, SHELF.by_size["a"] = ramp(x), (ramp(x),)
        return SHELF.last + SHELF.by_size["a"][0]


class InClass(Net):
    def ramp(self, x: Tensor) -> Tensor:
        if Net.kept is None:
            Net.kept = ramp(x)
        return Net.kept


class InDefaultArgument(Net):
    def ramp(self, x: Tensor, kept: dict[str, Tensor] = {}) -> Tensor:  # noqa: B006
        if "ramp" not in kept:
            kept["ramp"] = ramp(x)
        return kept["ramp"]


class InCachedFunction(Net):
    def ramp(self, x: Tensor) -> Tensor:
        return ramp_of(x.shape[-1])


@pytest.mark.parametrize(
    "kind", [InGlobalDict, InGlobalList, InGlobalName, InObject, InClass, InDefaultArgument, InCachedFunction]
)
@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
def test_model_and_joint_network_run_as_before(kind: Any, warm: bool) -> None:
    torch.manual_seed(0)
    model, x = kind().eval(), torch.randn(2, 3, 8, 8)
    added = torch.linspace(0, 2 if kind is InObject else 1, 6)
    expected = model.head((model.stem(x) + added).relu().mean((2, 3)))
    if warm:
        model(x)
    net = adjoined.adjoin(model, x, alpha=2, round_to=1)
    assert net.plan.small_shape("stem.weight") == (8, 3, 3, 3)
    assert check_plan(model, x, net.plan).error == pytest.approx(0, abs=1e-12)
    p, q = net(x)
    torch.testing.assert_close(p, expected)
    torch.testing.assert_close(net.extract()(x), q)
