"""Small networks with awkward constructs: right and narrow, or at full width for a reason; and they train."""

from __future__ import annotations

import re
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import adversarial
import adversarial_attention as attention
from adjoined.slicing import SlicePlan, tensor_leaves
from adjoined.slicing.flow.completion import OUTPUT
from adversarial import CROSSING, SHARE, WIDE, build
from masked import masked, relative_error
from unchecked import adjoin, make_plan
from zoo import parameters, spread

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # scripted modules are still in use

EACH = pytest.mark.parametrize("cls", adversarial.networks(), ids=lambda cls: cls.__name__)


@cache
def plan_of(cls: type[nn.Module]) -> SlicePlan:
    return make_plan(*build(cls), alpha=4, round_to=1)


@EACH
def test_narrow_and_right_or_wide_for_a_reason(cls: type[nn.Module]):
    model, example = build(cls)
    plan = plan_of(cls)
    share, reason = WIDE.get(cls, (SHARE, ""))
    wide = [group for group in plan.groups if group.why not in (None, OUTPUT)]
    assert all(reason and re.search(reason, group.reason) for group in wide[:1]), wide
    assert bool(wide) == (cls in WIDE), wide
    assert not plan.unaligned
    small = plan.apply(model)
    assert parameters(small) <= share * parameters(model)
    with torch.no_grad():
        got, expected = tensor_leaves(small(*example)), tensor_leaves(masked(model, plan)(*example))
    if cls in CROSSING:
        assert plan.crossing
    else:
        assert max(relative_error(a, b) for a, b in zip(got, expected, strict=True)) <= 1e-10
    base = tensor_leaves(model(*example))
    assert [out.shape for out in got] == [out.shape for out in base]
    assert all(out.isfinite().all() for out in got)


@EACH
def test_one_step_of_both_networks(cls: type[nn.Module]):
    model, example = build(cls)
    net = adjoin(model, example, plan=plan_of(cls)).train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        p, q = net(*example)
    total(q).backward()
    weights = dict(net.base.named_parameters())
    seen = 0
    for name, weight in weights.items():
        if weight.ndim and weight.grad is not None and not private(net.smalls[0], name):
            kept = spread(net.plan, name, torch.ones(net.plan.small_shape(name)))
            assert not weight.grad[kept == 0].any(), name
            seen += 1
    assert seen
    total(p).backward()
    missing = [name for name, weight in weights.items() if weight.grad is None]
    assert not missing
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    optimizer.step()
    with torch.no_grad():
        assert all(out.isfinite().all() for out in tensor_leaves(net(*example)))


def total(outputs: object) -> Tensor:
    leaves = [leaf for leaf in tensor_leaves(outputs) if leaf.is_floating_point()]
    return torch.stack([leaf.square().mean() for leaf in leaves]).sum()


def private(small: nn.Module, name: str) -> bool:
    return name in dict(small.named_parameters())


def test_heads_are_rounded_by_their_features_whatever_else_has_one_place_for_each():
    """2 of 8 heads of 4 features are 8 channels; their table of biases has 8 columns, one for each head."""
    model, example = build(attention.BiasedHeads)
    plan = make_plan(model, example, alpha=4, round_to=8)
    assert plan.small_shape("table") == (127, 2)
    assert plan.small_shape("qkv.weight") == (24, 8)
    assert plan.attributes == {"heads": 2}
