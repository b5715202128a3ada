"""One construct at a time: the small network equals the masked form, or channels stay wide for a named reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import odd_constructs as odd
from adjoined import SlicePlan
from constructs import (
    NARROWING,
    AuxiliaryHead,
    Depthwise,
    GroupedInside,
    GroupedInWholeGroups,
    GroupNorm,
    Net,
    TiedParameters,
    X,
    network,
)
from masked import masked, relative_error
from unchecked import adjoin, make_plan
from zoo import conv, images, lively, parameters, plan_of, seeded


def equals_masked(model: nn.Module, plan: SlicePlan, x: Tensor = X) -> nn.Module:
    """Check law 2, and return the small network."""
    small = plan.apply(model)
    with torch.no_grad():
        error = relative_error(small(x), masked(model, plan)(x))
    assert error <= 1e-10, plan.tensors
    return small


def width(model: nn.Module, name: str, dim: int = 0) -> int:
    return model.get_parameter(f"{name}.weight").shape[dim]


@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize("cls", NARROWING, ids=lambda cls: cls.__name__)
def test_construct_narrows_and_equals_the_masked_form(cls: type[Net], alpha: float):
    model = network(cls)
    plan = make_plan(model, X, alpha=alpha, round_to=1)
    assert {group.reason for group in plan.groups} == {"", "model output"}
    assert not plan.crossing
    assert not plan.unaligned
    small = equals_masked(model, plan)
    assert width(small, "body") == 48 / alpha
    assert width(small, "body", 1) == model.reads / alpha
    weight = small.get_parameter("body.weight")
    with torch.no_grad():
        expected = small(X)
        weight.copy_(weight.roll(1, 1))
        assert relative_error(small(X), expected) >= 1e-4


def test_whole_groups_or_slices_inside_them():
    kinds = {
        cls: make_plan(network(cls), X, alpha=2, round_to=1).conv_groups
        for cls in (GroupedInWholeGroups, GroupedInside, Depthwise, GroupNorm)
    }
    assert kinds[GroupedInWholeGroups] == {"one": 4}
    assert kinds[GroupedInside] == {"one": 1}
    assert make_plan(network(GroupedInside), X, alpha=4, round_to=1).conv_groups == {}
    assert kinds[Depthwise] == {"one": 16}
    assert kinds[GroupNorm] == {"norm": 4}


def test_one_channel_is_left_in_each_group():
    """6 channels in 3 groups at alpha = 2: dropping a group would keep 4, one channel of each keeps 3."""
    model = lively(seeded(lambda: nn.Sequential(conv(3, 6), conv(6, 9, groups=3), conv(9, 8), nn.Flatten())), X)
    plan = make_plan(model, X, alpha=2, round_to=1)
    small = equals_masked(model, plan)
    assert not plan.conv_groups
    assert not plan.unaligned
    assert small.get_parameter("1.weight").shape == (6, 1, 3, 3)


def test_tied_parameters_stay_tied():
    model = network(TiedParameters)
    net = adjoin(model, X, alpha=2, round_to=1)
    small = net.extract()
    assert small.get_parameter("one.weight") is small.get_parameter("two.weight")
    assert len(list(net.parameters())) == len(list(model.parameters())) + 2  # and the small network's norm


@pytest.mark.parametrize("kept", ["one", "two"])
def test_what_is_tied_to_a_kept_tensor_is_kept(kept: str):
    plan = make_plan(network(TiedParameters), X, alpha=2, round_to=1, keep=[kept])
    equals_masked(network(TiedParameters), plan)
    assert plan.small_shape("one.weight") == plan.small_shape("two.weight") == plan.shapes["one.weight"]


# ---- constructs that stay at full width, and say why ---------------------------------------------------------------


OWN_FORWARD = "the model's own forward"
WIDE: list[tuple[type[Net], str, str]] = [
    (odd.HardCodedView, "stem.0", rf"asks for a size of 2048 .*{OWN_FORWARD} \(view\), odd_constructs.py:20$"),
    (odd.HardCodedFold, "stem.0", rf"asks for a size of 32 .*{OWN_FORWARD} \(view\), odd_constructs.py:25$"),
    (odd.HardCodedWeight, "one", rf"{OWN_FORWARD} \(view\)"),
    (odd.PlacesMixed, "one", rf"{OWN_FORWARD} \(view\)"),
    (odd.HardCodedZeros, "stem.0", rf"{OWN_FORWARD} \(add\)"),
    (odd.HardCodedConstant, "stem.0", rf"combined with a tensor of fixed width, in {OWN_FORWARD} \(mul\)"),
    (odd.HalvesWritten, "stem.0", rf"combined with a tensor of fixed width, in {OWN_FORWARD} \(mul\)"),
    (odd.PositionsWritten, "stem.0", rf"combined with a tensor of fixed width, in {OWN_FORWARD} \(add\)"),
    (odd.HardCodedOrder, "stem.0", rf"{OWN_FORWARD} \(index_select\)"),
    (odd.ZeroPaddedShortcut, "stem.0", rf"padded with a fixed number of channels, in {OWN_FORWARD}"),
    (odd.CroppedByPadding, "stem.0", rf"cut off by a padding of fixed size, in {OWN_FORWARD}"),
    (odd.RelativePositions, "table", rf"padded with a fixed number of channels, in {OWN_FORWARD}"),
    (odd.Sorted, "stem.0", r"sorted by value"),
    (odd.Fourier, "stem.0", r"a Fourier transform along the channels"),
    (odd.Rolled, "stem.0", r"two channel groups meet in 'body'"),
    (odd.OneAtATime, "stem.0", r"^code takes its channels one at a time$"),
    (odd.Unbound, "stem.0", r"^code takes its channels one at a time$"),
    (odd.WrittenOneByOne, "stem.0", r"^code takes its channels one at a time$"),
    (odd.OuterProduct, "two", r"two channels at once, in 'body' \(convolution\)"),
]


@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize(("cls", "module", "reason"), WIDE, ids=lambda value: getattr(value, "__name__", ""))
def test_construct_stays_wide_for_a_named_reason(cls: type[Net], module: str, reason: str, alpha: float):
    model = network(cls)
    plan = make_plan(model, X, alpha=alpha, round_to=1)
    small = equals_masked(model, plan)
    groups = [group for group in plan.groups if module in group.modules and group.name == module]
    assert groups
    assert all(re.search(reason, group.reason) and group.kept == group.width for group in groups), groups
    assert width(small, module) == width(model, module)
    assert groups[0].why
    assert groups[0].reason in str(plan)
    assert groups[0].why.remedy


def test_channels_before_a_literal_bound_stay_wide_and_those_behind_it_narrow():
    model = network(odd.HardCodedSlice)
    plan = make_plan(model, X, alpha=4, round_to=1)
    equals_masked(model, plan)
    before, behind = (group for group in plan.groups if group.name == "stem.0")
    assert (before.width, before.kept, behind.width, behind.kept) == (16, 16, 16, 4)
    assert re.search(r"asks for a size of 16 .* \(slice\), odd_constructs.py:32$", before.reason)


@pytest.mark.parametrize(
    "cls", [odd.PlacesMixed, odd.Sorted, odd.Fourier, odd.HardCodedConstant, odd.OuterProduct, odd.ZeroPaddedShortcut]
)
def test_the_rest_of_the_network_still_narrows(cls: type[Net]):
    assert width(make_plan(network(cls), X, alpha=4, round_to=1).apply(network(cls)), "body") == 12


# ---- statistics across channels: narrow, but not the masked form; the plan says where ------------------------------


@pytest.mark.parametrize("cls", odd.CROSSING, ids=lambda cls: cls.__name__)
def test_statistic_across_channels_is_named(cls: type[Net]):
    model = network(cls)
    plan = make_plan(model, X, alpha=4, round_to=1)
    assert set(plan.crossing) == {"one"}
    small = plan.apply(model)
    assert width(small, "body", 1) == 8
    with torch.no_grad():
        assert small(X).isfinite().all()
        assert relative_error(small(X), masked(model, plan)(X)) >= 1e-4


# ---- numbers in the code that cut channels: right, or said to be unaligned -----------------------------------------


@pytest.mark.parametrize("alpha", [2, 2.5, 4])
@pytest.mark.parametrize("cls", odd.CUTS, ids=lambda cls: cls.__name__)
def test_channels_cut_by_numbers_are_right_or_named(cls: type[Net], alpha: float):
    model = network(cls)
    plan = make_plan(model, X, alpha=alpha, round_to=1)
    small = plan.apply(model)
    assert small(X).shape == (2, 5)
    assert parameters(small) < 0.5 * parameters(model)  # whatever is given up, it is not the whole network
    if not plan.unaligned:
        equals_masked(model, plan)


# ---- inputs, outputs, modes ----------------------------------------------------------------------------------------


def test_auxiliary_head_is_sliced_with_the_rest():
    model = network(AuxiliaryHead)
    net = adjoin(model, X, alpha=4, round_to=1)
    small = equals_masked(model, net.plan)
    assert small.get_parameter("side.weight").shape == (10, 8, 3, 3)
    assert small.get_parameter("aux.weight").shape == (7, 10)
    (p, p_aux), (q, q_aux) = net.train()(X)
    assert p.shape == q.shape == (2, 5)
    assert p_aux.shape == q_aux.shape == (2, 7)
    q_aux.square().mean().backward()
    assert model.get_parameter("side.weight").grad is not None


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other = conv(3, 32), nn.Linear(4, 32)
        self.body, self.head = conv(32, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor, extra: Tensor, *, scale: float = 1.0) -> Any:
        x = self.stem(x) + self.other(extra)[:, :, None, None]
        out = self.body(x).tanh().mean((2, 3)) * scale
        return {"logits": self.head(out), "features": [x.mean((2, 3)), out]}


@pytest.mark.parametrize("as_dict", [False, True])
def test_several_inputs_and_outputs_in_containers(as_dict: bool):
    model = seeded(TwoInputs).double().eval()
    extra = images(2, 4, dtype=torch.float64)
    example = {"x": X, "extra": extra, "scale": 2.0} if as_dict else (X, extra)
    net = adjoin(model, example, alpha=4, round_to=1)
    p, q = net(X, extra, scale=3.0)
    assert set(q) == {"logits", "features"}
    assert (
        [tensor.shape for tensor in q["features"]] == [tensor.shape for tensor in p["features"]] == [(2, 32), (2, 48)]
    )
    assert net.extract().get_parameter("head.weight").shape == (5, 48)  # all of it is output, so all of it is wide
    assert {group.reason for group in net.plan.groups} >= {"model output"}
    expected = masked(model, net.plan)(X, extra, scale=3.0)
    assert relative_error(q["logits"], expected["logits"]) <= 1e-10


class TwoOutputs(Net):
    def parts(self) -> None:
        self.deep = conv(48, 40)

    def forward(self, x: Tensor) -> Any:
        x = self.body(self.stem(x)).relu()
        return self.head(x.mean((2, 3))), self.deep(x).relu().mean(1)


def test_tuple_of_outputs():
    model = network(TwoOutputs)
    net = adjoin(model, X, alpha=4, round_to=1)
    p, q = net(X)
    assert [out.shape for out in q] == [out.shape for out in p] == [(2, 5), (2, 8, 8)]
    assert net.extract().get_parameter("deep.weight").shape[1] == 12
    with torch.no_grad():
        assert relative_error(q[0], masked(model, net.plan)(X)[0]) <= 1e-10


class DecidesByValues(Net):
    """Control flow by values cannot be followed without values."""

    def mid(self, x: Tensor) -> Tensor:
        return x if bool((x > -1).any()) else -x


def test_control_flow_by_values():
    model = network(DecidesByValues)
    small = equals_masked(model, make_plan(model, X, alpha=4, round_to=1))
    assert width(small, "body", 1) == 8


def test_network_without_anything_to_narrow_keeps_everything_and_says_why():
    model = nn.Sequential(conv(3, 5), nn.Flatten())
    plan = plan_of(model)
    assert not plan.tensors
    assert [(group.name, group.reason) for group in plan.groups] == [("0", "model output")]
