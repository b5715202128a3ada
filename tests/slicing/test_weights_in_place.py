"""What a forward changes in weights reaches no other network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined.slicing import take
from unchecked import adjoin
from zoo import conv, images, seeded

X = images(2, 3, 8, 8)
CLASSES = 5


class ChangesWeights(nn.Module):
    """A part whose forward changes its own weights, behind layers that differ between the networks."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, CLASSES)
        self.scale, self.slow = nn.Parameter(torch.ones(48)), conv(32, 48).requires_grad_(False)
        self.unregistered = [conv(32, 48)] if way == "follows, unregistered" else []

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.body(x)
        match self.way:
            case "decays":
                self.scale.data.mul_(0.9)
            case "set from data":
                with torch.no_grad():
                    self.scale.copy_(1 / (y.std((0, 2, 3)) + 1))
            case "follows" | "follows, unregistered":
                slow = self.unregistered[0] if self.unregistered else self.slow
                with torch.no_grad():
                    for mine, its in zip(slow.parameters(), self.body.parameters(), strict=True):
                        mine.lerp_(its, 0.5)
                y = y + slow(x).detach()
            case "normalised":
                with torch.no_grad():
                    self.normalise()
        return self.head((y * self.scale[:, None, None]).relu().mean((2, 3)))

    def normalise(self) -> None:
        self.head.weight.div_(self.head.weight.norm(dim=1, keepdim=True))


def halve_weight(module: nn.Module, _: object) -> None:
    module.weight.data /= 2  # pyright: ignore


def divide(weight: Tensor) -> None:
    weight.data /= 2


class Halves:
    """A helper that is not a module."""

    def change(self, weight: Tensor) -> None:
        weight.data /= 2

    def __call__(self, weight: Tensor) -> None:
        self.change(weight)


HELPERS: Any = ModuleType("helpers")
HELPERS.halve = divide


class HasHelp(nn.Module):
    """Weights are changed by code that is neither in a forward nor in a function that a forward names."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.helper = way, Halves()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, CLASSES)
        if way == "hook":
            self.stem.register_forward_pre_hook(halve_weight)

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "helper":
                self.helper.change(self.stem.weight)
            case "callable":
                self.helper(self.stem.weight)
            case "imported":
                HELPERS.halve(self.stem.weight)
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))


class Follows(nn.Module):
    """A layer follows another one, by code in which no method's name says that it changes weights."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, CLASSES)
        self.slow = conv(32, 48).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        with torch.no_grad():
            self.follow([*self.slow.parameters()], [*self.body.parameters()])
        return self.head((self.body(x) + self.slow(x)).relu().mean((2, 3)))

    def follow(self, slow: list[nn.Parameter], fast: list[nn.Parameter]) -> None:
        match self.way:
            case "loads":
                state = self.body.state_dict()
                self.slow.load_state_dict({k: (v + state[k]) / 2 for k, v in self.slow.state_dict().items()})
            case "adds":
                for mine, its in zip(slow, fast, strict=True):
                    mine += (its - mine) / 2
            case "assigns":
                self.slow.weight /= 2
                self.slow.weight += self.body.weight / 2
            case "writes items":
                for mine, its in zip(slow, fast, strict=True):
                    mine[:] = (mine + its) / 2
            case "writes out":
                [torch.lerp(mine, its, 0.5, out=mine) for mine, its in zip(slow, fast, strict=True)]
            case "as vectors":
                both = nn.utils.parameters_to_vector(slow) + nn.utils.parameters_to_vector(fast)
                nn.utils.vector_to_parameters(both / 2, slow)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(Follows, each) for each in ("loads", "adds", "assigns", "writes items", "writes out", "as vectors")),
        *(partial(ChangesWeights, each) for each in ("decays", "set from data", "follows", "normalised")),
        partial(ChangesWeights, "follows, unregistered"),
        *(partial(HasHelp, each) for each in ("hook", "helper", "callable", "imported")),
    ],
    ids=lambda make: make.args[0],
)
@pytest.mark.parametrize("training", [False, True])
def test_changes_of_weights_in_place_reach_no_other_network(make: Callable[[], nn.Module], training: bool):
    """Every network computes, from the same weights, what it would alone; the base's are then as if it were alone."""
    model = seeded(make)
    alone = copy.deepcopy(model).train(training)
    net = adjoin(model, X, alpha=(2, 4), round_to=1).train(training)
    out = ()
    with torch.set_grad_enabled(training):
        for _ in range(2):
            networks = [alone, net.extract(0), net.extract(1)]
            out = net(X)
            assert all(torch.equal(each, network(X)) for each, network in zip(out, networks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(net.base.parameters(), alone.parameters(), strict=True))
    if training:
        torch.stack([each.sum() for each in out]).sum().backward()
    small = net.extract(1)
    for name, part in small.named_parameters():
        whole = net.base.get_parameter(name)
        assert torch.equal(part, take(whole.detach(), net.plans[1].indices(name)))


class DropsPaths(nn.Module):
    """A part whose forward changes tensors of its own in place, and no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu_()
        return self.head((x * x.new_empty(len(x), 1, 1, 1).bernoulli_(0.9).div_(0.9)).mean((2, 3)))


def test_slices_stay_views_where_a_forward_changes_no_weight():
    """Copies of all slices would cost time and memory in every step."""
    net = adjoin(seeded(DropsPaths), X, alpha=2, round_to=1).train()
    net(X)  # which shows it
    seen: list[Tensor] = []
    net.smalls[0].stem.register_forward_pre_hook(lambda module, _: seen.append(module.weight))  # pyright: ignore
    net(X)
    net.small(X)
    storage = net.base.stem.weight.untyped_storage().data_ptr()  # pyright: ignore
    assert [each.untyped_storage().data_ptr() for each in seen] == [storage] * 2


def test_an_embedding_with_a_largest_norm():
    """It changes its weight in place, in every forward."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv, self.head = (
                nn.Embedding(50, 32, max_norm=1.0),
                nn.Conv1d(32, 24, 3),
                nn.Linear(24, 5),
            )

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.conv(self.table(ids).transpose(1, 2)).relu().mean(2))

    ids = torch.arange(24).view(2, 12)
    net = adjoin(seeded(Words), ids, alpha=2, round_to=1)
    sum(out.square().sum() for out in net(ids)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        p, q = net(ids)
        assert torch.equal(p, net.base(ids))
        assert torch.equal(q, net.extract()(ids))
