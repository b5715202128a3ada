"""Numbers of channels that code reads which no run reaches: folding branches for deployment, replacing the head."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.byobnet import ByobNet, model_cfgs
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from adjoined import SlicePlan
from unchecked import adjoin, make_plan
from zoo import conv, images, lively, plan_of, seeded

X = images(2, 3, 8, 8)


class Branches(nn.Module):
    """A convolution beside an identity, each with a norm; both can be folded into one convolution."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.in_channels, self.groups = channels, groups
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=groups, bias=False)
        self.norm, self.identity = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + self.identity(x))

    def folded(self, x: Tensor) -> Tensor:
        size = self.in_channels // self.groups
        identity = torch.zeros(self.in_channels, size, 3, 3)
        for channel in range(self.in_channels):
            identity[channel, channel % size, 1, 1] = 1
        weight, bias = 0, 0
        for kernel, norm in ((self.conv.weight, self.norm), (identity, self.identity)):
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()  # pyright: ignore[reportOptionalOperand]
            weight = weight + kernel * scale.view(-1, 1, 1, 1)
            bias = bias + norm.bias - norm.running_mean * scale  # pyright: ignore[reportOptionalOperand]
        return F.relu(F.conv2d(x, weight, bias, padding=1, groups=self.groups))  # pyright: ignore[reportArgumentType]


class Foldable(nn.Module):
    """A network with a head that can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.num_features = conv(3, 32), 32
        self.blocks = nn.Sequential(Branches(32, 1), Branches(32, 32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


@pytest.mark.parametrize("alpha", [2, 2.5])
def test_branches_are_folded_and_a_head_is_replaced_as_in_the_base(alpha: float):
    net = adjoin(lively(seeded(Foldable), X).float(), X, alpha=alpha, round_to=1)
    small = net.extract()
    with torch.no_grad():
        x = small.get_submodule("stem")(X)
        for block in small.get_submodule("blocks").children():
            assert isinstance(block, Branches)
            torch.testing.assert_close(block.folded(x), block(x))
            x = block(x)
    small.head = nn.Linear(small.num_features, 7)  # pyright: ignore
    assert small(X).shape == (2, 7)
    again = SlicePlan.from_json(json.loads(json.dumps(net.plan.to_json()))).apply(net.base)
    assert again.num_features == small.num_features == len(x[0])


def test_a_network_of_timm_is_reparametrised():
    made: Any = model_cfgs["mobileone_s0"]
    model = ByobNet(replace(made, blocks=tuple(stage[:2] for stage in made.blocks)), num_classes=5)
    x = images(2, 3, 32, 32, dtype=torch.float64)
    small = adjoin(model.double().eval(), x, alpha=2).extract()
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(small)(x), small(x))


class Reading(nn.Module):
    """Its forward reads one of its numbers in every mode, and another in train mode."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.dim = self.embed_dim = self.num_features = 32
        self.stem, self.inner, self.head = conv(3, 32), conv(32, 64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(self.stem(x) * self.dim**-0.5)
        return self.head(x.mean((2, 3)) * (self.embed_dim if self.training else 1))


class Final(Foldable):
    """Nothing may be derived from it."""

    def __init_subclass__(cls) -> None:
        raise TypeError("final")


class Comparing(Foldable):
    """Its forward compares classes."""

    def forward(self, x: Tensor) -> Tensor:
        if type(self) is not Comparing:
            raise TypeError("another class")
        return super().forward(x)


@pytest.mark.parametrize(("network", "corrected"), [(Foldable, True), (Final, False), (Comparing, False)])
def test_numbers_stay_where_it_cannot_be_seen_who_reads_them(network: type[Foldable], corrected: bool):
    assert plan_of(seeded(network), 2).attributes.get("num_features") == (16 if corrected else None)


@pytest.mark.parametrize(("classes", "corrected"), [(5, {"num_features": 16}), (32, {})])
def test_numbers_stay_that_a_forward_reads_or_that_layers_disagree_about(classes: int, corrected: dict[str, int]):
    assert plan_of(seeded(lambda: Reading(classes)), 2).attributes == corrected


def test_layers_with_a_common_weight_and_norms_without_tensors_tell_what_is_left():
    class Block(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.in_chs, self.conv = 32, nn.Conv2d(32, 32, 3, padding=1)
            self.conv.weight = weight
            self.norm = nn.BatchNorm2d(32, affine=False, track_running_stats=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

    weight = nn.Parameter(torch.randn(32, 32, 3, 3))
    plan = make_plan(nn.Sequential(conv(3, 32), Block(weight), Block(weight), conv(32, 5)), X, alpha=2)
    assert [plan.attributes[f"{number}.in_chs"] for number in (1, 2)] == [16, 16]
