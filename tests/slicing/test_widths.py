"""`widths=`: widths by group, for the channels that modules write; and invalid requests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, SlicePlan
from adjoined.slicing import Request, Slicer, cost_by_module
from masked import masked, relative_error
from unchecked import adjoin, make_plan
from zoo import Concatenated, Residual, TwoGroups, conv, images, lively, parameters, plan_of, residual, seeded

X = images(2, 3, 8, 8)


def chain() -> nn.Sequential:
    return nn.Sequential(conv(3, 64), nn.ReLU(), conv(64, 48), nn.ReLU(), conv(48, 24), nn.ReLU(), conv(24, 5))


def out(plan: SlicePlan, *layers: str) -> list[int]:
    """Channels that these layers write in the small network."""
    return [plan.small_shape(f"{layer}.weight")[0] for layer in layers]


# ---- requested widths ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ({}, [16, 12, 6]),
        ({"0": "1/2"}, [32, 12, 6]),
        ({"2": "1/1"}, [16, 48, 6]),
        ({"0": "3/8", "4": "1/1.5"}, [24, 12, 16]),
        ({"2": "10 channels"}, [16, 10, 6]),
        ({"2": "1 channel", "4": "24 channels"}, [16, 1, 24]),
        ({"[02]": "1/3"}, [22, 16, 6]),
    ],
)
def test_shares_and_numbers(widths: dict[str, str], expected: list[int]):
    assert out(plan_of(chain(), widths=widths), "0", "2", "4") == expected


@pytest.mark.parametrize(("text", "expected"), [("1/2", 24), ("1/5", 16), ("10 channels", 16), ("47 channels", 48)])
def test_round_to_holds_for_them_and_the_base_is_the_limit(text: str, expected: int):
    assert out(plan_of(chain(), widths={"2": text}, round_to=8), "2") == [expected]


def test_the_default_alpha_can_be_given_group_by_group():
    every = dict.fromkeys(("stem", "inner"), "1/4")
    model = residual()
    assert plan_of(model, 1, widths=every).tensors == plan_of(model, 4).tensors


def test_a_name_of_a_block_means_what_its_layers_write():
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = chain(), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    plan = plan_of(Blocks(), widths={"body": "1/2"})
    assert out(plan, "body.0", "body.2", "body.4", "body.6", "head") == [32, 24, 12, 3, 3]


def test_a_group_follows_whichever_of_its_writers_is_named():
    for name in ("stem", "outer", "depthwise"):
        plan = plan_of(residual(), widths={name: "1/2"})
        assert out(plan, "stem", "outer", "depthwise", "inner") == [8, 8, 8, 8]
    plan = plan_of(residual(), widths={"inner": "1/2"})
    assert out(plan, "stem", "outer", "depthwise", "inner") == [4, 4, 4, 16]


def test_what_only_reads_or_normalises_is_not_meant():
    plan = plan_of(seeded(Concatenated), widths={"inner": "1/2"})
    assert (out(plan, "left", "right", "inner"), plan.small_shape("inner.weight")[1]) == ([4, 6, 8], 10)


@pytest.mark.parametrize("text", ["1/4", "1/2", "3/4", "20 channels"])
def test_grouped_convolutions_keep_legal_ratios_and_run(text: str):
    whole = nn.Sequential(conv(3, 24), conv(24, 24, groups=8), conv(24, 5))
    for make, name in ((TwoGroups, "3"), (lambda: whole, "1")):
        model = lively(seeded(make), X)
        plan = plan_of(model.float(), 2, widths={name: text})
        small = plan.apply(model)
        layer = small.get_submodule(name)
        assert isinstance(layer, nn.Conv2d)
        assert layer.out_channels % layer.groups == layer.in_channels % layer.groups == 0
        wanted = 20 if "channels" in text else float(text[0]) / float(text[2]) * plan.shapes[f"{name}.weight"][0]
        assert wanted <= layer.out_channels < wanted + 3
        assert small(X).shape == model(X).shape


def test_grouped_convolutions_are_sliced_by_their_own_share():
    """Two groups of 32: inside the groups, as 1/4 asks, though alpha would keep everything."""
    plan = plan_of(seeded(TwoGroups), 1, widths={"3": "1/4"})
    assert plan.indices("3.weight")[0].tolist() == [*range(8), *range(32, 40)]


@pytest.mark.parametrize("widths", [{"stem": "1/2"}, {"inner": "5 channels"}, {"stem": "3/4", "inner": "1/8"}])
def test_sliced_equals_masked(widths: dict[str, str]):
    model, x = lively(residual(), X), X.double()
    plan = plan_of(model.float(), widths=widths)
    model.double()
    with torch.no_grad():
        assert relative_error(plan.apply(model)(x), masked(model, plan)(x)) < 1e-10


def test_compress_leaves_them_alone():
    model = chain()
    plan = make_plan(model, X, compress=20, round_to=1, widths={"2": "30 channels"})
    assert out(plan, "2") == [30]
    assert parameters(model) / parameters(plan.apply(model)) >= 20
    assert cost_by_module(plan.apply(model), X)["2"].parameters == 30 * (9 * out(plan, "0")[0] + 1)


def test_families_and_orders_take_them_too():
    net = adjoin(chain(), X, alpha=(2, 4), widths={"0": "12 channels"}, round_to=1, order="l1")
    assert [out(plan, "0", "2") for plan in net.plans] == [[12, 24], [12, 12]]
    assert [tuple(y.shape) for y in net(X)] == [(2, 5, 8, 8)] * 3


def test_they_are_recorded():
    plan = plan_of(chain(), widths={"0": "1/2", "2": "48 channels"})
    again = SlicePlan.from_json(plan.to_json())
    assert again == plan
    assert again.widths == {"0": "1/2", "2": "48 channels"}
    reasons = {group.name: group.reason for group in plan.groups}
    assert reasons["2"] == "widths='2' asks for all of its channels"


# ---- invalid requests -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("widths", "said"),
    [
        ({"0": 4}, r"widths\['0'\].*'1/4' for a fraction of the channels, '4 channels' for a number"),
        ({"0": 4.0}, "not a width"),
        ({"0": "4"}, "a fraction such as '1/2', or a number such as '24 channels'"),
        ({"0": "24"}, "24 channels"),
        ({"0": "3/2"}, "not a width"),
        ({"0": "0/2"}, "not a width"),
        ({"0": "0 channels"}, "not a width"),
        ({"0": "-1/2"}, "not a width"),
        ({"0": "50%"}, "not a width"),
        ({"0": None}, "not a width"),
        ({3: "1/2"}, "not a width"),
        ("0=1/2", "not widths by module"),
        ({"0": "65 channels"}, r"cannot be wider than the base.*at most 64 channels, the width of '0'"),
        ({"stem": "1/2"}, "no module of the model has this name"),
        ({"1": "1/2"}, "write no channels.*'0', '2'"),
        ({"6": "1/2"}, "stay at full width.*'6': model output"),
        ({"0": "1/2", "[0]": "1/4"}, r"channel group '0': two widths.*'1/2' for '0' and '1/4' for '\[0\]'"),
    ],
)
def test_mistakes_are_reported(widths: Any, said: str):
    with pytest.raises(AdjoinedError, match=said):
        plan_of(chain(), widths=widths)


def test_conflicts_within_one_group_name_both_patterns_and_the_group():
    with pytest.raises(AdjoinedError, match=r"channel group 'stem'.*'1/2' for 'stem' and '12 channels' for 'out\*'"):
        plan_of(residual(), widths={"stem": "1/2", "out*": "12 channels"})
    plan = plan_of(residual(), widths={"stem": "1/2", "out*": "8 channels"})  # the same in other words
    assert out(plan, "stem") == [8]


def test_one_pattern_may_name_what_stays_wide_beside_what_does_not():
    assert out(plan_of(residual(), widths={"*": "1/2"}), "stem", "inner", "head") == [8, 16, 5]
    assert out(plan_of(residual(), keep=("stem",), widths={"*": "1/2"}), "stem", "inner") == [16, 16]


def test_keep_wins_and_says_so():
    with pytest.raises(AdjoinedError, match=r"full width.*kept by keep='stem'"):
        plan_of(residual(), keep=("stem",), widths={"outer": "1/2"})


def test_mistakes_are_reported_at_once_when_alpha_is_searched():
    with pytest.raises(AdjoinedError, match="no module of the model"):
        make_plan(chain(), X, compress=4, widths={"stem": "1/2"})
    with pytest.raises(AdjoinedError, match="model output"):
        make_plan(chain(), X, compress=4, widths={"6": "1/2"})


def test_the_given_widths_are_not_held_against_alpha():
    plan = plan_of(Residual(), 64, widths={"stem": "1/2", "inner": "1/2"})
    assert out(plan, "stem", "inner") == [8, 16]


class Pieces(nn.Module):
    """One layer writes channels of which the halves go different ways, beside a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.own = conv(3, 64), conv(3, 32)
        self.first, self.second, self.third = conv(32, 5), conv(32, 5), conv(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).relu().chunk(2, 1)
        return self.first(a) + self.second(b) + self.third(self.own(x).relu())


def test_pieces_that_one_layer_writes_are_one_choice():
    choices = Slicer(Pieces(), X).width_choices(Request(alpha=4, round_to=4))
    assert [choice.modules for choice in choices] == [("both",), ("own",)]
    for choice in choices:
        assert [str(share) for share in choice.shares] == ["1/8", "1/4", "3/8", "1/2"]
        assert choice.shares[1] == choice.present
    wide = make_plan(Pieces(), X, alpha=4, round_to=4, widths=choices[0].widths(choices[0].shares[-1]))
    assert out(wide, "both", "own") == [32, 8]
