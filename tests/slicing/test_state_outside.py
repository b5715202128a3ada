"""A state that code keeps outside modules, where networks would share it, is refused; what the base records stays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adjoined

AVERAGE = torch.zeros(5)
BY_NAME: dict[str, Tensor] = {}
CALLS = 0
SCALE = 1.0
LATEST: list[Tensor] = []
NORM = nn.BatchNorm1d(5)


class Stateful(nn.Module):
    """Changes its outputs by a state, which each subclass keeps somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.stem(x).relu().mean((2, 3))))

    def after(self, y: Tensor) -> Tensor:
        """Return the outputs, changed by the state."""
        return y


class GlobalAverage(Stateful):
    def after(self, y: Tensor) -> Tensor:
        global AVERAGE
        AVERAGE = 0.9 * AVERAGE + y.mean(0).detach()
        return y + AVERAGE


class WrittenInPlace(Stateful):
    def after(self, y: Tensor) -> Tensor:
        AVERAGE.mul_(0.9).add_(y.mean(0).detach())
        return y + AVERAGE


class InDict(Stateful):
    def after(self, y: Tensor) -> Tensor:
        before = BY_NAME.get("last", torch.zeros(5))
        BY_NAME["last"] = y.mean(0).detach()
        return y + before


class InList(Stateful):
    def after(self, y: Tensor) -> Tensor:
        LATEST.append(y.mean(0).detach())
        return y + torch.stack(LATEST[-2:]).mean(0)


class InOwnClass(Stateful):
    average = torch.zeros(5)

    def after(self, y: Tensor) -> Tensor:
        InOwnClass.average = 0.9 * InOwnClass.average + y.mean(0).detach()
        return y + InOwnClass.average


class InDefault(Stateful):
    def after(self, y: Tensor, kept: list[Tensor] = [torch.zeros(5)]) -> Tensor:  # noqa: B006, B008
        kept[0] = 0.9 * kept[0] + y.mean(0).detach()
        return y + kept[0]


class WarmUp(Stateful):
    def after(self, y: Tensor) -> Tensor:
        global CALLS
        CALLS += 1
        return y * min(1, CALLS / 100)


class NumberInTrainMode(Stateful):
    def after(self, y: Tensor) -> Tensor:
        global SCALE
        if self.training:
            SCALE = 0.9 * SCALE + 0.1 * y.abs().mean().item()
        return y * SCALE


class UnregisteredNorm(Stateful):
    def after(self, y: Tensor) -> Tensor:
        return NORM(y)


class OnFunction(Stateful):
    def after(self, y: Tensor) -> Tensor:
        averaged.latest = 0.9 * getattr(averaged, "latest", 0) + y.mean(0).detach()
        return averaged(y)


def averaged(y: Tensor) -> Tensor:
    """Return the outputs with the average."""
    return y + averaged.latest


class Memory:
    """An object that copies to itself."""

    __slots__ = ("average",)

    def __init__(self) -> None:
        self.average = torch.zeros(5)

    def __deepcopy__(self, memo: Any) -> Memory:
        return self


class InSharedObject(Stateful):
    def __init__(self) -> None:
        super().__init__()
        self.memory = Memory()

    def after(self, y: Tensor) -> Tensor:
        self.memory.average = 0.9 * self.memory.average + y.mean(0).detach()
        return y + self.memory.average


def counting(function: Any) -> Any:
    """Decorate a method that warms up."""
    count = 0

    @functools.wraps(function)
    def warmed(self: nn.Module, y: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return function(self, y) * min(1, count / 100)

    return warmed


class Decorated(Stateful):
    @counting
    def after(self, y: Tensor) -> Tensor:
        return y


HERE = __name__


@pytest.mark.parametrize(
    ("kind", "where"),
    [
        (GlobalAverage, f"{HERE}.AVERAGE"),
        (WrittenInPlace, f"{HERE}.AVERAGE"),
        (InDict, f"{HERE}.BY_NAME['last']"),
        (InList, f"{HERE}.LATEST[0]"),
        (InOwnClass, f"{HERE}.InOwnClass.average"),
        (InDefault, "list[0], which its code holds"),
        (WarmUp, f"{HERE}.CALLS"),
        (NumberInTrainMode, f"{HERE}.SCALE"),
        (UnregisteredNorm, f"{HERE}.NORM.num_batches_tracked"),
        (OnFunction, f"{HERE}.averaged.latest"),
        (InSharedObject, "memory.average"),
        (Decorated, "the variable 'count' of Decorated.after"),
    ],
)
def test_state_that_networks_would_share_is_refused(kind: Any, where: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(adjoined.AdjoinedError, match="state outside its modules") as refused:
        adjoined.adjoin(kind(), torch.randn(2, 3, 8, 8), alpha=2)
    assert refused.value.where == where


def test_state_of_a_hook_is_refused() -> None:
    model, average = Stateful(), torch.zeros(5)

    def smooth(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        nonlocal average
        average = 0.9 * average + y.mean(0).detach()
        return y + average

    model.register_forward_hook(smooth)
    with pytest.raises(adjoined.AdjoinedError, match="state outside its modules") as refused:
        adjoined.adjoin(model, torch.randn(2, 3, 8, 8), alpha=2)
    assert "'average'" in str(refused.value.where)


# ---- records ---------------------------------------------------------------------------------------------------------

FEATURES: dict[str, Any] = {}


class Recording(Stateful):
    """Puts feature maps into a global."""

    def after(self, y: Tensor) -> Tensor:
        FEATURES["both"], FEATURES["outputs"] = (y, y), y
        return y


def put(seen: dict[str, Tensor], name: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """Return a hook that puts a module's output into a dict."""

    def hook(_: nn.Module, __: Any, out: Tensor) -> None:
        seen[name] = out

    return hook


def test_what_the_base_recorded_stays() -> None:
    torch.manual_seed(0)
    model, x, seen = Recording(), torch.randn(2, 3, 8, 8), dict[str, Tensor]()
    model.stem.register_forward_hook(put(seen, "stem"))
    net = adjoined.adjoin(model, x, alpha=2, round_to=1)
    for _ in range(2):
        p, _ = net(x)
        assert FEATURES["outputs"] is p
        assert FEATURES["both"][1] is p
        assert seen["stem"].shape == (2, 16, 6, 6)
    net.small(x)
    assert seen["stem"].shape == (2, 8, 6, 6)  # called alone, it records as the base does


def test_what_only_a_small_network_records_stays_too() -> None:
    torch.manual_seed(0)
    model, x, seen = Stateful(), torch.randn(2, 3, 8, 8), dict[str, Tensor]()
    model.stem.register_forward_hook(put(seen, "stem"))
    net = adjoined.adjoin(model, x, alpha=2, round_to=1)
    small: Any = net.smalls[0]
    small.stem.register_forward_hook(put(seen, "small"))
    net(x)
    assert {name: out.shape[1] for name, out in seen.items()} == {"stem": 16, "small": 8}
