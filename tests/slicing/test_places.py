"""Dimensions that are not channels keep their size, whatever reads the parameter; the channels around them narrow."""

from __future__ import annotations

import pytest

from adjoined.slicing import check_plan, make_plan
from constructs import Net, X, network
from masked import masked, relative_error
from places import KEPT

EACH = pytest.mark.parametrize("cls", KEPT, ids=lambda cls: cls.__name__)


@EACH
@pytest.mark.parametrize("alpha", [2, 4])
def test_what_is_not_a_channel_keeps_its_size_and_the_channels_narrow(cls: type[Net], alpha: float):
    model = network(cls)
    plan = make_plan(model, X, alpha=alpha, round_to=1)
    for name, dims in KEPT[cls].items():
        assert all(plan.small_shape(name)[dim] == plan.shapes[name][dim] for dim in dims), name
    assert plan.small_shape("stem.0.weight") == (32 / alpha, 3, 3, 3)
    assert plan.small_shape("body.weight") == (48 / alpha, 32 / alpha, 3, 3)
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error <= 1e-12
    assert relative_error(plan.apply(model)(X), masked(model, plan)(X)) <= 1e-10
