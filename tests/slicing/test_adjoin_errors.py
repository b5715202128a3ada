"""Mistakes in a call of `adjoin` or `make_plan`: one line that says where, what was expected and got, what to do."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, AdjoinedNetwork, adjoin, make_plan
from adjoined.slicing import measure_cost
from zoo import Flattened, TwoGroups, conv, plan_of, residual

X = torch.zeros(1, 3, 8, 8)


def fails(call: Callable[[], Any], *parts: str) -> AdjoinedError:
    """Check that the call raises an AdjoinedError of one line with all these parts."""
    with pytest.raises(AdjoinedError) as caught:
        call()
    line = str(caught.value)
    assert "\n" not in line
    for part in parts:
        assert part in line, f"{part!r} is not in: {line}"
    return caught.value


@pytest.mark.parametrize("call", [adjoin, make_plan])
@pytest.mark.parametrize("alpha", [0.5, 0, -4, "x", "4", math.nan, math.inf, 10**400, True, 1 + 0j, torch.tensor(2)])
def test_alpha_that_is_not_a_factor(call: Callable[..., Any], alpha: Any):
    error = fails(lambda: call(residual(), X, alpha=alpha), "expected a number of at least 1", "Use 4")
    assert error.where == "alpha"
    assert error.got == repr(alpha)


def test_numbers_of_other_types_are_numbers():
    same: Any = (np.float64(4), np.float32(4), np.int64(4), 4)
    for alpha in same:
        assert adjoin(residual(), X, alpha=alpha).plan == adjoin(residual(), X, alpha=4.0).plan


@pytest.mark.parametrize("alpha", [(2, 0.5), [4, "x"], (2, (4, 8))])
def test_family_with_a_bad_alpha(alpha: Any):
    assert fails(lambda: adjoin(residual(), X, alpha=alpha)).where == "alpha"


def test_an_empty_family():
    fails(lambda: adjoin(residual(), X, alpha=()), "several different ones", "got []")


def test_alpha_beyond_every_layer():
    """The widest layer of the network has 32 channels."""
    assert adjoin(residual(), X, alpha=32, round_to=1).plan.alpha == 32
    fails(lambda: adjoin(residual(), X, alpha=33), "alpha=33", "at most 32", "'inner'", "smaller alpha")
    fails(lambda: adjoin(residual(), X, alpha=(2, 1e9)), "alpha=1e+09", "at most 32")


def test_alpha_beyond_every_layer_of_grouped_channels():
    """The layer has 32 channels: eight in each of four groups, or four bundles of eight with a number each."""
    inside = nn.Sequential(conv(3, 32), conv(32, 32, groups=4), nn.Flatten(), nn.Linear(32 * 64, 5))
    for model in (inside, Bundles()):
        assert make_plan(model, X, alpha=32, round_to=1).groups[0].kept < 32
        fails(lambda model=model: make_plan(model, X, alpha=33), "at most 32, the channels of", "smaller alpha")


def test_a_model_whose_channels_are_all_taken_one_at_a_time_stays_as_it_is():
    """No alpha is too large for channels that alpha does not divide."""
    model = nn.Sequential(conv(3, 32), OneByOne())
    plan = make_plan(model, X, alpha=4)
    assert [group.reason for group in plan.groups] == ["code takes its channels one at a time", "model output"]


class Bundles(nn.Module):
    """Scales four bundles of eight channels."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.grouped, self.head = conv(3, 32), conv(32, 32, groups=4), conv(32, 5)
        self.scales = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.inner(x)).unflatten(1, (4, -1)) * self.scales.unsqueeze(1)
        return self.head(x.flatten(1, 2))


class OneByOne(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scales, self.head = nn.ParameterList(torch.ones(()) for _ in range(32)), conv(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.stack([scale * x[:, i] for i, scale in enumerate(self.scales)], 1))


def test_alpha_is_measured_against_the_whole_model():
    """Only a layer of 2 channels may be narrowed, as in squeeze and excitation: alpha = 4 is still valid."""
    model = nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 2), nn.ReLU(), conv(2, 5))
    plan = make_plan(model, X, alpha=4, keep=["0"], round_to=1)
    assert [group.kept for group in plan.groups] == [64, 1, 5]


@pytest.mark.parametrize("round_to", [0, -8, 2.5, "8", None, True])
def test_round_to_that_is_not_a_count(round_to: Any):
    error = fails(lambda: adjoin(residual(), X, round_to=round_to), "whole number of at least 1", "Use 8")
    assert error.where == "round_to"


@pytest.mark.parametrize(("name", "close"), [("stm", "stem"), ("nrm1", "norm1"), ("depthwize", "depthwise")])
def test_unknown_name_in_keep_suggests_close_ones(name: str, close: str):
    fails(lambda: adjoin(residual(), X, keep=["stem", name]), f"keep='{name}'", f"'{close}'", "named_modules")


@pytest.mark.parametrize("keep", ["layer9*", "", "stem.weight", ["*.*.*"]])
def test_pattern_in_keep_that_matches_nothing(keep: Any):
    fails(lambda: adjoin(residual(), X, keep=keep), "keep=", "no module of the model has this name")


@pytest.mark.parametrize("keep", [3, [3], None])
def test_names_of_another_type(keep: Any):
    fails(lambda: adjoin(residual(), X, keep=keep), "keep")
    fails(lambda: adjoin(residual(), X, private=keep), "private")
    plan = make_plan(residual(), X)
    fails(lambda: AdjoinedNetwork(residual(), [plan], private=keep), "private")


def test_a_single_name_may_stand_alone():
    alone, listed = (adjoin(residual(), X, keep=names, private=names) for names in ("stem", ["stem"]))
    assert alone.plan == listed.plan
    assert alone.state_dict().keys() == listed.state_dict().keys()
    assert "smalls.0.stem.weight" in alone.state_dict()


@pytest.mark.parametrize(
    "example",
    [torch.zeros(1, 4, 8, 8), torch.zeros(3), (X, X), {"image": X}, torch.zeros(1, 3, 8, 8, dtype=torch.long)],
    ids=["channels", "dimensions", "arguments", "keyword", "dtype"],
)
def test_example_input_that_the_model_does_not_accept(example: Any):
    error = fails(lambda: adjoin(residual(), example), "does not run on the example input", "Pass the example input")
    assert error.where == "Residual"


def test_image_size_that_the_model_does_not_accept():
    fails(lambda: adjoin(Flattened(), torch.zeros(1, 3, 16, 16)), "does not run on the example input", "1536")


@pytest.mark.parametrize("example", [None, (), {}, "image", 3, [[1.0]], np.zeros((1, 3, 8, 8))])
def test_example_input_without_a_tensor(example: Any):
    for call in (adjoin, make_plan, measure_cost):
        error = fails(lambda call=call: call(residual(), example), "no tensor", "torch.zeros(1, 3, 224, 224)")
        assert error.where == "example_input"


@pytest.mark.parametrize("model", [None, "resnet18", torch.nn.ReLU, lambda x: x, {"weight": X}])
def test_not_a_model(model: Any):
    for call in (adjoin, make_plan):
        assert fails(lambda call=call: call(model, X), "torch.nn.Module").where == "model"


@pytest.mark.parametrize("compress", [0.5, 0, "x", math.nan, True])
def test_compress_that_is_not_a_factor(compress: Any):
    fails(lambda: adjoin(residual(), X, compress=compress), "compress", "a number of at least 1")


def test_compress_beyond_what_narrowing_can_do():
    error = fails(lambda: adjoin(residual(), X, compress=1e6, round_to=1), "compress=1e+06", "at most")
    reachable = float(re.findall(r"at most ([\d.]+)", str(error))[0])
    fails(lambda: adjoin(residual(), X, compress=reachable * 1.1, round_to=1), "at most")
    model = residual()
    small = adjoin(model, X, compress=reachable * 0.9, round_to=1).extract()
    without = [measure_cost(each, X).parameters_without_last for each in (model, small)]
    assert without[0] / without[1] >= reachable * 0.9


def test_compress_infinitely():
    fails(lambda: adjoin(residual(), X, compress=math.inf), "compress")


def test_compress_with_everything_kept():
    fails(lambda: adjoin(residual(), X, compress=2, keep=["*"]), "compress=2", "at most 1")


def test_compress_keeps_the_checks_of_the_other_settings():
    fails(lambda: adjoin(residual(), X, compress=2, keep=["stm"]), "keep='stm'")
    fails(lambda: adjoin(residual(), X, compress=2, round_to=0), "round_to")
    fails(lambda: adjoin(residual(), torch.zeros(1, 4, 8, 8), compress=2), "does not run on the example input")


def test_plan_of_another_model():
    plan = plan_of(residual())
    assert fails(lambda: adjoin(TwoGroups(), X, plan=plan), "another model").where in plan.shapes | dict(
        TwoGroups().state_dict()
    )
    fails(lambda: AdjoinedNetwork(TwoGroups(), [plan]), "another model")
    fails(lambda: adjoin(residual(), X, plan=[plan, plan_of(TwoGroups())]), "another model")


@pytest.mark.parametrize("plan", ["plan.json", Path("plan.json"), {"alpha": 4}, [3], 4])
def test_something_other_than_a_plan(plan: Any):
    assert "plan" in fails(lambda: adjoin(residual(), X, plan=plan)).where


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 4},
        {"keep": ["stem"], "round_to": 1},
        {"widths": {"stem": "1/2"}, "compress": 3},
        {"budget": "3 ms", "latency": abs},
    ],
)
def test_a_plan_beside_the_settings_of_another(settings: Any):
    model = residual()
    plan = make_plan(model, X, alpha=2)
    error = fails(lambda: adjoin(model, X, plan=plan, **settings), "plan replaces these settings")
    assert error.where == next(iter(settings))
    assert error.fix == f"Leave out {' and '.join(settings)}, or the plan."
    adjoin(model, X, plan=plan, order="l1", keep=[], round_to=8, widths={})


def test_no_plan_at_all():
    fails(lambda: AdjoinedNetwork(residual(), []), "at least one slice plan")


class Broken(nn.Module):
    """Raises an error of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.conv, self.error = conv(3, 8), error

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


@pytest.mark.parametrize(
    "error", [ValueError("bad\nluck"), KeyError("luck"), ZeroDivisionError("luck"), OSError("luck")], ids=repr
)
def test_model_whose_forward_raises(error: Exception):
    fails(lambda: adjoin(Broken(error), X), "Broken", "does not run on the example input", type(error).__name__, "luck")


def test_errors_leave_the_model_alone():
    model = residual().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    wrong: Any = ({"alpha": 0.5}, {"alpha": 99}, {"keep": ["x"]}, {"compress": 1e9})
    for options in wrong:
        fails(lambda options=options: adjoin(model, X, **options))
    fails(lambda: adjoin(model, torch.zeros(1, 4, 8, 8)))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training and not module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("model", [nn.AvgPool2d(2), nn.BatchNorm2d(3), nn.Sequential()], ids=repr)
def test_what_is_not_a_cnn(model: nn.Module):
    for call in (adjoin, make_plan):
        error = fails(lambda call=call: call(model, X), "not a CNN", "a model with convolutions (or linear layers)")
        assert error.where == type(model).__name__


def test_linear_layers_alone_are_narrowed_too():
    plan = make_plan(nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 5)), torch.zeros(1, 8), alpha=4)
    assert [(group.width, group.kept) for group in plan.groups] == [(64, 16), (5, 5)]


class Two(nn.Module):
    """Takes two tensors and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3, 16)

    def forward(self, image: Tensor, depth: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.conv(image) + scale * depth


@pytest.mark.parametrize(
    ("example", "parts"),
    [
        (X, ("'depth'", "got 1 positional")),
        ({"image": X}, ("'depth'", "got 'image'")),
        ((X, X, X), ("too many positional arguments", "got 3 positional")),
        ({"image": X, "dept": X}, ("got 'image', 'dept'",)),
    ],
    ids=["missing", "missing keyword", "too many", "unknown keyword"],
)
def test_arguments_that_were_not_given(example: Any, parts: tuple[str, ...]):
    fixes = ("(image, depth)", "{'image': ..., 'depth': ...}")
    fails(lambda: adjoin(Two(), example), "forward(image", "does not run on the example input", *fixes, *parts)


@pytest.mark.parametrize(
    ("model", "example", "parts"),
    [
        (
            residual(),
            torch.zeros(1, 4, 8, 8),
            ("'stem' (Conv2d)", "expected float32 (N, 3, H, W), got float32 (1, 4, 8"),
        ),
        (residual(), X.long(), ("'stem' (Conv2d)", "expected float32 (N, 3, H, W), got int64 (1, 3, 8, 8)")),
        (Flattened(), torch.zeros(1, 3, 16, 16), ("(Linear)", "expected float32 (..., 384), got float32 (1, 1536)")),
        (nn.Conv1d(2, 8, 3), torch.zeros(1, 3, 9), ("expected float32 (N, 2, W), got float32 (1, 3, 9)",)),
    ],
    ids=["channels", "dtype", "size", "the model itself"],
)
def test_the_layer_that_does_not_accept_its_input_is_named(model: nn.Module, example: Tensor, parts: tuple[str, ...]):
    fails(lambda: adjoin(model, example), *parts)


class Branching(nn.Module):
    """A gate reads a value, and one of two layers runs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.near, self.far = conv(3, 32), Gate(), conv(32, 32), conv(32, 32, 1)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = self.near(x) if self.gate(x) else self.far(x)
        return self.head(x.mean((2, 3)))


class Gate(nn.Module):
    def forward(self, x: Tensor) -> bool:
        return bool(x.mean() > 1e3)


def test_values_that_decide_which_layers_run():
    fails(lambda: adjoin(Branching(), X), "Branching", "'gate' reads them", "'near'", "torch.where")


def test_operators_on_functions():
    class Conditional(Branching):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.head(torch.cond(x.mean() > 0, torch.relu, torch.sigmoid, (x,)).mean((2, 3)))

    fails(lambda: adjoin(Conditional(), X), "the model's own forward", "cond", "torch.where")


def test_values_that_send_the_small_network_another_way():
    class Turning(Branching):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            many = bool(x.sum() > 3 * x[:, 0].sum())  # 32 channels of ones
            x = self.far(self.near(x)) if many else self.near(self.far(x))
            return self.head(x.mean((2, 3)))

    model = Turning()
    nn.init.constant_(model.stem.weight, 0.0)
    nn.init.constant_(model.stem.bias, 1.0)
    fails(lambda: adjoin(model, X, alpha=16, round_to=1), "own forward reads them", "'near'", "'far'", "torch.where")


def test_a_value_that_decides_no_layer_is_accepted():
    class Scaled(Branching):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).relu()
            x = self.far(self.near(x))
            return self.head(x.mean((2, 3)) * (2.0 if x.mean() > 0 else 1.0))

    assert {group.kept for group in make_plan(Scaled(), X, alpha=4).groups} == {8, 5}


def test_lazy_model_asks_for_a_first_run():
    fails(lambda: adjoin(nn.Sequential(nn.LazyConv2d(8, 3), nn.Flatten()), X), "uninitialized")


def test_sparse_tensors_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten())
    net.register_buffer("neighbours", torch.eye(8).to_sparse())
    fails(lambda: adjoin(net, X), "neighbours: the tensor is not dense (expected a dense tensor, got torch.sparse_coo)")


def test_layers_that_the_first_run_makes_ask_for_one():
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            if not hasattr(self, "late"):
                self.late = nn.Conv2d(x.shape[1], 5, 1).to(x)
            return self.late(x)

    model = Late()
    fails(lambda: adjoin(model, X), "late.weight", "first forward pass", "Run the model once")
    assert not hasattr(model, "late")
    model(X)
    adjoin(model, X)
