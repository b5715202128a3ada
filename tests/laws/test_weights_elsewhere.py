"""Weights that a model's code holds besides its parameters are the base's in small networks, too, in every call."""

from __future__ import annotations

import functools
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adjoined
from zoo import images, seeded

X = images(4, 3, 8, 8)


class Pair(NamedTuple):
    weight: Any
    padding: int


class Slotted:
    __slots__ = ("weight",)

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight


@dataclass(frozen=True)
class Frozen:
    weight: Any


def scaled(scale: Tensor, _module: nn.Module, _args: Any, out: Tensor) -> Tensor:
    return out * scale


class Holding(nn.Module):
    """Reads the weight of its layer in the way that a function sets up."""

    def __init__(self, hold: Callable[[Holding], None]) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))
        self.held: Any = None
        self.hold = hold
        hold(self)

    def middle(self, x: Tensor) -> Tensor:
        return self.held(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.middle(self.stem(x).relu()) * self.scale).relu().mean((2, 3)))


class Reading(Holding):
    """`held` is where the weight is, once it is followed by these keys and attributes."""

    def __init__(self, hold: Callable[[Holding], None], *path: Any) -> None:
        super().__init__(hold)
        self.path = path

    def middle(self, x: Tensor) -> Tensor:
        if self.held is None:
            self.hold(self)
        weight: Any = self.held
        for key in self.path:
            weight = getattr(weight, key) if isinstance(key, str) and hasattr(weight, key) else weight[key]
        return F.conv2d(x, weight, self.layer.bias)


def in_list(model: Holding) -> None:
    model.held = [1, model.layer.weight]


def in_tuple(model: Holding) -> None:
    model.held = {"a": (model.layer.weight, 3)}


def in_named_tuple(model: Holding) -> None:
    model.held = Pair((model.layer.weight,), 1)


def in_slots(model: Holding) -> None:
    model.held = Slotted(model.layer.weight)


def in_frozen_object(model: Holding) -> None:
    model.held = [Frozen(model.layer.weight)]


def as_attribute(model: Holding) -> None:
    object.__setattr__(model, "held", model.layer.weight)


def in_unregistered_layer(model: Holding) -> None:
    layer = nn.Conv2d(16, 16, 3)
    layer.weight = model.layer.weight
    model.held = (layer,)


def in_partial(model: Holding) -> None:
    model.held = functools.partial(F.conv2d, weight=model.layer.weight, bias=model.layer.bias)


def by_positions(model: Holding) -> None:
    model.held = functools.partial(torch.einsum, "oihw,nixy->noxy", model.layer.weight)


def in_method(model: Holding) -> None:
    model.held = Convolved(model.layer.weight).run


class Convolved:
    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def run(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight)


def in_hook(model: Holding) -> None:
    model.layer.register_forward_hook(functools.partial(scaled, model.scale))
    model.held = model.layer


def nothing(model: Holding) -> None:
    pass


class NotedLater(Reading):
    """Notes its weight in its first call."""

    def __init__(self) -> None:
        super().__init__(nothing, 0)
        self.hold = in_first_call


def in_first_call(model: Holding) -> None:
    model.held = [model.layer.weight]


class Cached(Holding):
    @functools.cached_property
    def pair(self) -> tuple[Tensor, Tensor | None]:
        return self.layer.weight, self.layer.bias

    def middle(self, x: Tensor) -> Tensor:
        return F.conv2d(x, *self.pair)


class Swapped(Holding):
    """Replaces the weight of a layer for one call, and puts it back."""

    def middle(self, x: Tensor) -> Tensor:
        weight = self.layer.weight
        del self.layer.weight
        self.layer.weight = weight.abs()  # pyright: ignore[reportAttributeAccessIssue]
        try:
            return self.layer(x)
        finally:
            del self.layer.weight
            self.layer.weight = weight


WAYS: dict[str, Callable[[], nn.Module]] = {
    "list": lambda: Reading(in_list, 1),
    "tuple": lambda: Reading(in_tuple, "a", 0),
    "named tuple": lambda: Reading(in_named_tuple, "weight", 0),
    "slots": lambda: Reading(in_slots, "weight"),
    "frozen object": lambda: Reading(in_frozen_object, 0, "weight"),
    "attribute": lambda: Reading(as_attribute),
    "unregistered layer": lambda: Reading(in_unregistered_layer, 0, "weight"),
    "partial": lambda: Holding(in_partial),
    "partial by position": lambda: Holding(by_positions),
    "method": lambda: Holding(in_method),
    "hook": lambda: Holding(in_hook),
    "noted in the first call": NotedLater,
    "cached property": lambda: Cached(nothing),
    "swapped": lambda: Swapped(nothing),
}
EACH = pytest.mark.parametrize("way", WAYS)


def joint(way: str) -> adjoined.AdjoinedNetwork:
    """A joint network whose weights an optimizer has changed after its first calls."""
    net = adjoined.adjoin(seeded(WAYS[way]), X, alpha=2, round_to=1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(2):
        torch.cat(net(X)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net.eval()


@EACH
def test_small_network_follows_the_base_and_gives_it_gradients(way: str):
    net = joint(way)
    assert net.plan.small_shape("layer.weight") == (8, 8, 3, 3)
    expected = net.plan.apply(net.base)(X)
    torch.testing.assert_close(net(X)[1], expected)
    torch.testing.assert_close(net.small(X), expected)
    torch.testing.assert_close(net.extract()(X), expected)
    net.small(X).sum().backward()
    for name in ("layer.weight", "scale"):
        gradient = net.base.get_parameter(name).grad
        assert gradient is not None
        assert gradient.any()


@EACH
def test_copies_and_other_threads_follow_it_too(way: str):
    net = joint(way)
    expected = net.plan.apply(net.base)(X)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net.extract()))(X), expected)
    found: list[Tensor] = []
    threads = [threading.Thread(target=lambda: found.extend(net.small(X) for _ in range(5))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 15
    for each in found:
        torch.testing.assert_close(each, expected)


@EACH
def test_an_extracted_network_is_complete_and_keeps_its_weights_tied(way: str):
    net = joint(way)
    small = net.extract()
    assert {name for name, _ in small.named_parameters()} == {name for name, _ in net.base.named_parameters()}
    before = small(X)
    with torch.no_grad():
        small.get_parameter("layer.weight").mul_(2)
    assert not torch.equal(small(X), before)
    torch.testing.assert_close(net.extract()(X), before)


class Registry:
    """What all copies of a model have in common."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def __deepcopy__(self, memo: object) -> Registry:
        return self


@pytest.mark.parametrize("wrap", [lambda held: held, lambda held: (held,), lambda held: {"all": [held]}])
def test_what_copies_have_in_common_with_the_model_is_not_changed(wrap: Callable[[Any], Any]):
    model, registry = seeded(lambda: Holding(in_layer)), Registry()
    registry.weights.append(model.layer.weight)
    model.known = wrap(registry)
    net = adjoined.adjoin(model, X, alpha=2)
    sum(out.sum() for out in net(X)).backward()
    net.eval().extract()
    assert registry.weights[0] is model.layer.weight


def in_layer(model: Holding) -> None:
    model.held = model.layer
