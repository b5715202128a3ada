"""Widths for each channel group: what the search keeps to, whatever the network."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined import AdjoinedError, SlicePlan
from adjoined.width_search import search_widths
from unchecked import adjoin, make_plan
from zoo import conv, images, residual

X = images(4, 3, 8, 8)


class Parallel(nn.Module):
    """Two branches of equal cost, whose outputs are added; the second one writes zeros."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.one_out = conv(3, 32), conv(32, 5)
        self.two, self.two_out = conv(3, 32), conv(32, 5)
        nn.init.zeros_(self.two_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.one_out(self.one(x).relu()) + self.two_out(self.two(x).relu())


class Twins(Parallel):
    """Two branches that write the same."""

    def __init__(self) -> None:
        super().__init__()
        self.two.load_state_dict(self.one.state_dict())
        self.two_out.load_state_dict(self.one_out.state_dict())


def widths_of(small: nn.Module) -> tuple[int, ...]:
    """Return the widths of both branches."""
    return tuple(m.weight.shape[0] for m in small.modules() if isinstance(m, nn.Conv2d))[::2]


def own_outputs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Batches on which the model itself has no loss."""
    batches = [images(4, 3, 8, 8, seed=seed) for seed in (1, 2)]
    with torch.no_grad():
        return [(x, copy.deepcopy(model)(x)) for x in batches]


def search(model: nn.Module, **settings: Any) -> SlicePlan:
    return search_widths(model, X, own_outputs(model), F.mse_loss, **settings)


def kept(plan: SlicePlan) -> dict[str, int]:
    return {group.name: group.kept for group in plan.groups}


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 32), nn.ReLU(), conv(32, 5))


def test_a_useless_group_becomes_narrow_and_the_others_wide():
    plan = search(Parallel(), alpha=4, round_to=4)
    assert kept(plan)["two"] == 4
    assert kept(plan)["one"] == 12


@pytest.mark.parametrize("make", [residual, chain])
def test_no_group_leaves_its_bounds_and_the_cost_is_kept(make: Any):
    model = make()
    uniform, plan = make_plan(model, X, alpha=4, round_to=2), search(model, alpha=4, round_to=2)
    assert plan.cost is not None
    assert uniform.cost is not None
    for what in ("macs", "parameters", "parameters_without_last"):
        assert getattr(plan.cost, what) <= getattr(uniform.cost, what)
    for name, width in kept(uniform).items():
        assert width / 2 <= kept(plan)[name] <= 2 * width


def test_a_budget_is_kept():
    plan = search(Parallel(), budget="150 kMACs, 2 k parameters", round_to=1)
    assert plan.cost is not None
    assert plan.widths
    assert plan.cost.macs <= 150_000
    assert plan.cost.parameters <= 2_000


def test_milliseconds_are_kept():
    """Here a network takes longer the more its channels differ, so only the uniform one is fast enough."""

    def latency(small: nn.Module) -> float:
        widths = widths_of(small)
        return 1 + sum(widths) / 100 + 10 * (max(widths) - min(widths))

    assert search(Parallel(), alpha=4, round_to=4).widths
    plan = search(Parallel(), budget="1.2 ms", latency=latency, round_to=4)
    assert (kept(plan)["one"], kept(plan)["two"], plan.widths) == (8, 8, {})


def test_milliseconds_are_spent_where_a_channel_costs_few_of_them():
    """Both branches matter as much and have as many MACs, but a channel of the second one costs a tenth of the time."""

    def latency(small: nn.Module) -> float:
        one, two = widths_of(small)
        return 1 + one / 10 + two / 100

    plan = search(Twins(), budget="1.97 ms", latency=latency, round_to=4)
    assert (kept(plan)["one"], kept(plan)["two"]) == (8, 16)
    assert latency(plan.cut(Twins())) <= 1.97


def test_a_network_slower_than_estimated_is_followed_by_a_narrower_one():
    """Time grows with the square of the width here, which makes a line through two widths too low at the narrow end."""
    measured: list[float] = []

    def latency(small: nn.Module) -> float:
        measured.append(1 + sum(width**2 for width in widths_of(small)) / 128)
        return measured[-1]

    plan = search(Parallel(), budget="2 ms", latency=latency, round_to=1)
    assert measured[-2] > 2 >= measured[-1]
    assert latency(plan.cut(Parallel())) <= 2


def test_where_no_width_matters_the_uniform_network_is_taken():
    model = chain()
    plan = search_widths(model, X, [(X, 0)], lambda out, _: out.sum() * 0, alpha=4, round_to=2)
    assert plan == make_plan(model, X, alpha=4, round_to=2)


@pytest.mark.parametrize("order", ["l1", "taylor", None])
def test_alpha_and_widths_make_the_same_plan_again_and_the_model_stays_as_it_was(order: str | None):
    model = Parallel()
    before = copy.deepcopy(model.state_dict())
    batches = [(x, y + 0.1) for x, y in own_outputs(model)]
    plan = search_widths(model, X, batches, F.mse_loss, alpha=4, round_to=4, order=order)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert make_plan(model, X, alpha=plan.alpha, widths=plan.widths, round_to=4) == plan
    _, q = adjoin(model, X, plan=plan, order="l1", check=True)(X)
    assert q.shape == (4, 5, 8, 8)


def test_what_the_user_asks_for_stays():
    plan = search(Parallel(), alpha=4, round_to=4, keep=["one"], widths={"two": "20 channels"})
    assert kept(plan)["one"] == 32
    assert kept(plan)["two"] == 20


@pytest.mark.parametrize(
    ("batches", "loss", "settings", "message"),
    [
        ([], F.mse_loss, {}, "no batch"),
        ([(X, 0)], lambda out, _: out.sum() * float("nan"), {}, "not finite"),
        ([(X, 0)], lambda out, _: out, {}, r"not a loss.*a tensor \(4, 5, 8, 8\)"),
        ([(X, 0)], F.mse_loss, {"alpha": (2, 4)}, "one small network"),
        ([(X, 0)], F.mse_loss, {"budget": "1 B"}, "no small network of this model fits"),
        ((X, X[:1]), F.mse_loss, {}, r"batches: .*pairs, .*got a Tensor"),
        ([X], F.mse_loss, {}, r"batches: .*pairs, .*got a Tensor"),
        ([(X.double(), 0)], F.mse_loss, {}, r"does not run .*expected float32 .*got float64"),
        ([(X, 0)], lambda out, _: float(out.detach().sum()), {"order": "taylor"}, "loss: .*no gradients"),
        ([(X, 0)], lambda out, _: out.detach().sum(), {"order": "taylor"}, "loss: .*no gradients"),
    ],
)
def test_what_cannot_be_searched_is_refused(batches: Any, loss: Any, settings: Any, message: str):
    with pytest.raises(AdjoinedError, match=message):
        search_widths(chain(), X, batches, loss, **settings)
