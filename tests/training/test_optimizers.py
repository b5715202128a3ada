"""Optimizers by name, rates by layer, frozen modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from torch import nn

from adjoined import AdjoinedError, adjoin, load
from adjoined.settings import Settings
from adjoined.training import train
from adjoined.training.job import make_job
from adjoined.training.optimizers import layer_numbers, make_optimizer, make_schedule, parameter_groups
from tiny_runs import QUIET, TINY


def joint(name: str = "resnet18"):
    model = timm.create_model(name, num_classes=5)
    return adjoin(model, torch.zeros(1, 3, 64, 64), alpha=2, private_head=True)


def rates(groups: list[dict], key: str) -> dict[int, float]:
    return {id(parameter): group[key] for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0", "convnext_atto"])
def test_timm_numbers_the_layers_of_a_joint_network_as_those_of_the_base(name: str):
    net = joint(name)
    alone = rates(param_groups_layer_decay(net.base, layer_decay=0.7), "lr_scale")
    both = rates(param_groups_layer_decay(net, layer_decay=0.7), "lr_scale")
    assert len(set(alone.values())) > 4
    assert {each: both[each] for each in alone} == alone
    by_name = dict(net.base.named_parameters())
    private = dict(net.smalls[0].named_parameters())
    assert private
    assert all(both[id(each)] == alone[id(by_name[name])] for name, each in private.items())
    assert len(both) == len(list(net.parameters()))
    create_optimizer_v2(net, opt="adamw", lr=1e-3, layer_decay=0.7).step()


def test_a_model_that_does_not_number_its_layers_has_no_matcher():
    net = adjoin(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(576, 4)), torch.zeros(1, 3, 8, 8), alpha=2)
    assert not hasattr(net, "group_matcher")
    numbers = layer_numbers(net)
    assert numbers.keys() == {name for name, _ in net.named_parameters()}


@pytest.mark.parametrize("net", [joint(), make_job(TINY).network], ids=["timm", "built-in"])
def test_each_layer_has_the_rate_of_the_one_behind_it_times_the_decay(net: nn.Module):
    settings = replace(TINY, layer_decay=0.5, lr=0.2, weight_decay=0.1)
    groups = parameter_groups(settings, net)
    found = rates(groups, "lr")
    assert sorted(found) == sorted(id(each) for each in net.parameters())
    assert max(found.values()) == 0.2
    steps = sorted(set(found.values()), reverse=True)
    assert len(steps) > 1
    assert steps == pytest.approx([0.2 * 0.5**number for number in range(len(steps))])
    assert {g["weight_decay"] for g in groups if g["params"][0].ndim > 1} == {0.1}
    optimizer = make_optimizer(settings, net)
    schedule = make_schedule(replace(settings, schedule="onecycle"), optimizer, 10)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    now = rates(optimizer.param_groups, "lr")
    assert all(now[each] / found[each] == pytest.approx(now[other] / found[other]) for each in now for other in now)


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb", "lion", "muon", "lookahead_sgd", "rmsprop"])
def test_optimizers_of_timm_and_torch_make_a_step(name: str):
    net = make_job(TINY).network
    before = [each.detach().clone() for each in net.parameters()]
    optimizer = make_optimizer(replace(TINY, optimizer=name), net)
    sum(each.square().sum() for each in net.parameters()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


@pytest.mark.parametrize("name", ["adamww", "adahessian", "os.system"])
def test_what_is_not_an_optimizer_is_refused_before_anything_is_written(name: str, tmp_path):
    with pytest.raises(AdjoinedError, match="--optimizer"):
        train(replace(TINY, optimizer=name), tmp_path / "run", console=QUIET)
    assert not (tmp_path / "run" / "settings.yaml").exists()


def test_frozen_modules_stay_as_they_are_and_the_small_networks_norms_are_trained(tmp_path):
    settings = replace(TINY, freeze=["conv1", "bn1", "layer1"], epochs=1)
    start = {name: each.clone() for name, each in make_job(settings).model.state_dict().items()}
    result = train(settings, tmp_path / "run", console=QUIET)
    base, small = load(result.folder, "base"), load(result.folder, "small")
    frozen = [name for name in start if name.startswith(("conv1.", "bn1.", "layer1."))]
    assert any("running_mean" in name for name in frozen)
    assert all(torch.equal(base.state_dict()[name], start[name]) for name in frozen)
    assert all(not torch.equal(each, start[name]) for name, each in base.named_parameters() if name not in frozen)
    norms = [name for name in frozen if name.startswith("bn1") and "num_batches" not in name]
    first = small.state_dict()
    assert all(not torch.equal(first[name], start[name][: len(first[name])]) for name in norms)


def test_an_unknown_module_cannot_be_frozen():
    with pytest.raises(AdjoinedError, match="no module of the model has this name"):
        make_job(replace(TINY, freeze=["layer9"]))


def test_a_warm_up_longer_than_the_run_is_cut():
    settings = Settings(epochs=1, warmup_epochs=5)
    net = make_job(TINY).network
    schedule = make_schedule(settings, make_optimizer(settings, net), 10)
    assert len(schedule.get_last_lr()) > 0
