"""Behind channel shuffles every channel of the small network is a channel of the base, in the same places."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from adjoined import adjoint_loss
from adjoined.slicing import Index, Kind, SlicePlan, add_at, check_plan, take
from pairs import same
from shuffles import ShuffleNetV1, ShuffleNetV2
from unchecked import adjoin, make_plan
from zoo import images, lively, parameters, seeded, torchvision_model


def check(model: nn.Module, alpha: float, size: int = 32) -> SlicePlan:
    x = images(2, 3, size, size)
    plan = make_plan(model, x, alpha=alpha, round_to=1)
    assert not plan.unaligned
    checked = check_plan(model, x, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error <= 1e-8
    assert plan.cost is not None
    assert plan.base_cost is not None
    share = plan.cost.parameters_without_last / plan.base_cost.parameters_without_last
    assert 0.5 / alpha**2 < share < 2 / alpha**2  # every width is rounded up, or to one with places
    return plan


@pytest.mark.parametrize(("groups", "alpha"), [(2, 2), (3, 2), (4, 4)])
def test_grouped_convolutions_with_shuffles(groups: int, alpha: float):
    check(ShuffleNetV1(groups, units=(2,)), alpha)


@pytest.mark.parametrize(("style", "alpha"), [("slice", 2.5), ("chunk", 4), ("split", 3), ("number", 4), ("deal", 4)])
def test_splits_and_shuffles_by_hand(style: str, alpha: float):
    check(ShuffleNetV2(style, widths=(48,), units=(4,)), alpha)


def test_around_a_literal_number_the_rest_narrows_and_the_plan_names_the_line():
    """The units hand on 48 channels, as the code says; between their convolutions, the channels narrow."""
    model, x = ShuffleNetV2("literal", widths=(48,), units=(3,)), images(2, 3, 32, 32)
    plan = make_plan(model, x, alpha=2.5, round_to=1)
    assert not plan.unaligned
    assert check_plan(model, x, plan).how == "masked base"
    assert parameters(plan.apply(model)) < 0.45 * parameters(model)
    reasons = [group.why for group in plan.groups if group.why is not None and group.why.kind is not Kind.OUTPUT]
    assert {reason.kind for reason in reasons} == {Kind.FIXED_SIZE}
    assert all("shuffles.py" in reason.text for reason in reasons)


def test_a_width_without_a_place_for_every_channel_is_replaced_by_one_that_has():
    """Among 12 of 24 channels is one that the base reads a unit earlier or a unit later, but not in the same unit."""
    plan = check(ShuffleNetV2("chunk", widths=(48,), units=(7,)), 2)
    assert {group.kept for group in plan.groups if group.width == 24} == {8}


def test_widths_in_multiples_of_eight_agree_before_and_behind_a_shuffle():
    """Of 48 channels, layers before a shuffle keep 12 in each half, and those behind it would keep 16."""
    model, x = ShuffleNetV2("chunk", widths=(96,), units=(2,)), images(2, 3, 32, 32)
    plan = make_plan(model, x, alpha=4)
    assert check_plan(model, x, plan).how == "masked base"
    assert parameters(plan.apply(model)) < 0.15 * parameters(model)


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "alpha"), [(2, 3), (3, 2.5), (4, 2)])
def test_whole_networks_of_grouped_convolutions(groups: int, alpha: float):
    check(ShuffleNetV1(groups, units=(4, 8, 4)), alpha)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "alpha"), [("x0_5", 2), ("x1_0", 2.5), ("x1_5", 3), ("x2_0", 4)])
def test_torchvision_networks(width: str, alpha: float):
    check(torchvision_model(f"shufflenet_v2_{width}"), alpha, size=64)


def test_the_joint_network_and_what_is_extracted_agree():
    model = lively(seeded(lambda: ShuffleNetV2("chunk")), images(2, 3, 32, 32, dtype=torch.float64))
    net = adjoin(model, images(2, 3, 32, 32, dtype=torch.float64), alpha=2, round_to=1)
    assert not net.plan.in_order  # no ascending choice of channels keeps them in place
    x, y = images(4, 3, 32, 32, dtype=torch.float64), torch.arange(4)
    with torch.no_grad():
        assert same(net.extract()(x), net.small(x))
    before = [parameter.clone() for parameter in net.base.parameters()]
    adjoint_loss(*net(x), y, progress=1.0).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert all(map(torch.equal, before, net.base.parameters()))


def test_saved_plans_keep_the_order(tmp_path):
    model = ShuffleNetV2("chunk", units=(2, 2))
    plan = make_plan(model, images(2, 3, 32, 32), alpha=2, round_to=1)
    plan.save(tmp_path / "plan.json")
    assert SlicePlan.load(tmp_path / "plan.json").tensors == plan.tensors
    assert parameters(plan.apply(model)) < 0.4 * parameters(model)


@pytest.mark.parametrize("order", [lambda n: range(0, n, 2), lambda n: [*range(1, n, 2), *range(0, n, 2)]])
def test_scattered_indices_take_and_add(order: Callable[[int], range | list[int]]):
    weight = torch.randn(24, 30, 3, dtype=torch.float64, requires_grad=True)
    indices = (Index.of(order(24)), None, Index.of([2, 0]))
    part = take(weight, indices)
    assert torch.equal(part, weight[list(order(24))][:, :, [2, 0]])
    other = torch.randn_like(part)
    (expected,) = torch.autograd.grad(part, weight, other)
    total = torch.zeros_like(weight)
    add_at(total, indices, other)
    assert torch.equal(total, expected)
