"""The slice plan: widths, `keep`, applying it to a fresh copy, and leaving the model alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import constructs
from adjoined import AdjoinedError, SlicePlan
from adjoined.slicing import Index, take
from planned import PLANNED
from unchecked import adjoin, make_plan
from zoo import Flattened, Residual, conv, images, plan_of, residual, torchvision_model

X = images(2, 3, 8, 8)


def chain(*widths: int) -> nn.Sequential:
    """Convolutions of these widths, one after the other, and an output of 3 channels."""
    every = [3, *widths, 3]
    return nn.Sequential(*(conv(i, o) for i, o in pairwise(every)))


def kept(plan: SlicePlan) -> list[int]:
    return [group.kept for group in plan.groups if group.reason != "model output"]


# ---- widths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "round_to", "expected"),
    [
        (1, 1, [64, 20, 9]),
        (1, 8, [64, 20, 9]),
        (4, 1, [16, 5, 3]),
        (4, 8, [16, 8, 8]),
        (2.5, 1, [26, 8, 4]),
        (2.5, 8, [32, 8, 8]),
        (3, 4, [24, 8, 4]),
        (64, 1, [1, 1, 1]),
    ],
)
def test_groups_keep_their_first_channels_rounded_up(alpha: float, round_to: int, expected: list[int]):
    model = chain(64, 20, 9)
    plan = make_plan(model, X, alpha=alpha, round_to=round_to)
    assert kept(plan) == expected
    for number, width in enumerate(expected):
        index = plan.indices(f"{number}.weight")[0]
        full = plan.shapes[f"{number}.weight"][0]
        assert (list(range(full)) if index is None else index.tolist()) == list(range(width))


def test_groups_never_grow_beyond_the_base():
    assert kept(make_plan(chain(64, 20, 9), X, alpha=1.01, round_to=16)) == [64, 20, 9]


@pytest.mark.parametrize(("alpha", "round_to"), [(4, 1), (4, 8), (4, 16), (1.01, 8)])
def test_every_group_at_full_width_has_a_reason_and_no_other(alpha: float, round_to: int):
    plan = make_plan(chain(64, 20, 12, 6, 1), X, alpha=alpha, round_to=round_to)
    for group in plan.groups:
        assert bool(group.reason) == (group.kept == group.width), group


@pytest.mark.parametrize("make", PLANNED, ids=lambda make: make.__name__)
def test_small_shapes_are_those_of_the_applied_plan(make: Callable[[], nn.Module]):
    model = make()
    plan = plan_of(model, alpha=2)
    small = plan.apply(model)
    shapes = {name: tuple(tensor.shape) for name, tensor in small.state_dict().items()}
    assert shapes == {name: plan.small_shape(name) for name in shapes}


@pytest.mark.parametrize("make", PLANNED, ids=lambda make: make.__name__)
def test_slices_hold_the_model_s_numbers(make: Callable[[], nn.Module]):
    model = make()
    plan = plan_of(model, alpha=2)
    assert plan.tensors
    state = model.state_dict()
    for name, tensor in plan.apply(model).state_dict().items():
        expected = state[name]
        for dim, index in enumerate(plan.indices(name)):
            if index is not None:
                expected = expected.index_select(dim, torch.tensor(index.tolist()))
        assert torch.equal(tensor, expected), name


def test_sizes_stored_in_modules_follow():
    model = constructs.network(constructs.GroupedInWholeGroups)
    small: Any = plan_of(model.float()).apply(model)
    assert (small.one.in_channels, small.one.out_channels, small.one.groups) == (8, 16, 2)
    assert (small.body.in_channels, small.body.out_channels, small.head.in_features) == (16, 12, 12)
    assert small.stem[1].num_features == 8
    assert "Conv2d(8, 16" in repr(small)


# ---- keep ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [("conv1", "bn1", "layer1"), ["layer2.*.conv1"], "layer?.0.conv2", ("layer4", "fc")])
def test_kept_modules_stay_as_they_are(keep: Any):
    from fnmatch import fnmatchcase

    with torch.device("meta"):
        model = torchvision_model("resnet18")
    plan = make_plan(model, torch.zeros(1, 3, 64, 64, device="meta"), keep=keep)
    patterns = [keep] if isinstance(keep, str) else list(keep)
    assert plan.keep == tuple(patterns)
    matched = [name for name, _ in model.named_modules() if any(fnmatchcase(name, pattern) for pattern in patterns)]
    assert matched
    for tensor in plan.tensors:
        assert not any(tensor.startswith(f"{name}.") for name in matched)
    assert plan.tensors  # the others narrow
    reasons = {group.reason for group in plan.groups}
    assert f"kept by keep={patterns[0]!r}" in reasons
    assert reasons <= {"", "model output"} | {f"kept by keep={pattern!r}" for pattern in patterns}


def test_keeping_everything_keeps_everything():
    plan = plan_of(residual(), keep=["*"])
    assert not plan.tensors
    assert all(group.reason for group in plan.groups)


# ---- of another model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "tensor"),
    [
        (Residual(width=24), "depthwise.bias"),
        (Residual(classes=6), "head.bias"),
        (Flattened(), "0.weight"),
        (nn.Sequential(residual()), "0.depthwise.bias"),
    ],
)
def test_plan_of_another_model_names_the_first_tensor_that_differs(other: nn.Module, tensor: str):
    plan = plan_of(residual())
    for use in (plan.apply, lambda model: adjoin(model, X, plan=plan)):
        with pytest.raises(AdjoinedError, match="another model") as caught:
            use(other)
        assert caught.value.where == tensor


# ---- the model is neither changed nor run --------------------------------------------------------------------------


class Counting(Residual):
    """Counts how often this very module ran."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class Drawing(Residual):
    """Draws random numbers whenever it runs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + torch.rand(1, device="cpu").item())


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "use", [lambda m: make_plan(m, X), lambda m: adjoin(m, X), lambda m: adjoin(m, X, alpha=(2, 4)).extract()]
)
def test_model_is_left_alone(use: Callable[[nn.Module], Any], mode: bool):
    model = Counting().train(mode)
    model.norm2.eval()
    model.stem.requires_grad_(False)
    state = {
        name: (tensor, tensor.clone(), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    modes = [module.training for module in model.modules()]
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    random = torch.get_rng_state()
    example = X.clone()
    use(model)
    assert model.runs == 0
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(example, X)
    assert [module.training for module in model.modules()] == modes
    for name, tensor in model.state_dict(keep_vars=True).items():
        before, value, version = state[name]
        assert tensor is before
        assert torch.equal(tensor, value)
        assert tensor._version == version
        assert not isinstance(tensor, nn.Parameter) or tensor.grad is None
    for name, module in model.named_modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert {key for key, _ in vars(module).items()} == set(attributes[name])


@pytest.mark.parametrize("make", [Drawing, constructs.AuxiliaryHead, Flattened])
def test_random_state_is_left_alone(make: Callable[[], nn.Module]):
    model = make()
    random = torch.get_rng_state()
    adjoin(model, X, alpha=(2, 4)).extract()
    assert torch.equal(torch.get_rng_state(), random)


def test_modes_of_single_modules_reach_the_small_network():
    model = residual().train()
    model.norm2.eval()
    model.stem.requires_grad_(False)
    small: Any = plan_of(model).apply(model)
    assert [module.training for module in small.modules()] == [module.training for module in model.modules()]
    assert small.stem.weight.requires_grad is False
    assert small.inner.weight.requires_grad is True


@pytest.mark.parametrize("make", PLANNED, ids=lambda make: make.__name__)
def test_small_network_shares_nothing_with_the_model(make: Callable[[], nn.Module]):
    model = make()
    small = plan_of(model, alpha=2).apply(model)
    mine, theirs = ({t.untyped_storage().data_ptr() for t in m.state_dict().values()} for m in (model, small))
    assert mine
    assert theirs
    assert not mine & theirs


def test_plan_depends_only_on_shapes():
    plan = plan_of(residual())
    assert plan_of(residual(seed=1)) == plan
    assert make_plan(residual(), images(5, 3, 12, 16), round_to=1) == plan
    assert make_plan(residual().double(), X.double(), round_to=1) == plan
    assert make_plan(residual().to("meta"), X.to("meta"), round_to=1) == plan
    assert make_plan(residual().train(), X, round_to=1) == plan


def test_dtype_and_memory_format_are_kept():
    model = residual().to(torch.bfloat16).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    weight = plan_of(model.float()).apply(model.to(torch.bfloat16)).get_parameter("inner.weight")
    assert weight.dtype == torch.bfloat16
    assert weight.is_contiguous(memory_format=torch.channels_last)


# ---- reading it ----------------------------------------------------------------------------------------------------


def test_printed_plan_is_a_table():
    lines = str(plan_of(chain(64, 20, 9), alpha=2, keep=["0"])).splitlines()
    assert lines[0] == "slice plan: alpha 2, widths in multiples of 1"
    assert lines[1].split() == ["channel", "group", "layers", "base", "small"]
    assert [line.split(maxsplit=4) for line in lines[2:]] == [
        ["0", "2", "64", "64", "kept by keep='0'"],
        ["1", "2", "20", "10"],
        ["2", "2", "9", "5"],
        ["3", "1", "3", "3", "model output"],
    ]
    assert max(len(line) for line in str(plan_of(residual())).splitlines()) <= 120


# ---- indices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indices", [[0], [0, 1, 2], [3, 4], [0, 2, 4], [0, 1, 5, 6, 7]])
def test_index(indices: list[int]):
    index = Index.of(indices)
    assert index.tolist() == index.tensor(torch.device("cpu")).tolist() == indices
    assert len(index) == len(indices)
    assert Index.from_json(json.loads(json.dumps(index.to_json()))) == index
    tensor = images(8, 9)
    assert torch.equal(take(tensor, (None, index)), tensor[:, indices])
    assert torch.equal(take(tensor, (index, index)), tensor[indices][:, indices])
    is_view = take(tensor, (index, None)).untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr()
    assert is_view == (len(index.ranges) == 1)


def test_plans_are_values():
    plan = plan_of(residual())
    assert plan == plan_of(residual())
    assert plan != replace(plan, alpha=3.0)
    with pytest.raises(AttributeError):
        plan.alpha = 3.0  # pyright: ignore[reportAttributeAccessIssue]
