"""`order=`: the base network's function stays the same, and the small network has the channels that matter most."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import constructs
from adjoined import AdjoinedError, SlicePlan
from adjoined.models import build
from adjoined.slicing import reorder, select
from adversarial_attention import FusedHeads
from masked import masked, relative_error
from random_networks import random_network
from shuffles import ShuffleNetV2
from unchecked import adjoin, make_plan
from zoo import Concatenated, Flattened, Residual, TwoGroups, conv, images, lively, seeded, torchvision_model

X = images(2, 3, 8, 8, dtype=torch.float64)


def reordered(
    model: nn.Module, x: Tensor, order: str = "l1", alpha: float = 4
) -> tuple[nn.Module, nn.Module, SlicePlan]:
    """The lively model as it was, the same reordered, and the plan."""
    model = lively(model, x)
    before = copy.deepcopy(model)
    (plan,) = reorder(model, x, make_plan(model, x, alpha=alpha, round_to=1), order)
    return before, model, plan


def differ(before: nn.Module, after: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative_error(after(x), before(x))


def moved(before: nn.Module, after: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


# ---- the base network's function ------------------------------------------------------------------------------------

OWN: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual, "flattened": Flattened, "two groups": TwoGroups, "concatenated": Concatenated,
    "group norm": constructs.GroupNorm, "tied": constructs.TiedParameters, "raw": constructs.RawParameters,
    "sizes": constructs.SplitSizes,
}  # fmt: skip
FAST = ["mobilenet_v3_small"]
SLOW = [
    "resnet18", "resnet50", "regnet_x_400mf", "densenet121", "mobilenet_v2", "efficientnet_b0", "convnext_tiny",
    "googlenet", "regnet_y_400mf", "resnext50_32x4d", "squeezenet1_1", "vgg11", "shufflenet_v2_x0_5",
]  # fmt: skip


def check_function(model: nn.Module, x: Tensor) -> SlicePlan:
    before, after, plan = reordered(model, x)
    assert moved(before, after)
    assert differ(before, after, x) < 1e-10
    with torch.no_grad():  # in float32 the order of summands shows; in ill-conditioned networks more than 1e-5
        exact, single = before(x), x.float()
        rounding = relative_error(before.float()(single).double(), exact)
        assert relative_error(after.float()(single).double(), exact) < max(1e-5, 3 * rounding)
    return plan


@pytest.mark.parametrize("name", OWN)
def test_function_of_our_networks(name: str):
    check_function(seeded(OWN[name]), X)


@pytest.mark.parametrize("seed", range(8))
def test_function_of_random_networks(seed: int):
    check_function(random_network(seed), X)


@pytest.mark.parametrize("name", ["resnet20", "wide_resnet16_4"])
def test_function_of_our_networks_for_small_images(name: str):
    assert not check_function(build(f"adjoined:{name}", num_classes=10), images(2, 3, 32, 32).double()).unordered


@pytest.mark.parametrize("name", FAST)
def test_function_of_torchvision_networks(name: str):
    assert not check_function(torchvision_model(name), images(2, 3, 64, 64).double()).unordered


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_function_of_more_torchvision_networks(name: str):
    assert not check_function(torchvision_model(name), images(2, 3, 64, 64).double()).unordered


def test_channels_behind_shuffles_are_ordered():
    plan = check_function(ShuffleNetV2("chunk", widths=(48,), units=(4,)), images(2, 3, 32, 32).double())
    assert not plan.in_order
    assert not plan.unordered


@pytest.mark.parametrize("make", [Residual, TwoGroups, Concatenated])
def test_function_in_train_mode_and_after_training(make: Callable[[], nn.Module]):
    before, after, _ = reordered(seeded(make), X)
    for model in (before, after):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        for _ in range(3):
            model(X).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert differ(before, after, X) < 1e-10
    assert differ(before.eval(), after.eval(), X) < 1e-10


# ---- what the small network gets ------------------------------------------------------------------------------------


def filter_norms(layer: nn.Module, power: int) -> Tensor:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().flatten(1).norm(power, dim=1)


@pytest.mark.parametrize(("order", "power"), [("l1", 1), ("l2", 2)])
@pytest.mark.parametrize("alpha", [2, 4])
def test_kept_channels_have_the_largest_filters(order: str, power: int, alpha: float):
    model = nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 20), nn.ReLU(), conv(20, 5))
    before, after, plan = reordered(seeded(lambda: model), X, order, alpha)
    for layer in ("0", "2"):
        kept = plan.small_shape(f"{layer}.weight")[0]
        norms = filter_norms(after.get_submodule(layer), power)
        assert norms[:kept].min() >= norms[kept:].max()
        old = filter_norms(before.get_submodule(layer), power)
        torch.testing.assert_close(norms[:kept].sum(), old.topk(kept).values.sum())
        assert norms[:kept].sum() > old[:kept].sum()


def test_layers_of_one_group_weigh_alike_whatever_the_size_of_their_weights():
    model = seeded(Residual)
    with torch.no_grad():
        model.stem.weight.mul_(1000)
    _, after, plan = reordered(model, X)
    assert isinstance(after, Residual)
    kept = plan.small_shape("stem.weight")[0]
    shares = [
        norms / norms.mean() for norms in (filter_norms(m, 1) for m in (after.stem, after.outer, after.depthwise))
    ]
    importance = torch.stack(shares).sum(0)
    assert importance[:kept].min() >= importance[kept:].max()
    assert not torch.equal(shares[0].topk(kept).indices.sort().values, torch.arange(kept))  # the large one is not alone


def test_batch_norm_scales_order_and_groups_without_one_take_the_filters():
    model = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 12), nn.ReLU(), conv(12, 5))
    _, after, plan = reordered(seeded(lambda: model), X, "bn")
    for values, name in ((after[1].weight.abs(), "0.weight"), (filter_norms(after[3], 1), "3.weight")):
        kept = plan.small_shape(name)[0]
        assert values[:kept].min() >= values[kept:].max()


def test_a_family_keeps_the_best_of_the_best():
    model = lively(seeded(lambda: nn.Sequential(conv(3, 32), nn.ReLU(), conv(32, 5))), X)
    net = adjoin(model, X, alpha=(2, 4, 8), round_to=1, order="l1")
    norms = filter_norms(model[0], 1)
    for plan in net.plans:
        kept = plan.small_shape("0.weight")[0]
        assert norms[:kept].min() >= norms[kept:].max()


def test_whole_groups_move_together():
    model = nn.Sequential(conv(3, 24), nn.ReLU(), conv(24, 24, groups=8), nn.ReLU(), conv(24, 5))
    before, after, plan = reordered(seeded(lambda: model), X)
    assert plan.conv_groups == {"2": 2}
    assert differ(before, after, X) < 1e-10
    old, new = (filter_norms(m[2], 1).view(8, 3) for m in (before, after))
    assert sorted(map(tuple, old.tolist())) == sorted(map(tuple, new.tolist()))
    assert moved(before, after)


def test_whole_heads_move_together():
    before, after, plan = reordered(seeded(FusedHeads), X, alpha=2)
    assert not plan.unordered
    assert differ(before, after, X) < 1e-10
    old, new = (m.get_parameter("qkv.weight").detach().abs().sum(1).view(24, -1) for m in (before, after))
    order = [int((old - head).abs().amax(1).argmin()) for head in new]
    assert torch.allclose(old[order], new)
    assert sorted(order) == list(range(24))
    assert order != list(range(24))


@pytest.mark.parametrize("name", ["residual", "concatenated", "two groups", "flattened"])
def test_the_plan_fits_the_reordered_model(name: str):
    _, after, plan = reordered(seeded(OWN[name]), X)
    assert differ(masked(after, plan), plan.apply(after), X) < 1e-10


def resnet20() -> nn.Module:
    return build("adjoined:resnet20", num_classes=10)


@pytest.mark.parametrize(
    ("make", "alpha"),
    [
        *((make, alpha) for make in (*OWN.values(), FusedHeads) for alpha in (2, 4, 2.5)),
        (resnet20, 2.5),
        *(pytest.param(resnet20, alpha, marks=pytest.mark.slow) for alpha in (2, 4)),
    ],
)
def test_a_plan_that_selects_gives_the_small_network_of_the_reordered_base(make: Callable[[], nn.Module], alpha: float):
    model = seeded(make)
    x = images(2, 3, 32, 32).double() if type(model).__name__ == "ResNet" else X
    before, after, plan = reordered(model, x, alpha=alpha)
    selected = select(before, x, make_plan(before, x, alpha=alpha, round_to=1))
    first, best = make_plan(before, x, alpha=alpha, round_to=1).apply(before), selected.apply(before)
    assert differ(plan.apply(after), best, x) < 1e-12
    assert differ(first, best, x) > 1e-6
    assert selected.unordered == plan.unordered
    assert [(each.width, each.kept) for each in selected.groups] == [(each.width, each.kept) for each in plan.groups]
    assert not selected.order  # the model is as it was


# ---- parameters stay the objects they are ---------------------------------------------------------------------------


def test_parameters_gradients_and_optimizers_stay_valid():
    model = lively(seeded(Residual), X)
    before = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    identity = {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    for each in (model, before):
        each(X).square().mean().backward()
    net = adjoin(model, X, order="l1", round_to=1)
    assert net.base is model
    assert {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()} == identity
    assert moved(before, model)
    optimizer.step()
    torch.optim.SGD(before.parameters(), lr=0.1).step()
    assert differ(before, model, X) < 1e-10


def test_tied_parameters_are_reordered_once():
    model = nn.Sequential(conv(3, 16), conv(16, 16), nn.ReLU(), conv(16, 16), conv(16, 5))
    model[3].weight = model[1].weight
    before, after, _ = reordered(seeded(lambda: model), X)
    assert after[3].weight is after[1].weight
    assert differ(before, after, X) < 1e-10


def test_tensors_that_share_memory_stay_in_their_order():
    model = lively(nn.Sequential(conv(3, 16, bias=False), nn.ReLU(), conv(16, 16), nn.ReLU(), conv(16, 5)), X)
    model[0].weight = nn.Parameter(model[2].weight.data.flatten()[: 16 * 27].view(16, 3, 3, 3))
    before = copy.deepcopy(model)
    (plan,) = reorder(model, X, make_plan(model, X, round_to=1))
    assert "memory" in plan.unordered["0"]
    assert differ(before, model, X) < 1e-10


# ---- settings -------------------------------------------------------------------------------------------------------


def test_a_second_time_changes_nothing_and_no_random_number_is_drawn():
    model = lively(seeded(Residual), X)
    plan = make_plan(model, X, round_to=1)
    state = torch.get_rng_state()
    reorder(model, X, plan)
    once = copy.deepcopy(model)
    reorder(model, X, plan)
    assert not moved(once, model)
    assert torch.equal(torch.get_rng_state(), state)


def test_full_width_is_left_alone():
    model = lively(seeded(Residual), X)
    before = copy.deepcopy(model)
    adjoin(model, X, alpha=1, order="l1")
    assert not moved(before, model)


def test_impossible_orders():
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 5))
    before = copy.deepcopy(model)
    with pytest.raises(AdjoinedError, match="l1 or l2"):
        adjoin(model, X.float(), order="l3")
    with pytest.raises(AdjoinedError, match="no gradients"):
        adjoin(model, X.float(), order="taylor")
    with pytest.raises(AdjoinedError, match="no batch norm"):
        adjoin(model, X.float(), order="bn")
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = before[0].weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(AdjoinedError, match="finite"):
        adjoin(model, X.float(), order="l1")
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)
