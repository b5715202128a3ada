"""Law 2: the sliced network gives the logits of the paper's masked form, z₂ = x₂ * (W ∘ M); in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from adjoined.slicing import Index, Kind, SlicePlan
from masked import masked, relative_error
from random_networks import random_network
from unchecked import make_plan
from zoo import Flattened, TwoGroups, images, lively, parameters, seeded, small_inner_layer, torchvision_model

EQUAL, DIFFERENT = 1e-8, 1e-4
STEM = ("conv1", "bn1", "layer1")


class Case(NamedTuple):
    """One network under one request."""

    network: str
    alpha: float = 4
    round_to: int = 1
    keep: tuple[str, ...] = ()
    size: int = 64

    def build(self) -> nn.Module:
        dense = partial(DenseNet, growth_rate=16, block_config=(2, 2), num_init_features=32, num_classes=10)
        own: dict[str, Callable[[], nn.Module]] = {"flattened": Flattened, "two groups": TwoGroups, "dense": dense}
        return seeded(own[self.network]) if self.network in own else torchvision_model(self.network)


SMALL = {"flattened": 8, "two groups": 8, "dense": 32, "vgg16_bn": 32}
CASES = [
    Case("resnet18"),
    Case("resnet18", alpha=2, round_to=8),
    Case("resnet18", alpha=2.5),
    Case("resnet18", keep=STEM),
    Case("resnet50", round_to=8),
    Case("dense", round_to=8, size=32),
    Case("mobilenet_v2", alpha=2.5, round_to=8),
    Case("mobilenet_v3_small"),  # squeeze and excitation
    Case("googlenet", alpha=2),
    Case("resnext50_32x4d", round_to=8),  # drops whole groups
    Case("two groups", size=8),  # sliced inside its groups
    Case("shufflenet_v2_x1_0"),
    Case("flattened", size=8),
    Case("flattened", alpha=2.5, round_to=8, size=8),
    Case("flattened", alpha=2, keep=("4",), size=8),
]
WAYS = {Case("resnext50_32x4d", round_to=8): True, Case("two groups", size=8): False}
"""Case -> whether the plan drops whole groups of its grouped convolutions."""
NETWORKS = [*dict.fromkeys(case.network for case in CASES), "densenet121", "vgg16_bn", "shufflenet_v2_x0_5"]
GRID = [
    Case(network, alpha, round_to, size=SMALL.get(network, 64))
    for network in NETWORKS
    for alpha in (2, 2.5, 4)
    for round_to in (1, 8)
]


def check(case: Case) -> None:
    x = images(2, 3, case.size, case.size, dtype=torch.float64)
    model = lively(case.build(), x)
    plan = make_plan(model, x, alpha=case.alpha, round_to=case.round_to, keep=case.keep)
    assert not plan.crossing
    assert not plan.unaligned
    if case in WAYS:
        assert bool(plan.conv_groups) == WAYS[case]
    small = plan.apply(model)
    assert parameters(small) < 0.8 * parameters(model)
    with torch.no_grad():
        expected = masked(model, plan)(x)
        assert relative_error(small(x), expected) <= EQUAL
        assert relative_error(expected, model(x)) >= DIFFERENT  # the masks do something
        roll_inputs(small, x)
        assert relative_error(small(x), expected) >= DIFFERENT  # and the comparison sees a channel out of place


def roll_inputs(small: nn.Module, x: Tensor) -> None:
    weight = small_inner_layer(small, x).weight
    assert isinstance(weight, Tensor)
    weight.data = weight.roll(1, 1)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_sliced_equals_masked(case: Case):
    check(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in GRID if case not in CASES], ids=str)
def test_sliced_equals_masked_for_every_alpha_and_rounding(case: Case):
    check(case)


def check_random(seed: int) -> SlicePlan:
    x = images(2, 3, 8, 8, dtype=torch.float64)
    model = lively(random_network(seed), x)
    alpha, round_to = (2, 2.5, 3, 4)[seed % 4], (1, 1, 1, 8)[seed // 4 % 4]
    plan = make_plan(model, x, alpha=alpha, round_to=round_to)
    small = plan.apply(model)
    assert not plan.crossing
    assert not plan.unaligned
    with torch.no_grad():
        expected = masked(model, plan)(x)
        assert relative_error(small(x), expected) <= EQUAL, model.steps
        weight = small.get_parameter("body.weight")
        if weight.shape[1] > 1:
            weight.copy_(weight.roll(1, 1))
            assert relative_error(small(x), expected) >= DIFFERENT, model.steps
    return plan


@pytest.mark.parametrize("seed", range(40))
def test_sliced_equals_masked_for_random_networks(seed: int):
    plan = check_random(seed)
    kinds = {group.why.kind for group in plan.groups if group.why}
    assert kinds <= {Kind.OUTPUT, Kind.TOO_FEW, Kind.TIED, Kind.ONE_AT_A_TIME}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40, 1000))
def test_sliced_equals_masked_for_many_random_networks(seed: int):
    check_random(seed)


@pytest.mark.parametrize("dim", [0, 1])
def test_shifted_indices_of_the_plan_are_seen(dim: int):
    x = images(2, 3, 8, 8, dtype=torch.float64)
    model = lively(seeded(Flattened), x)
    plan = make_plan(model, x, round_to=1)
    indices = list(plan.indices("4.weight"))
    kept = indices[dim]
    assert kept is not None
    indices[dim] = Index.of(i + 1 for i in kept.tolist())
    shifted = replace(plan, tensors=plan.tensors | {"4.weight": tuple(indices)})
    with torch.no_grad():
        wrong = shifted.apply(model)(x)
        for oracle in (plan, shifted):
            assert relative_error(wrong, masked(model, oracle)(x)) >= DIFFERENT


def test_both_ways_of_narrowing_grouped_convolutions_are_in_the_cases():
    assert WAYS.keys() <= set(CASES)
    assert sorted(WAYS.values()) == [False, True]


def test_networks_with_layer_norm_name_where_they_differ():
    x = images(2, 3, 64, 64, dtype=torch.float64)
    blocks = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, 128, 2), CNBlockConfig(128, None, 2)]
    model = lively(seeded(lambda: ConvNeXt(blocks, num_classes=10)), x)
    plan = make_plan(model, x, round_to=1)
    norms = {name for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    assert norms
    assert set(plan.crossing) == norms
    small = plan.apply(model)
    with torch.no_grad():
        logits = small(x)
        assert relative_error(logits, masked(model, plan)(x)) >= DIFFERENT
    assert logits.shape == (2, 10)
    assert logits.isfinite().all()
