"""`check_plan`: correct plans pass, plans with one wrong index fail, in a state that shows the difference."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, adjoin
from adjoined.cli import main
from adjoined.slicing import Checked, Index, SlicePlan, check_plan, make_plan
from adjoined.slicing.verify.check import TOLERANCE, Checker
from constructs import NARROWING, AuxiliaryHead, Net
from masked import masked, relative_error
from odd_constructs import CROSSING, CUTS
from random_networks import random_network
from zoo import Concatenated, Flattened, Residual, TwoGroups, conv, images, lively, seeded, torchvision_model

ROUNDING, DIFFERENT = 1e-12, 1e-5
X = torch.zeros(1, 3, 8, 8)
INVISIBLE = {"key.bias": "a softmax over places does not see what is added to all of them"}
OWN: list[Callable[[], nn.Module]] = [Residual, Flattened, TwoGroups, Concatenated]


def plan_of(model: nn.Module, alpha: float = 2, **options: Any) -> SlicePlan:
    return make_plan(model, X, alpha=alpha, **{"round_to": 1, "check": False, **options})


def right(model: nn.Module, plan: SlicePlan, x: Any = X) -> None:
    checked = check_plan(model, x, plan)
    assert (checked.how, checked.where) == ("masked base", "")
    assert checked.error is not None
    assert checked.error <= ROUNDING


# ---- what is right passes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [*OWN, *NARROWING, AuxiliaryHead], ids=lambda make: make.__name__)
def test_right_slices_pass(make: Callable[[], nn.Module]):
    model = seeded(make)
    right(model, plan_of(model, 2))


@pytest.mark.parametrize("make", CROSSING, ids=lambda make: make.__name__)
def test_statistics_across_channels_are_checked_over_the_kept_ones(make: type[Net]):
    model = seeded(make)
    plan = plan_of(model)
    assert plan.crossing
    right(model, plan)


@pytest.mark.parametrize("seed", range(20))
def test_random_networks_pass(seed: int):
    model = random_network(seed)
    right(model, plan_of(model, (2, 2.5, 3, 4)[seed % 4]))


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_networks_pass(name: str):
    check_torchvision(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["densenet121", "googlenet", "regnet_y_400mf", "resnext50_32x4d", "convnext_tiny"])
def test_more_torchvision_networks_pass(name: str):
    check_torchvision(name)


def check_torchvision(name: str) -> None:
    model, x = torchvision_model(name), torch.zeros(1, 3, 64, 64)
    right(model, make_plan(model, x, alpha=4), x)


# ---- what is wrong does not ----------------------------------------------------------------------------------------


def corrupted(plan: SlicePlan) -> Iterator[tuple[str, SlicePlan]]:
    """The plan with one index of one dimension of one tensor replaced by a dropped one, for every tensor."""
    for name, indices in plan.tensors.items():
        for dim, index in enumerate(indices):
            if index is not None:
                kept = index.tolist()
                dropped = next(i for i in range(plan.shapes[name][dim]) if i not in kept)
                other = Index.of(sorted([*kept[:-1], dropped]))
                changed = tuple(other if d == dim else each for d, each in enumerate(indices))
                yield f"{name} {dim}", replace(plan, tensors=plan.tensors | {name: changed})


def error_of(model: nn.Module | Checker, plan: SlicePlan) -> float:
    checker = model if isinstance(model, Checker) else Checker(model, X)
    with pytest.raises(AdjoinedError, match="does not compute what the base network does") as caught:
        checker.check(plan)
    return float(caught.value.got.split(",")[0])


def second(index: Index | None) -> Index:
    """The second half of the range of which `index` keeps the first half."""
    assert index is not None
    return Index.of(i + len(index) for i in index.tolist())


EVERY_KIND = [*OWN, *CROSSING, *NARROWING[::8]]


@pytest.mark.parametrize("make", EVERY_KIND, ids=lambda make: make.__name__)
def test_one_wrong_index_in_any_tensor_is_seen(make: Callable[[], nn.Module]):
    every_wrong_index_is_seen(make)


@pytest.mark.slow
@pytest.mark.parametrize("make", [make for make in NARROWING if make not in EVERY_KIND], ids=lambda make: make.__name__)
def test_one_wrong_index_in_any_tensor_is_seen_in_more_networks(make: Callable[[], nn.Module]):
    every_wrong_index_is_seen(make)


def every_wrong_index_is_seen(make: Callable[[], nn.Module]) -> None:
    model = seeded(make)
    wrong = dict(corrupted(plan_of(model)))
    assert len(wrong) >= 4
    checker = Checker(model, X)
    for name, plan in wrong.items():
        if name.split()[0] not in INVISIBLE:
            assert error_of(checker, plan) > DIFFERENT, name


def test_swapped_halves_of_a_concatenation_are_seen():
    model = seeded(Concatenated)
    plan = plan_of(model)
    right(model, plan)
    left, right_half = range(8), range(16, 28)  # 8 of 16 and 12 of 24
    indices = list(plan.indices("inner.weight"))
    assert indices[1] == Index.of([*left, *right_half])
    indices[1] = Index.of([*range(12), *range(16, 24)])  # 12 of the left, 8 of the right
    assert error_of(model, replace(plan, tensors=plan.tensors | {"inner.weight": tuple(indices)})) > DIFFERENT


def test_another_set_of_channels_is_as_right_if_all_tensors_agree():
    model = seeded(Residual)
    plan = plan_of(model)
    names = ("inner.weight", "norm2.weight", "norm2.bias", "norm2.running_mean", "norm2.running_var")
    moved: dict[str, tuple[Index | None, ...]] = {
        name: (second(plan.indices(name)[0]), *plan.indices(name)[1:]) for name in names
    }
    outer = list(plan.indices("outer.weight"))
    outer[1] = second(outer[1])
    moved["outer.weight"] = tuple(outer)
    right(model, replace(plan, tensors=plan.tensors | moved))
    del moved["norm2.running_mean"]
    assert error_of(model, replace(plan, tensors=plan.tensors | moved)) > DIFFERENT


def test_a_path_is_not_a_plan():
    with pytest.raises(AdjoinedError, match=r"plan: not a slice plan .*got str.*SlicePlan\.load"):
        check_plan(Residual(), torch.zeros(1, 3, 8, 8), "plan.json")  # pyright: ignore[reportArgumentType]


def test_one_channel_too_many_is_an_error():
    model = seeded(Residual)
    plan = plan_of(model)
    index = Index.of(range(17))
    wrong = replace(plan, tensors=plan.tensors | {"norm2.weight": (index,)})
    with pytest.raises(AdjoinedError, match="the small network of this plan does not run"):
        check_plan(model, X, wrong)


def test_the_first_module_that_differs_is_named():
    model = seeded(Residual)
    plan = plan_of(model)
    wrong = replace(plan, tensors=plan.tensors | {"norm2.bias": (second(plan.indices("norm2.bias")[0]),)})
    with pytest.raises(AdjoinedError) as caught:
        check_plan(model, X, wrong)
    assert caught.value.where == "'norm2'"
    assert caught.value.fix.startswith("Make a new plan;")


# ---- the state -----------------------------------------------------------------------------------------------------


class Silent(nn.Module):
    """Branches that a fresh network does not show: a scale of 1e-6, a norm and a gain that start at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.three = conv(3, 16), conv(16, 16), conv(16, 16), conv(16, 16)
        self.scale, self.gain = nn.Parameter(torch.full((16, 1, 1), 1e-6)), nn.Parameter(torch.zeros(()))
        self.norm = nn.BatchNorm2d(16)
        nn.init.zeros_(self.norm.weight)
        self.head = nn.Linear(16, 5)
        nn.init.zeros_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.scale * self.one(x.relu())
        x = x + self.norm(self.two(x.relu()))
        x = x + self.gain * self.three(x.relu())
        return self.head(x.mean((2, 3)))


def test_branches_that_start_silent_are_checked():
    model = seeded(Silent)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = plan_of(model)
    right(model, plan)
    checker = Checker(model, X)
    for name, wrong in corrupted(plan):
        assert error_of(checker, wrong) > DIFFERENT, name
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("gain", [1e-3, 1e3])
def test_deep_networks_whose_signal_dies_or_explodes_are_checked(gain: float):
    def network() -> nn.Module:
        layers = [part for _ in range(24) for part in (conv(16, 16), nn.ReLU())]
        return nn.Sequential(conv(3, 16), *layers, nn.Flatten(), nn.Linear(1024, 5))

    model = seeded(network)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(gain)
    plan = plan_of(model)
    right(model, plan)
    wrong = dict(corrupted(plan))
    for name in ("0.weight 0", "1.weight 1", "23.bias 0", "47.weight 0"):
        assert error_of(model, wrong[name]) > DIFFERENT, name


def test_the_literal_masked_form_of_the_tests_agrees():
    x = images(2, 3, 64, 64, dtype=torch.float64)
    model = lively(torchvision_model("resnet18"), x)
    plan = make_plan(model, x, alpha=4)
    right(model, plan, x)
    with torch.no_grad():
        assert relative_error(plan.apply(model)(x), masked(model, plan)(x)) <= TOLERANCE


# ---- models that are hard to run -----------------------------------------------------------------------------------


class Narrow(Net):
    """Code that names float32, and creates tensors."""

    def mid(self, x: Tensor) -> Tensor:
        return x.float() * torch.linspace(0.5, 1, 8, dtype=torch.float32) + torch.zeros(1)


class Dictionary(Net):
    """Looks words up, takes two inputs by name, and returns a dictionary."""

    def parts(self) -> None:
        self.words, self.mix = nn.Embedding(4, 8), nn.Linear(8, 32)

    def forward(self, image: Tensor, word: Tensor) -> dict[str, Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x = self.stem(image) + self.mix(self.words(word))[:, :, None, None]
        return {"logits": self.head(self.body(x).mean((2, 3))), "places": (self.body(x), word)}


class Infinite(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x / x.relu().mul(0)


def test_float32_in_the_code_becomes_float64():
    model = seeded(Narrow)
    right(model, plan_of(model))


def test_indices_stay_what_they_are_and_every_output_is_compared():
    model = seeded(Dictionary)
    example = {"image": torch.zeros(2, 3, 8, 8), "word": torch.tensor([3, 1])}
    plan = make_plan(model, example, alpha=2, round_to=1)
    right(model, plan, example)
    written, read = plan.indices("mix.weight")
    wrong = replace(plan, tensors=plan.tensors | {"mix.weight": (second(written), read)})
    with pytest.raises(AdjoinedError, match="does not compute what the base network does"):
        check_plan(model, example, wrong)


def test_outputs_that_are_not_finite_are_reported():
    model = seeded(Infinite)
    checked = check_plan(model, X, plan_of(model))
    assert checked.error is None
    assert "not finite" in checked.where


class Banned(Net):
    """Bans some positions before a softmax over the others, and some classes."""

    def parts(self) -> None:
        self.ban = Ban()

    def mid(self, x: Tensor) -> Tensor:
        return self.ban(x).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(torch.tensor([True, *[False] * 4]), -torch.inf)


class Ban(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.masked_fill(torch.eye(x.shape[-1], dtype=torch.bool), -torch.inf)


def test_infinite_values_are_the_same_in_both_networks():
    model = seeded(Banned)
    plan = plan_of(model)
    right(model, plan)
    wrong = dict(corrupted(plan))["head.weight 1"]
    with pytest.raises(AdjoinedError, match=r"^'head': .*report the model"):
        check_plan(model, X, wrong)


def test_the_state_of_the_process_is_left_alone():
    model = seeded(Residual)
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    check_plan(model, X, plan_of(model))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.get_default_dtype() is dtype


# ---- where it does not reach ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", CUTS, ids=lambda make: make.__name__)
def test_cuts_are_checked_all_the_way_or_the_check_says_where_identity_is_given_up(make: Callable[[], nn.Module]):
    model = seeded(make)
    plan = plan_of(model)
    checked = check_plan(model, X, plan)
    if checked.how == "masked base":
        assert checked.error is not None
        assert checked.error <= ROUNDING
    else:
        assert plan.unaligned
        assert checked.how == "strict second run"
        assert "channel identity is given up" in checked.where


# ---- from outside --------------------------------------------------------------------------------------------------


def test_adjoin_checks_every_plan_that_it_is_given():
    model = seeded(Residual)
    net = adjoin(model, X, alpha=(2, 4), round_to=1)
    assert len(net.plans) == 2
    wrong = next(plan for _, plan in corrupted(net.plans[1]))
    with pytest.raises(AdjoinedError, match="report the model"):
        adjoin(model, X, plan=[net.plans[0], wrong])
    adjoin(model, X, plan=[net.plans[0], wrong], check=False)


def test_the_command_line_checks(capsys: pytest.CaptureFixture[str]):
    argv = ["plan", "digits_resnet", "--input-size", "8", "--classes", "10", "--alpha", "2,4"]
    assert main(argv) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("small α=")]
    for alpha, line in zip((2, 4), lines, strict=True):
        assert line == f"small α={alpha}: agrees with the masked base, in float64"
    assert main([*argv, "--json"]) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert [each["how"] for each in checks] == ["masked base"] * 2
    assert all(0 <= each["error"] <= ROUNDING for each in checks)


def test_what_was_found_is_one_line():
    assert str(Checked(1.5e-16, "masked base")) == "agrees with the masked base, in float64"
    assert str(Checked(1.5e-16, "strict second run", "'a': b")).endswith(
        "'a': b; agrees with the masked base up to there, in float64"
    )
    assert str(Checked(None, "strict second run", "'a': b")) == "checked by the strict second run from 'a': b"


class Spectral(Net):
    """Mixes channels at each frequency, by complex weights of low rank."""

    def parts(self) -> None:
        self.down = nn.Parameter(torch.randn(32, 16, dtype=torch.cfloat))
        self.up = nn.Parameter(torch.randn(16, 32, dtype=torch.cfloat))

    def mid(self, x: Tensor) -> Tensor:
        x = torch.fft.rfft2(x).movedim(1, -1) @ self.down @ self.up
        return torch.fft.irfft2(x.movedim(-1, 1), s=(8, 8))


def test_dropped_channels_of_complex_tensors_are_at_zero():
    model = seeded(Spectral)
    plan = plan_of(model)
    assert plan.small_shape("down") == (16, 8)
    right(model, plan)
