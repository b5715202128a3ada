"""Code that keeps weights, or views of them, where a small network's weights cannot follow is refused by name."""

from __future__ import annotations

import collections
import functools
import weakref
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import adjoined
from zoo import images, seeded

X = images(4, 3, 8, 8)


class Keeping(nn.Module):
    """Reads the weight of its layer through a function, which gets what another one has kept."""

    def __init__(self, keep: Callable[[nn.Conv2d], Any], read: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.stem, self.layer, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Linear(16, 5)
        self.kept, self.read = keep(self.layer), read

    def weight(self) -> Tensor:
        return self.read(self.kept)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.layer(x) + F.conv2d(x, self.weight())
        return self.head(x.relu().mean((2, 3)))


class Cached(Keeping):
    def __init__(self) -> None:
        super().__init__(lambda layer: None, lambda kept: kept)

    @functools.lru_cache  # noqa: B019
    def weight(self) -> Tensor:
        return self.layer.weight


class CachedOutside(Keeping):
    """Keeps its weight in a dict of its class."""

    all: ClassVar[weakref.WeakKeyDictionary[nn.Module, Tensor]] = weakref.WeakKeyDictionary()

    def __init__(self) -> None:
        super().__init__(lambda layer: None, lambda kept: kept)

    def weight(self) -> Tensor:
        return self.all.setdefault(self, self.layer.weight)


def in_array(layer: nn.Conv2d) -> Any:
    array = np.empty(1, dtype=object)
    array[0] = layer.weight
    return array


def first(kept: Any) -> Tensor:
    return next(iter(kept))


HELD: dict[str, Callable[[], nn.Module]] = {
    "set": lambda: Keeping(lambda layer: {layer.weight}, first),
    "frozen set": lambda: Keeping(lambda layer: frozenset([layer.weight]), first),
    "key": lambda: Keeping(lambda layer: {layer.weight: 1}, first),
    "array": lambda: Keeping(in_array, first),
    "counter": lambda: Keeping(lambda layer: collections.Counter([layer.weight]), first),
}


@pytest.mark.parametrize("way", HELD)
def test_a_weight_held_where_it_cannot_be_followed_is_refused(way: str):
    with pytest.raises(adjoined.AdjoinedError, match=r"^layer\.weight: .* in a set.*private=\('layer',\)"):
        adjoined.adjoin(seeded(HELD[way]), X, alpha=2, round_to=1)
    follows(adjoined.adjoin(seeded(HELD[way]), X, alpha=2, round_to=1, private=("layer",)))


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("way", [Cached, CachedOutside])
def test_a_weight_of_an_earlier_call_is_refused_when_it_is_read(way: type[nn.Module], train: bool):
    net = adjoined.adjoin(seeded(way), X, alpha=2, round_to=1, check=False).train()
    net(X)
    with pytest.raises(adjoined.AdjoinedError, match=r"^layer\.weight: .*from an earlier call.*private=\('layer',\)"):
        net.train(train)(X)
    follows(adjoined.adjoin(seeded(way), X, alpha=2, round_to=1, check=False, private=("layer",)))


class AsksForSize(Cached):
    """Keeps a weight whose values it does not read again."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.stem(x).relu()).relu().mean((2, 3))) / self.weight().shape[0]


def test_a_weight_of_an_earlier_call_may_be_asked_for_its_size():
    follows(adjoined.adjoin(seeded(AsksForSize), X, alpha=2, round_to=1, check=False))


def follows(net: adjoined.AdjoinedNetwork) -> None:
    """Check that a trained small network is the one that is extracted."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(2):
        torch.cat(net(X)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    net.eval()
    torch.testing.assert_close(net.extract()(X), net(X)[1])


VIEWS: dict[str, Callable[[nn.Conv2d], Tensor]] = {
    "detached": lambda layer: layer.weight.detach(),
    "data": lambda layer: layer.weight.data,
    "view": lambda layer: layer.weight.view(16, 144).view(16, 16, 3, 3),
    "transposed": lambda layer: layer.weight.transpose(0, 1),
}
PLACES: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]] = {
    "attribute": (lambda view: view, lambda kept: kept),
    "list": (lambda view: [view], first),
    "tuple in a dict": (lambda view: {"views": (view,)}, lambda kept: kept["views"][0]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("view", VIEWS)
def test_views_made_before_the_call_are_refused_when_they_are_read(view: str, place: str):
    put, read = PLACES[place]
    model = seeded(lambda: Keeping(lambda layer: put(VIEWS[view](layer)), read))
    with pytest.raises(adjoined.AdjoinedError, match=r"^layer\.weight: its own forward reads a view of this weight"):
        adjoined.adjoin(model, X, alpha=2)


def test_a_buffer_in_the_memory_of_a_weight_is_refused_when_it_is_read():
    model = seeded(lambda: Keeping(lambda layer: layer.weight.detach(), lambda kept: kept))
    del model.kept
    model.register_buffer("kept", model.layer.weight.detach())
    with pytest.raises(adjoined.AdjoinedError, match=r"^layer\.weight: .*reads a view"):
        adjoined.adjoin(model, X, alpha=2)


def test_views_that_are_not_read_and_copies_of_weights_are_no_obstacle():
    model = seeded(lambda: Keeping(lambda layer: layer.weight.detach().clone(), lambda kept: kept))
    model.at_first = model.state_dict()
    net = adjoined.adjoin(model, X, alpha=2, check=False)  # which would run it in float64
    assert [tuple(each.shape) for each in net(X)] == [(4, 5), (4, 5)]
