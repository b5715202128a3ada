"""Sizes that modules read from objects of settings: corrected in the small network, and only there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import SlicePlan
from unchecked import adjoin
from zoo import images, parameters, plan_of, seeded

X = images(2, 3, 8, 8)


@dataclass(frozen=True)
class Widths:
    hidden: int = 64
    heads: int = 4


class Configured(nn.Module):
    """Attention that reads its sizes from settings, which all blocks share."""

    def __init__(self, settings: Any, hidden: int, heads: int) -> None:
        super().__init__()
        self.settings, self.names = settings, (hidden, heads)
        self.qkv, self.out = nn.Linear(64, 192), nn.Linear(64, 64)

    def sizes(self) -> tuple[int, int]:
        held = self.settings
        held = held["model"] if isinstance(held, dict) else getattr(held, "model", held)
        return held.hidden, held.heads

    def forward(self, x: Tensor) -> Tensor:
        hidden, heads = self.sizes()
        q, k, v = (part.unflatten(2, (heads, hidden // heads)) for part in self.qkv(x).split(hidden, 2))
        shares = torch.einsum("nlhd,nmhd->nhlm", q, k).softmax(3)
        return self.out(torch.einsum("nhlm,nmhd->nlhd", shares, v).reshape(*x.shape[:2], hidden))


class Blocks(nn.Module):
    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.blocks = nn.Sequential(*(Configured(settings, 64, 4) for _ in range(2)))
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x).flatten(2).transpose(1, 2)).mean(1))


SETTINGS: dict[str, Any] = {
    "a frozen dataclass": Widths,
    "a namespace in a namespace": lambda: SimpleNamespace(model=SimpleNamespace(hidden=64, heads=4)),
    "an object in a dict": lambda: {"model": Widths()},
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_sizes_in_settings_are_corrected_only_in_the_small_network(kind: str):
    model = seeded(lambda: Blocks(SETTINGS[kind]()))
    net = adjoin(model, X, alpha=2, round_to=1, check=True)
    assert parameters(net.extract()) < 0.27 * parameters(model)
    block: Any = net.extract().get_submodule("blocks.1")
    assert block.sizes()[0] == 32
    assert net.base.get_submodule("blocks.1").sizes() == (64, 4)  # pyright: ignore
    again = SlicePlan.from_json(json.loads(json.dumps(net.plan.to_json()))).apply(model)
    torch.testing.assert_close(again(X), net.extract()(X))


class Single(SimpleNamespace):
    """Settings of which there is only one."""

    def __deepcopy__(self, memo: object) -> Single:
        return self


def test_settings_that_copies_share_with_the_model_stay_as_they_are():
    settings = Single(hidden=64, heads=4)
    model = seeded(lambda: Blocks(settings))
    plan = plan_of(model, alpha=2)
    assert plan.small_shape("blocks.0.qkv.weight")[0] == 192
    assert vars(settings) == {"hidden": 64, "heads": 4}
    assert plan.apply(model)(X).shape == (2, 5)


class TiedByHook(nn.Module):
    """A layer without a weight until a hook sets it, turned from that of another layer."""

    def __init__(self, layer: str) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)
        linear = layer == "linear"
        self.down = nn.Linear(32, 24) if linear else nn.Conv2d(32, 24, 1)
        self.up = nn.Linear(24, 32) if linear else nn.Conv2d(24, 32, 1)
        del self.up.weight
        self.up.register_forward_pre_hook(self.tie)

    def tie(self, module: nn.Module, _args: Any) -> None:
        module.weight = self.down.weight.transpose(0, 1)  # pyright: ignore[reportAttributeAccessIssue]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x.movedim(1, -1) if isinstance(self.up, nn.Linear) else x
        x = self.up(self.down(x).relu())
        return self.head((x.movedim(-1, 1) if isinstance(self.up, nn.Linear) else x).mean((2, 3)))


@pytest.mark.parametrize("layer", ["linear", "convolution"])
def test_a_layer_whose_weight_a_hook_sets_has_no_sizes_to_correct_before(layer: str):
    model = seeded(lambda: TiedByHook(layer))
    net = adjoin(model, X, alpha=2, round_to=1)
    assert net.plan.small_shape("down.weight")[:2] == (12, 16)
    assert net.plan.small_shape("up.bias") == (16,)
    p, q = net(X)
    (p.sum() + q.sum()).backward()
    torch.testing.assert_close(net.extract()(X), q)
    torch.testing.assert_close(net.plan.apply(net.base)(X), q)


class Recursive(nn.Module):
    """HorNet's gated convolution: splits channels by a list of sizes, which is longer for a higher order."""

    def __init__(self, dim: int, order: int) -> None:
        super().__init__()
        self.dims: Any = [dim // 2**i for i in reversed(range(order))] if order else dim
        sizes = self.dims if isinstance(self.dims, list) else [self.dims]
        self.proj_in, self.proj_out = nn.Conv2d(dim, sizes[0] + sum(sizes), 1), nn.Conv2d(dim, dim, 1)
        self.depthwise = nn.Conv2d(sum(sizes), sum(sizes), 3, padding=1, groups=sum(sizes))
        self.pointwise = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.dims if isinstance(self.dims, list) else [self.dims]
        x, gates = self.proj_in(x).split([sizes[0], sum(sizes)], 1)
        first, *others = self.depthwise(gates).split(sizes, 1)
        x = x * first
        for layer, gate in zip(self.pointwise, others, strict=True):
            x = layer(x) * gate
        return self.proj_out(x)


@pytest.mark.parametrize("orders", [(2, 4), (4, 2), (2, 0, 4), (2, 3, 4)])
def test_sizes_in_lists_of_other_lengths_are_corrected(orders: tuple[int, ...]):
    def make() -> nn.Module:
        layers = [nn.Conv2d(3, 32, 1), *(Recursive(32, order) for order in orders), nn.Conv2d(32, 5, 1)]
        return nn.Sequential(*layers)

    model = seeded(make)
    small = adjoin(model, X, alpha=2, round_to=1, check=True).extract()
    assert parameters(small) < 0.3 * parameters(model)
    dims = [layer.dims for layer in small.children() if isinstance(layer, Recursive)]
    assert dims == [[16 // 2**i for i in reversed(range(order))] if order else 16 for order in orders]
