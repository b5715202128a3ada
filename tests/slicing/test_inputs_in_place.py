"""Changes in place of an input, and what a forward stores, reach no other network and not the caller's input."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined.slicing import measure_cost, tensor_leaves
from unchecked import adjoin
from zoo import conv, images, seeded

X, OTHER = images(2, 3, 8, 8), images(2, 1, 8, 8, seed=2)
CLASSES = 5


class Pathways(nn.Module):
    """Two pathways in one list, into which every stage writes its outputs, as video networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList([conv(a, 16), conv(b, 8)]) for a, b in ((3, 1), (16, 8)))
        self.head = nn.Linear(24, CLASSES)

    def forward(self, pathways: list[Tensor]) -> Tensor:
        for stage in self.stages:
            for number, layer in enumerate(stage):  # pyright: ignore[reportArgumentType]
                pathways[number] = layer(pathways[number]).relu()
        return self.head(torch.cat([x.mean((2, 3)) for x in pathways], 1))


def test_a_forward_that_writes_into_its_input_list_leaves_that_of_the_caller_alone():
    model = seeded(Pathways).eval()
    expected = model([X, OTHER])
    given = [X, OTHER]
    cost = measure_cost(model, (given,))
    net = adjoin(model, (given,), alpha=2, round_to=1, check=True)
    p, q = net(given)
    assert given[0] is X
    assert given[1] is OTHER
    assert torch.equal(p, expected)
    assert torch.equal(q, net.small(given))
    assert torch.allclose(q, net.extract()([X, OTHER]), atol=1e-6)
    assert [g.reason for g in net.plan.groups if g.kept == g.width] == ["model output"]
    assert cost.macs == measure_cost(model, ([X, OTHER],)).macs
    changed = [X, OTHER]
    model(changed)  # the model itself does write: without copies the second network would start from these
    assert changed[0] is not X


@dataclass
class Batch:
    """The input of a detector: a container that torch does not know."""

    image: Tensor
    sizes: dict[str, list[Tensor]]


class Changes(nn.Module):
    """Changes its input in one of many ways, and computes with the result."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, CLASSES)

    def forward(self, x: Any, mean: Tensor | None = None) -> Tensor:
        match self.way:
            case "scaled":
                x *= 3
            case "through a view":
                x[:, 1:].sub_(2)
            case "past autograd":
                x.data.mul_(3)
            case "as numpy":
                x.numpy()[:] *= 3
            case "a keyword":
                assert mean is not None
                x = x - mean.mul_(3)
            case "one tensor twice" | "one tensor's views":
                assert mean is not None
                x.mul_(3)
                x = x - mean
            case "in a dict":
                x["image"].mul_(3)
                x = x.pop("image")
            case "an object":
                x.image = x.image * 3
                x.sizes["all"].append(x.image.clone())
                x = x.image + len(x.sizes["all"])
        return self.head(self.body(self.stem(x).relu()).relu().mean((2, 3)))


def given_to(way: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x = X.clone()
    calls: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
        "a keyword": ((x,), {"mean": torch.ones(1)}),
        "one tensor twice": ((x, x), {}),
        "one tensor's views": ((x[:, :, 1:], x[:, :, :-1]), {}),
        "in a dict": (({"image": x},), {}),
        "an object": ((Batch(x, {"all": [x]}),), {}),
    }
    return calls.get(way, ((x,), {}))


WAYS = [
    "scaled",
    "through a view",
    "past autograd",
    "as numpy",
    "a keyword",
    "one tensor twice",
    "one tensor's views",
    "in a dict",
    "an object",
]


@pytest.mark.parametrize("way", WAYS)
def test_changes_in_place_reach_no_other_network(way: str):
    """Law 8. With two small networks, the second must not see the changes of the first, either."""
    model = seeded(lambda: Changes(way)).eval()
    args, kwargs = given_to(way)
    example = (*args, *kwargs.values())
    net = adjoin(model, example, alpha=(2, 4), round_to=1, check=way not in ("as numpy", "an object"))
    for before, after in zip(tensor_leaves(given_to(way)), tensor_leaves((args, kwargs)), strict=True):
        assert torch.equal(before, after), "the example input has changed"

    def call(network: nn.Module) -> Any:
        args, kwargs = given_to(way)
        return network(*args, **kwargs)

    with torch.no_grad():
        p, *small = call(net)
        assert torch.equal(p, call(model))
        for which, q in enumerate(small):
            assert torch.equal(q, call(net.extract(which)))
    if way != "as numpy":
        torch.stack([out.sum() for out in call(net.train())]).sum().backward()


def test_copies_of_the_input_are_freed_without_the_garbage_collector():
    """It runs now and then, if a training loop has not turned it off, and a GPU would fill up meanwhile."""
    net = adjoin(seeded(Pathways), [[X, OTHER]], alpha=2, round_to=1)
    given: list[weakref.ref[Tensor]] = []
    net.smalls[0].register_forward_pre_hook(lambda _, args: given.extend(map(weakref.ref, tensor_leaves(args))))
    gc.disable()
    try:
        net([X, OTHER])
        assert [each() for each in given] == [None, None]
    finally:
        gc.enable()


def test_the_caller_s_own_tensor_sees_what_the_base_does_to_it():
    x = X.clone()
    with torch.no_grad():
        adjoin(seeded(lambda: Changes("scaled")), X, alpha=2, round_to=1)(x)
    assert torch.equal(x, 3 * X)


class Remembers(nn.Module):
    """Stores what it has seen in a buffer, a list, an attribute, and a cache of the class."""

    cache: dict[int, Tensor] = {}  # noqa: RUF012
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, CLASSES)
        self.seen: list[Tensor] = []
        self.latest: deque[Tensor] = deque(maxlen=2)
        self.last: Tensor | None = None
        self.register_buffer("mean", torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        self.mean.lerp_(x.detach().mean((0, 2, 3)), 0.5)
        x = x + self.cache.setdefault(x.shape[2], self.mean[:, None, None] * 1)
        self.seen.append(x)
        self.latest.append(x.detach().mean((0, 2, 3)))
        x = x - torch.stack(list(self.latest)).mean(0)[:, None, None]
        self.last = self.seen[0] * 0 if self.last is None else self.last
        return self.head(self.body(x + self.last).relu().mean((2, 3)))


def test_stored_tensors_reach_no_other_network():
    net = adjoin(seeded(Remembers), X, alpha=2, round_to=1)
    assert not Remembers.cache
    assert not net.base.seen
    small = net.extract()
    q = net(X)[1]
    assert torch.equal(q, small(X))
    q = net(X)[1]
    assert torch.equal(q, small(X))
    assert [each.shape[1] for each in net.base.seen] == [32, 32]  # pyright: ignore
    q.sum().backward()
    with torch.no_grad():
        small = net.extract()  # with what the small network has kept, and without its history
        assert not any(each.requires_grad for each in small.seen)  # pyright: ignore
        assert torch.equal(small(X), net(X)[1])
