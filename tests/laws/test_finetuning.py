"""Fine-tuning habits: what a joint network does with frozen weights, groups of parameters and training of a part."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adjoined import adjoint_loss
from pairs import X, Y, build, joint, same
from unchecked import adjoin


def trained(net: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The parameters before a step, which is then taken."""
    before = {name: each.detach().clone() for name, each in net.named_parameters()}
    p, q = net.train()(X)
    adjoint_loss(p, q, Y, progress=1.0).backward()
    optimizer.step()
    return before


def moved(net: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, each in net.named_parameters() if not same(each, before[name])}


def test_private_weights_start_frozen_where_the_base_s_are_and_can_be_trained_all_the_same():
    model = build("residual")[0]
    model.requires_grad_(False)
    net = adjoin(model, X, alpha=4, round_to=1)
    assert not any(each.requires_grad for each in net.parameters())
    net.smalls.requires_grad_(True)
    private = {name for name, _ in net.named_parameters() if name.startswith("smalls.")}
    assert private
    before = trained(net, torch.optim.SGD([each for each in net.parameters() if each.requires_grad], lr=0.1))
    assert moved(net, before) == private


def test_a_part_is_trained_by_both_networks_and_the_rest_stays_shared():
    net = joint()
    head = {name for name, _ in net.named_parameters() if name.startswith("base.head.")}
    assert head
    for name, each in net.named_parameters():
        each.requires_grad_(name in head)
    before = trained(net, torch.optim.SGD(net.parameters(), lr=0.1))
    assert moved(net, before) == head
    small = net.eval().extract()
    with torch.no_grad():
        assert same(small(X), net(X)[1])


def test_groups_of_parameters_keep_their_rates():
    net = joint()
    fast = copy.deepcopy(net)
    names = [name for name, _ in net.named_parameters()]
    private = [each for name, each in net.named_parameters() if name.startswith("smalls.")]
    shared = [each for name, each in net.named_parameters() if name.startswith("base.")]
    before = trained(net, torch.optim.SGD([{"params": shared}, {"params": private, "lr": 0.2}], lr=0.1))
    trained(fast, torch.optim.SGD(fast.parameters(), lr=0.1))
    for name, one, other in zip(names, net.parameters(), fast.parameters(), strict=True):
        times = 2 if name.startswith("smalls.") else 1
        torch.testing.assert_close(one - before[name], times * (other - before[name]), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "mistake",
    [
        "base's parameters",
        "one norm too few",
        "unfrozen in the base alone",
        "loss without q",
        "weights loaded too late",
    ],
)
def test_what_is_trained_in_the_base_alone_is_reported_at_the_end(mistake: str):
    net = adjoin(build("residual")[0].requires_grad_("unfrozen" not in mistake), X, alpha=4, round_to=1).train()
    net.base.requires_grad_(True)
    net.extract()  # nothing has been trained yet, and nothing is told: warnings are errors here
    if mistake == "weights loaded too late":
        net.base.load_state_dict(build("residual", seed=1)[0].state_dict())
    else:
        left = {"base's parameters": list(net.smalls.parameters()), "one norm too few": [net.smalls[0].norm1.weight]}
        given = [each for each in net.parameters() if not any(each is other for other in left.get(mistake, []))]
        optimizer = torch.optim.SGD(given, lr=0.1)
        p, q = net(X)
        (F.cross_entropy(p, Y) if "loss" in mistake else adjoint_loss(p, q, Y, progress=1.0)).backward()
        optimizer.step()
    few = "1" if mistake.startswith("one") else r"(\d+) of the small network's \1"
    with pytest.warns(
        UserWarning, match=rf"but {few} .*parameters have not, such as smalls\.0\..*net\.parameters\(\)"
    ) as told:
        net.extract()
    assert [each.filename for each in told] == [__file__]
    net.requires_grad_(True)
    trained(net, torch.optim.SGD(net.parameters(), lr=0.1))
    net.extract()
