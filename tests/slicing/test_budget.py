"""Budgets: the largest small network that fits; and a family, its order and its head from one trace."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from torch import nn

from adjoined import AdjoinedError, SlicePlan
from adjoined.slicing import Cost, Request, Slicer, measure_cost, read_budget
from adjoined.slicing.solve import traces
from unchecked import adjoin, make_plan
from zoo import Concatenated, Residual, TwoGroups, conv, images, plan_of, residual

X = images(2, 3, 8, 8)


def chain() -> nn.Sequential:
    return nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 48), nn.ReLU(), conv(48, 24), nn.ReLU(), conv(24, 5))


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that are traced, one entry for each trace."""
    seen: list[nn.Module] = []

    def noting(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.append(model)
        return trace(model, *args, **kwargs)

    trace = traces.trace
    monkeypatch.setattr(traces, "trace", noting)
    return seen


# ---- what a plan costs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [chain, Residual, Concatenated])
@pytest.mark.parametrize("alpha", [1, 3])
def test_a_plan_has_the_cost_of_both_networks(make: Any, alpha: float):
    model = make().eval()
    plan = plan_of(model, alpha=alpha)
    assert plan.cost == measure_cost(plan.apply(model), X)
    assert plan.base_cost == measure_cost(model, X)
    assert plan.cost is not None
    assert plan.cost.bytes == 4 * sum(p.numel() for p in plan.apply(model).parameters())


def test_the_cost_is_kept_in_the_file():
    plan = plan_of(residual())
    again = SlicePlan.from_json(plan.to_json())
    assert (again.cost, again.base_cost) == (plan.cost, plan.base_cost)


# ---- the largest that fits -----------------------------------------------------------------------------------------


def short() -> nn.Sequential:
    return nn.Sequential(conv(3, 24), nn.ReLU(), conv(24, 16), nn.ReLU(), conv(16, 5))


@cache
def costs_of_all(round_to: int) -> list[Cost]:
    """The costs of all small networks that alphas give."""
    alphas = sorted({n / k for n in (24, 16) for k in range(1, n + 1)})
    plans = Slicer(short(), X).plans(Request(alpha=alphas, round_to=round_to))
    return [plan.cost for plan in plans if plan.cost is not None]


@pytest.mark.parametrize("round_to", [1, 8])
@pytest.mark.parametrize(
    ("quantity", "unit", "share"), [("parameters", "parameters", 0.5), ("bytes", "B", 0.9), ("macs", "MACs", 0.3)]
)
def test_the_largest_network_that_fits(quantity: str, unit: str, share: float, round_to: int):
    """Of all networks that alphas give, no larger one would fit."""
    most = int(share * getattr(measure_cost(short(), X), quantity))
    found = make_plan(short(), X, budget=f"{most} {unit}", round_to=round_to)
    fitting = [getattr(cost, quantity) for cost in costs_of_all(round_to) if getattr(cost, quantity) <= most]
    assert fitting
    assert getattr(found.cost, quantity) == max(fitting)


def test_several_budgets_hold_together():
    model = chain()
    tight = make_plan(model, X, budget=("60 kB", "20 k parameters, 0.5 MMACs"), round_to=1)
    assert tight.cost is not None
    assert tight.cost.bytes <= 60_000
    assert tight.cost.macs <= 500_000
    alone = make_plan(model, X, budget="0.5 MMACs", round_to=1)
    assert tight.alpha >= alone.alpha


def test_what_fits_already_stays_as_it_is():
    with pytest.warns(UserWarning, match="the base network fits into 1 GB"):
        assert make_plan(chain(), X, budget="1 GB").alpha == 1
    with pytest.warns(UserWarning, match="the base network fits into 1 GB"):
        assert adjoin(chain(), X, budget="1 GB").plan.alpha == 1


def test_what_cannot_be_reached_is_refused_with_the_nearest_that_can():
    with pytest.raises(AdjoinedError, match=r"no small network of this model fits .*at least 392 bytes") as caught:
        make_plan(chain(), X, budget="300 B, 1 MMACs", round_to=1)
    assert caught.value.where == "budget='300 B'"
    assert "widths" not in caught.value.fix
    with pytest.raises(AdjoinedError, match="ask for smaller widths, or lower round_to"):
        make_plan(chain(), X, budget="300 B", widths={"0": "1/2"}, round_to=1)
    smallest = make_plan(chain(), X, alpha=64, round_to=1).cost
    assert smallest is not None
    assert make_plan(chain(), X, budget=f"{smallest.bytes} B", round_to=1).cost == smallest


@pytest.mark.parametrize(
    ("text", "quantity", "most"),
    [
        ("1 MB", "bytes", 1e6),
        ("1.5MiB", "bytes", 1.5 * 2**20),
        ("300 k parameters", "parameters", 3e5),
        ("300k params", "parameters", 3e5),
        ("50 MMACs", "MACs", 5e7),
        ("50 M MACs", "MACs", 5e7),
        (".5 GMACs", "MACs", 5e8),
        ("3 ms", "ms", 3),
    ],
)
def test_how_budgets_are_written(text: str, quantity: str, most: float):
    (limit,) = read_budget(text)
    assert (limit.quantity, limit.most) == (quantity, most)


@pytest.mark.parametrize("budget", ["", "1", "MB", "-1 MB", "0 MB", "1 MB, 2 MB", "1 mile", "1 M ms", 5, ["1 MB", 3]])
def test_what_is_not_a_budget(budget: Any):
    with pytest.raises(AdjoinedError, match="budget"):
        make_plan(chain(), X, budget=budget)


@pytest.mark.parametrize("other", [{"compress": 2}, {"alpha": (2, 4)}, {"alpha": 2}])
def test_a_budget_chooses_only_alpha(other: Any):
    with pytest.raises(AdjoinedError, match=r"only one of these can set the size.*budget="):
        adjoin(chain(), X, budget="1 MB", **other)


def test_adjoin_takes_a_budget():
    net = adjoin(chain(), X, budget="40 kB")
    assert sum(p.numel() for p in net.extract().parameters()) * 4 <= 40_000


# ---- milliseconds are measured by a function that is given ---------------------------------------------------------


def test_milliseconds_are_those_of_the_function_that_measures_candidates():
    def latency(small: nn.Module) -> float:
        assert not small.training
        return sum(p.numel() for p in small.parameters()) / 1000

    plan = make_plan(chain(), X, budget="10 ms, 1 MB", latency=latency, round_to=1)
    assert plan.cost is not None
    assert 9_000 < plan.cost.parameters <= 10_000
    with pytest.raises(AdjoinedError, match=r"at least 0\.098 ms"):
        make_plan(chain(), X, budget="0.001 ms", latency=latency, round_to=1)


def test_milliseconds_without_a_runtime():
    with pytest.raises(AdjoinedError, match="needs a function that measures them"):
        make_plan(chain(), X, budget="3 ms")


# ---- one trace -----------------------------------------------------------------------------------------------------


def test_a_family_its_order_and_its_head_take_one_trace(traced: list[nn.Module]):
    adjoin(residual(), X, alpha=(2, 3, 4), order="l1", private_head=True)
    assert len(traced) == 1


def test_a_budget_takes_one_trace(traced: list[nn.Module]):
    make_plan(residual(), X, budget="10 kB", round_to=1)
    assert len(traced) == 1


@pytest.mark.parametrize("make", [residual, TwoGroups])
def test_a_family_has_the_plans_of_its_members(make: Any):
    model = make()
    family = Slicer(model, X).plans(Request(alpha=(2, 4, 8), round_to=1))
    assert [plan.to_json() for plan in family] == [plan_of(model, alpha=alpha).to_json() for alpha in (2.0, 4.0, 8.0)]
