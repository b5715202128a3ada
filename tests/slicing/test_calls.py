"""What a call leaves in the model for the next one: statistics, hidden states, counters, stored vectors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adjoined.slicing import check_plan, make_plan
from constructs import Net, X, network

WIDE = 32


def new(cls: type[Net]) -> Net:
    """Return a network that has not been called since its parts were made."""
    model = network(cls)
    model.parts()
    return model.double()


class Statistics(Net):
    """A batch norm of its own."""

    def parts(self) -> None:
        self.register_buffer("mean", torch.zeros(WIDE))
        self.register_buffer("var", torch.ones(WIDE))

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((0, 2, 3)), x.var((0, 2, 3))

    def mid(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean, var = self.of(x)
            self.mean, self.var = self.mean * 0.9 + mean.detach() * 0.1, self.var * 0.9 + var.detach() * 0.1
        return (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()


class WrittenInPlace(Statistics):
    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean((0, 2, 3)), 0.1)
        return x - self.mean[:, None, None]


class OneNumber(Net):
    """A factor that depends on the width may differ, also if it is stored first."""

    def parts(self) -> None:
        self.register_buffer("size", torch.ones(()))

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            self.size.lerp_(x.detach().abs().mean() * x.shape[1], 0.1)
        return x / self.size


class Covariance(Net):
    def parts(self) -> None:
        self.register_buffer("covariance", torch.eye(WIDE))

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            places = x.detach().transpose(0, 1).flatten(1)
            self.covariance.lerp_(places @ places.T / places.shape[1], 0.1)
        return torch.einsum("cd,ndhw->nchw", self.covariance, x)


class Bank(Net):
    def parts(self) -> None:
        self.register_buffer("bank", torch.randn(16, WIDE))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def mid(self, x: Tensor) -> Tensor:
        means = x.mean((2, 3))
        found = (means @ self.bank.T).softmax(1) @ self.bank
        if self.training:
            place = int(self.place)
            self.bank[place : place + len(means)] = means.detach()
            self.place[0] = (place + len(means)) % 16
        return x + found[:, :, None, None]


class Hidden(Net):
    """It also keeps its state in eval mode, in an attribute."""

    def parts(self) -> None:
        self.state: Tensor | None = None

    def mid(self, x: Tensor) -> Tensor:
        self.state = x if self.state is None else x + self.state.detach()
        return self.state


@pytest.mark.parametrize("cls", [Statistics, WrittenInPlace, OneNumber, Covariance, Bank, Hidden])
def test_a_later_call_computes_the_same_too(cls: type[Net]):
    model = new(cls)
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert plan.small_shape("stem.0.weight")[0] == 16
    assert (check_plan(model, X, plan).error or 0) < 1e-12


class OtherStatistics(WrittenInPlace):
    """In train mode, no output shows it."""

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            mean = x.detach().mean((0, 2, 3))
            self.mean.copy_(mean if x.shape[1] == WIDE else mean.flip(0))
            return x
        return x - self.mean[:, None, None]


class EveryOtherCall(Net):
    def parts(self) -> None:
        self.calls = 0

    def mid(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flip(2) if self.calls % 2 == 0 and x.shape[1] < WIDE else x


class LongerMemory(Net):
    """The list keeps as many states as the width says."""

    def parts(self) -> None:
        self.states: list[Tensor] = []

    def mid(self, x: Tensor) -> Tensor:
        self.states.append(x.detach())
        return x + torch.stack(self.states[: x.shape[1] // 16]).sum(0)


@pytest.mark.parametrize("cls", [OtherStatistics, EveryOtherCall, LongerMemory])
def test_channels_stay_if_fewer_of_them_change_what_a_later_call_computes(cls: type[Net]):
    model = new(cls)
    first = make_plan(model, X, alpha=2, round_to=1, check=False)
    assert first.small_shape("stem.0.weight")[0] == 16
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert plan.small_shape("stem.0.weight")[0] == WIDE
    assert plan.small_shape("body.weight")[0] == 24
    assert (check_plan(model, X, plan).error or 0) < 1e-12
