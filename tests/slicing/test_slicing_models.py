"""Every classification CNN of torchvision, and our own ResNets, can be sliced: at alpha = 4, with exact widths."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from adjoined.models import build
from adjoined.slicing import Kind
from unchecked import make_plan
from zoo import images, parameters, torchvision_cnns, torchvision_model

FAST = [
    "alexnet", "convnext_tiny", "efficientnet_b0", "inception_v3", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small",
    "regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "squeezenet1_1",
]  # fmt: skip
"""One size of each construct; the others, and densenet, efficientnet_v2 and maxvit, run with the slow tests."""

SIZES = {"inception_v3": 80, "maxvit_t": 224}
"""Image sizes in pixels, where the default of 64 is too small."""

LEFT_AT_MOST = 0.22
"""Share of the parameters that is left: 1/16, and more where the last layer, which keeps its outputs, is large."""


def check(name: str, model: nn.Module, size: int) -> None:
    plan = make_plan(model, torch.zeros(1, 3, size, size), alpha=4, round_to=1)
    small = plan.apply(model)
    x = images(2, 3, size, size)
    with torch.no_grad():
        p, q = model(x), small(x)
    assert q.shape == p.shape
    assert q.isfinite().all()
    assert parameters(small) <= LEFT_AT_MOST * parameters(model)
    assert {name for name, _ in small.named_modules()} == {name for name, _ in model.named_modules()}
    assert plan.groups
    for group in plan.groups:
        assert 1 <= group.kept <= group.width
        assert (group.kept == group.width) == bool(group.reason), group
        assert group.modules
        assert all(model.get_submodule(each) is not None for each in group.modules), group
        assert group.why is None or group.why.kind is Kind.OUTPUT, group


@pytest.mark.parametrize("name", FAST)
def test_one_torchvision_network_of_each_family(name: str):
    check(name, torchvision_model(name), SIZES.get(name, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in torchvision_cnns() if name not in FAST])
def test_every_other_torchvision_network(name: str):
    check(name, torchvision_model(name), SIZES.get(name, 64))


OWN = ["resnet20", "resnet56", "cifar_resnet18", "wide_resnet16_4"]


@pytest.mark.parametrize("name", OWN)
def test_our_networks_for_small_images(name: str):
    check(name, build(f"adjoined:{name}", num_classes=10), 32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["resnet32", "resnet44", "resnet110", "cifar_resnet34", "cifar_resnet50", "wide_resnet28_10", "wide_resnet40_2"],
)
def test_the_rest_of_our_networks_for_small_images(name: str):
    check(name, build(f"adjoined:{name}", num_classes=10), 32)


@pytest.mark.parametrize("width", [2, 4])
def test_widths_of_our_networks(width: int):
    check("resnet20", build("adjoined:resnet20", num_classes=10, options={"width": width}), 32)
