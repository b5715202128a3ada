"""Plans that the trial accepts and the check does not: the groups that have to be wide are found, and no others."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, adjoin
from adjoined.slicing import Kind, SlicePlan, check_plan, make_plan
from adjoined.slicing.verify import widen
from constructs import Net, X, network

WIDE = 32


class FewerTerms(Net):
    """Sums fewer of its branches if there are fewer channels."""

    def parts(self) -> None:
        self.one, self.two = nn.Conv2d(WIDE, WIDE, 1), nn.Conv2d(WIDE, WIDE, 1)

    def mid(self, x: Tensor) -> Tensor:
        branches = [self.one(x).tanh(), self.two(x).tanh()]
        chosen = torch.stack([branches[0] * 1, branches[1] * 1, branches[0] * branches[1]])
        return chosen[: max(1, x.shape[1] // 16)].sum(0) if x.shape[1] < WIDE else chosen.sum(0)


class Rounded(Net):
    def mid(self, x: Tensor) -> Tensor:
        return torch.round(x, decimals=x.shape[1] // 16)


class Repeated(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x + x[:, :, :1].expand(-1, -1, x.shape[1] // 4, -1).sum(2, keepdim=True)


class Transposed(Net):
    def mid(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3) if x.shape[1] >= WIDE else x


class InTraining(Net):
    """Differs in train mode only, and draws."""

    def mid(self, x: Tensor) -> Tensor:
        if self.training:
            x = nn.functional.dropout(x.flip(2) if x.shape[1] >= WIDE else x, 0.5)
        return x


KINDS = [FewerTerms, Rounded, Repeated, Transposed, InTraining]


def right(model: nn.Module, plan: SlicePlan, x: Any = X) -> None:
    checked = check_plan(model, x, plan)
    assert checked.how == "masked base"
    assert (checked.error or 0) < 1e-12


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_width_that_code_reads_stays_and_no_other(kind: type[Net]):
    model = network(kind)
    plan = make_plan(model, X, alpha=2, round_to=1)
    right(model, plan)
    assert plan.small_shape("stem.0.weight")[0] == WIDE
    assert plan.small_shape("body.weight")[0] == 24


def test_the_plan_says_where_and_what_helps():
    plan = make_plan(network(Transposed), X, alpha=2, round_to=1)
    (why,) = {group.why for group in plan.groups if group.why is not None and group.why.kind is Kind.DIFFERS}
    assert str(why) == "needed for 'body' to agree with the masked base"
    assert "report the model" in why.remedy


def test_without_the_check_the_small_network_differs():
    model = network(Transposed)
    plan = make_plan(model, X, alpha=2, round_to=1, check=False)
    assert plan.small_shape("stem.0.weight")[0] == 16
    with pytest.raises(AdjoinedError, match="does not compute what the base network does"):
        check_plan(model, X, plan)


class Twice(Net):
    """Depends on the width in two places, of different groups."""

    def parts(self) -> None:
        self.inner, self.outer = nn.Conv2d(WIDE, WIDE, 1), nn.Conv2d(WIDE, WIDE, 1)

    def mid(self, x: Tensor) -> Tensor:
        x = self.inner(x.flip(2) if x.shape[1] >= WIDE else x).relu()
        x = self.outer(x).relu()
        return x.flip(3) if x.shape[1] >= WIDE else x


def test_two_places_are_found():
    model = network(Twice)
    plan = make_plan(model, X, alpha=2, round_to=1)
    right(model, plan)
    widths = [plan.small_shape(f"{name}.weight")[0] for name in ("stem.0", "inner", "outer", "body")]
    assert widths == [32, 16, 32, 24]


def test_beyond_the_most_places_the_rest_is_found_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(widen, "MOST_WIDENED", 1)
    model = network(Twice)
    plan = make_plan(model, X, alpha=2, round_to=1)
    right(model, plan)
    assert plan.small_shape("outer.weight")[0] == 32


def test_a_requested_width_that_has_to_be_wide_is_refused_with_the_reason():
    with pytest.raises(AdjoinedError, match=r"has no effect.*needed for 'body' to agree with the masked base"):
        make_plan(network(Transposed), X, alpha=2, round_to=1, widths={"stem.0": "1/2"})


@pytest.mark.parametrize(
    "settings", [{"budget": "8 k parameters"}, {"compress": 2}, {"alpha": 4, "widths": {"body": "1/2"}}], ids=str
)
def test_what_is_asked_for_holds_beside_it(settings: dict[str, Any]):
    model = network(Transposed)
    plan = make_plan(model, X, round_to=1, **settings)
    right(model, plan)
    assert plan.small_shape("stem.0.weight")[0] == WIDE
    assert plan.cost is not None
    assert plan.base_cost is not None
    if "budget" in settings:
        assert 7_000 < plan.cost.parameters <= 8_000
    elif "compress" in settings:
        assert 2 <= plan.base_cost.parameters_without_last / plan.cost.parameters_without_last < 2.2
    else:
        assert plan.small_shape("body.weight")[0] == 24


def test_each_network_of_a_family_is_right():
    model = network(Transposed)
    net = adjoin(model, X, alpha=(2, 4), round_to=1)
    for plan in net.plans:
        right(model, plan)
        assert plan.small_shape("stem.0.weight")[0] == WIDE


# ---- what the check runs on ----------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Prints how many samples it gets, and needs at least `least` of them."""

    def __init__(self, least: int = 1) -> None:
        super().__init__()
        self.first, self.last, self.least = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1), least

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < self.least:
            raise ValueError("too few samples")
        print(len(x))
        return self.last(self.first(x).relu())


class Weighted(Counting):
    def forward(self, images: Tensor, weights: Tensor, table: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(images) * weights[:, None, None, None] + table.mean()


def test_of_several_tensors_the_same_samples_are_used(capsys: pytest.CaptureFixture[str]):
    example = {"images": torch.zeros(16, 3, 8, 8), "weights": torch.ones(16), "table": torch.ones(7, 2)}
    plan = make_plan(Weighted(), example, alpha=2, round_to=1, check=False)
    capsys.readouterr()
    right(Weighted(), plan, example)
    assert set(capsys.readouterr().out.split()) == {"2"}


@pytest.mark.parametrize(("least", "samples"), [(1, 2), (2, 2), (3, 16)])
def test_two_samples_of_a_batch_are_enough_unless_the_model_needs_more(
    least: int, samples: int, capsys: pytest.CaptureFixture[str]
):
    model, x = Counting(least), torch.zeros(16, 3, 8, 8)
    plan = make_plan(model, x, alpha=2, round_to=1, check=False)
    capsys.readouterr()
    right(model, plan, x)
    assert set(capsys.readouterr().out.split()) == {str(samples)}


class InSingle(nn.Module):
    """Adds a bias that is not a buffer, so it stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.bias = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1), torch.zeros(5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.first(x).relu(), self.last.weight, self.bias)


class Playing(nn.Module):
    """Draws a number that no seed fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).relu() * random.SystemRandom().random())


class Large(nn.Module):
    """Fits into memory in float32, and as the base network also in float64."""

    def __init__(self, least: int) -> None:
        super().__init__()
        self.first, self.last, self.least = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 5, 1), least

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if x.dtype == torch.float64 and x.shape[1] < self.least:
            raise torch.OutOfMemoryError("out of memory")
        return self.last(x)


def meta() -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 1)), torch.zeros(1, 3, 8, 8)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: (InSingle(), X.float()), "the model does not run in float64 on random numbers: "),
        (lambda: (Large(17), X.float()), "the model does not run in float64 on random numbers: out of memory"),
        (lambda: (Large(16), X.float()), "out of memory"),
        (lambda: (Playing(), X.float()), "two runs of the base network differ, too"),
        (meta, "tensors on the meta device have no values"),
    ],
    ids=["float32", "memory", "memory of the small network", "chance", "meta"],
)
def test_a_model_that_cannot_be_compared_is_planned_with_a_warning(
    make: Callable[[], tuple[nn.Module, Tensor]], why: str
):
    model, x = make()
    text = f"the small network was not compared with the masked base: {why}"
    with pytest.warns(UserWarning, match=text) as warned:
        plan = make_plan(model, x, alpha=2, round_to=1)
    assert [Path(each.filename).name for each in warned] == [Path(__file__).name]
    assert any(group.kept < group.width for group in plan.groups)
    checked = check_plan(model, x, plan)
    assert (checked.error, checked.compared) == (None, False)
    assert checked.where.startswith(why)
    assert str(checked).startswith(f"checked by the strict second run only: {why}")


def test_joining_warns_too_if_nothing_can_be_compared():
    plan = adjoin(InSingle(), X.float(), alpha=2, round_to=1, check=False).plan
    for setting in ({"alpha": 2, "round_to": 1}, {"plan": plan}):
        with pytest.warns(UserWarning, match="was not compared") as warned:
            adjoin(InSingle(), X.float(), **setting)
        assert [Path(each.filename).name for each in warned] == [Path(__file__).name]


def test_a_plan_made_for_narrower_outputs_is_compared_with_the_kept_ones():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 1)).double()
    hook = model.register_forward_hook(lambda module, args, out: out[:, :1])
    plan = make_plan(model, X, alpha=2, round_to=1)
    hook.remove()
    assert plan.small_shape("2.weight")[0] < 16
    right(model, plan)
