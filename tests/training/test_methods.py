"""Each method: its loss in closed form, what it trains, its results, and the cost of a step."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adjoined.errors import AdjoinedError
from adjoined.loss import adjoint_loss, adjoint_terms
from adjoined.methods import METHODS, Step
from adjoined.methods.replay import Pupil
from adjoined.methods.scratch import fresh_small
from adjoined.models import build
from adjoined.network import AdjoinedNetwork, adjoin
from adjoined.objective import kl_weight
from adjoined.settings import Settings
from adjoined.slicing import make_plan, measure_cost
from adjoined.training.cost import step_macs, training_macs
from adjoined.training.job import Job, make_job
from tiny_runs import TINY

X, Y = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 4, 5])


def job_of(name: str, **changes: Any) -> Job:
    """Return the job of a method without its earlier stages: untrained networks replace theirs."""
    settings = replace(TINY, model_options={"width": 1}).for_method(name, **changes)
    stages = METHODS[name](settings).before()
    earlier = {stage.name: make_job(settings.for_method("standard")).model for stage in stages}
    return make_job(settings, earlier=earlier)


def step_of(job: Job, x: Tensor = X, progress: float = 0.25) -> Step:
    torch.manual_seed(0)
    return job.method.step(job.network.train(), x, Y, progress=progress, measure=True)


def kl(p: Tensor, q: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p ‖ q) of logits, by torch's own function."""
    log_p, log_q = (F.log_softmax(each / temperature, dim=1) for each in (p, q))
    return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


# ---- what holds for all ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adjoint", "transfer", "distillation"])
def test_small_networks_keep_to_a_budget(name):
    job = job_of(name, budget="100 k parameters", round_to=1)
    plan = job.built.plans["small"]
    assert 80_000 < sum(each.numel() for each in plan.apply(job.model).parameters()) <= 100_000


@pytest.mark.parametrize("name", METHODS)
def test_a_method_keeps_its_promises(name):
    job = job_of(name)
    step = step_of(job, X)
    names = list(job.built.plans)
    assert list(step.logits) == names
    step.loss.backward()
    assert all((each.grad is not None) == each.requires_grad for each in job.network.parameters())
    job.network.eval()
    logits = job.method.logits(job.network, X)
    finished = job.method.finish(job.built)
    assert list(logits) == list(finished) == names
    for each in names:
        torch.testing.assert_close(finished[each].module.eval()(X), logits[each])
    copy.deepcopy(job.network)  # as a moving average does


# ---- losses in closed form -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"kl_schedule": "constant", "temperature": 3.0},
        {"small_ce": 0.5},
    ],
)
def test_the_adjoint_loss_with_its_ablations(change):
    step = step_of(job_of("adjoint", **change))
    p, q = step.logits["base"], step.logits["small"]
    temperature = change.get("temperature", 1.0)
    weight = {"paper": 0.25, "constant": 1.0}[change.get("kl_schedule", "paper")]
    assert step.terms["lambda"] == weight
    of_small = temperature**2 * kl(p, q, temperature) + change.get("small_ce", 0.0) * F.cross_entropy(q, Y)
    expected = F.cross_entropy(p, Y) + weight * of_small
    torch.testing.assert_close(step.loss, expected)


def test_schedules_of_lambda():
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [kl_weight(t, "paper") for t in shares] == [0, 0.25, 1, 1, 1]
    assert [kl_weight(t, "constant") for t in shares] == [1.0] * 5
    with pytest.raises(AdjoinedError, match="schedule: no such choice"):
        kl_weight(0.5, "cosine")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("detach", [False, True])
def test_a_detached_kl_has_no_gradient_into_the_base(detach):
    p, q = torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(1)).requires_grad_().unbind(0)
    loss = adjoint_terms(p, q, Y, detach=detach, temperature=2.0).kl
    into_p, into_q = torch.autograd.grad(loss, (p, q), allow_unused=True)
    assert into_q.abs().sum() > 0
    assert (into_p is None) == detach


def test_the_temperature_keeps_the_size_of_the_gradient():
    p, q = torch.randn(2, 6, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).unbind(0)
    at = [adjoint_terms(p, p + 1e-3 * (q - p), Y, temperature=t).kl.item() for t in (100.0, 200.0)]
    assert at[0] == pytest.approx(at[1], rel=0.05)  # without T² the second would be a quarter of the first
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(AdjoinedError, match="temperature"):
            adjoint_loss(p, q, Y, progress=0.5, temperature=wrong)


def test_adjoint_plus_is_adjoint_with_settings_and_half_of_the_gradient():
    job = job_of("adjoint+")
    plus = step_of(job)
    chosen = {"kl_detach": True, "small_ce": 1.0, "temperature": 4.0, "private_head": True}
    same = step_of(job_of("adjoint", **chosen))
    other = step_of(job_of("adjoint"))
    assert plus.loss.equal(same.loss)
    assert not plus.loss.equal(other.loss)
    p, q = plus.logits["base"], plus.logits["small"]
    own_loop = adjoint_loss(p, q, Y, progress=0.25, detach=True, temperature=4, small_ce=1)  # as docs/method.md has it
    torch.testing.assert_close(plus.loss, own_loop)

    network = job.network
    assert isinstance(network, AdjoinedNetwork)
    weight, private = (
        next(each for each in network.base.parameters() if each.ndim == 4),
        next(network.smalls.parameters()),
    )
    p, q = network(X)
    alone = torch.autograd.grad(F.cross_entropy(p, Y), weight, retain_graph=True)[0]
    of_joint = torch.autograd.grad(plus.loss, [weight, private], retain_graph=True)
    other = adjoin(network.base, X, plan=network.plan, private_head=True)
    other.smalls.load_state_dict(network.smalls.state_dict())
    own = adjoint_loss(*other(X), Y, progress=0.25, detach=True, temperature=4, small_ce=1)
    whole = torch.autograd.grad(own, [weight, next(other.smalls.parameters())])
    torch.testing.assert_close(of_joint[0] - alone, 0.5 * (whole[0] - alone))
    torch.testing.assert_close(of_joint[1], whole[1])


def test_slimmable_trains_each_network_by_the_labels():
    step = step_of(job_of("slimmable", alpha=[2.0, 4.0]))
    assert list(step.logits) == ["base", "small-1", "small-2"]
    torch.testing.assert_close(step.loss, sum(F.cross_entropy(each, Y) for each in step.logits.values()))


def test_in_place_distillation_trains_the_small_network_only_by_the_base():
    job = job_of("slimmable-distill")
    step = step_of(job)
    p, q = step.logits["base"], step.logits["small"]
    torch.testing.assert_close(step.loss, F.cross_entropy(p, Y) + kl(p, q))
    into_p = torch.autograd.grad(step.loss, p)[0]
    torch.testing.assert_close(into_p, (p.softmax(1) - F.one_hot(Y, 10)) / len(Y))


def test_mutual_learning_teaches_both_ways_and_shares_nothing():
    job = job_of("mutual")
    step = step_of(job)
    p, q = step.logits["base"], step.logits["small"]
    torch.testing.assert_close(step.loss, F.cross_entropy(p, Y) + F.cross_entropy(q, Y) + kl(p, q) + kl(q, p))
    into_p, into_q = torch.autograd.grad(step.loss, (p, q))
    for own, other, gradient in ((p, q, into_p), (q, p, into_q)):
        # that of CE(own, y) + KL(other ‖ own), other a constant
        expected = (own.softmax(1) - F.one_hot(Y, 10) + own.softmax(1) - other.softmax(1)) / len(Y)
        torch.testing.assert_close(gradient, expected)
    parameters = [id(each) for each in job.network.parameters()]
    assert len(parameters) == len(set(parameters))
    assert sum(p.numel() for p in job.network.parameters()) > sum(p.numel() for p in job.model.parameters())


def test_distillation_is_hinton_s_with_the_weights_of_repdistiller():
    job = job_of("distillation")
    step = step_of(job)
    q = step.logits["small"]
    teacher = job.network.get_submodule("teacher")
    assert not teacher.training
    p = teacher(X)
    torch.testing.assert_close(step.loss, 0.1 * F.cross_entropy(q, Y) + 0.9 * 16 * kl(p, q, 4.0))
    before = copy.deepcopy(teacher.state_dict())
    step.loss.backward()
    assert all(each.grad is None for each in teacher.parameters())
    assert all(torch.equal(before[name], each) for name, each in teacher.state_dict().items())
    warm = step_of(job_of("distillation", temperature=2.0, kl_share=0.5))
    torch.testing.assert_close(warm.loss, 0.5 * F.cross_entropy(q, Y) + 0.5 * 4 * kl(p, q, 2.0))


def test_replay_takes_the_labels_and_the_recorded_logits_of_the_batch():
    job = job_of("replay")
    assert isinstance(job.network, Pupil)
    p = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    job.network.recorded = p
    step = step_of(job)
    q = step.logits["small"]
    torch.testing.assert_close(step.loss, F.cross_entropy(q, Y) + 16 * kl(p, q, 4.0))
    plan = job.built.plans["small"]
    assert plan is not None
    assert not plan.in_order  # it keeps the filters with the largest norms


def test_dropout_drops_inputs_of_the_last_layer_only_in_training():
    job = job_of("dropout", dropout_rate=0.5)
    seen: list[Tensor] = []
    job.network.get_submodule("fc").register_forward_hook(lambda module, args, out: seen.append(args[0]))
    job.network.train()(X)
    share = (seen[0] == 0).float().mean().item()
    assert 0.35 < share < 0.65
    job.network.eval()(X)
    assert (seen[1] == 0).float().mean() < 0.1
    finished = job.method.finish(job.built)["base"].module
    assert not finished.get_submodule("fc")._forward_pre_hooks
    assert job.network.get_submodule("fc")._forward_pre_hooks  # the training continues with it


# ---- networks --------------------------------------------------------------------------------------------------------


def test_norms_are_private():
    network = adjoin(job_of("standard").model, X[:1], alpha=4)
    private = {name for name, _ in network.smalls.named_parameters()}
    assert private == {
        f"0.{name}.{tensor}"
        for name, module in network.base.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for tensor in ("weight", "bias")
    }
    adjoint_loss(*network(X), Y, progress=1.0).backward()
    assert all(each.grad is not None for each in network.parameters())


def test_a_fresh_small_network_has_the_spread_that_its_own_rule_would_give():
    torch.manual_seed(0)
    model = build("resnet20", num_classes=100, in_channels=3, options={"width": 4})
    plan = make_plan(model, torch.zeros(1, 3, 32, 32), alpha=4)
    narrow = build("resnet20", num_classes=100, in_channels=3, options={"width": 1})
    small, narrow = (dict(each.named_parameters()) for each in (fresh_small(model, plan), narrow))
    full = dict(model.named_parameters())
    for name, weight in small.items():
        if weight.ndim == 4:
            assert weight.shape == narrow[name].shape
            if name != "conv1.weight":
                assert weight.std().item() == pytest.approx(narrow[name].std().item(), rel=0.15)
        elif weight.ndim == 1:
            assert torch.equal(weight.unique(), full[name].unique())
    sliced = dict(plan.apply(model).named_parameters())
    assert (
        sliced["layer3.1.conv1.weight"].std() < 0.6 * narrow["layer3.1.conv1.weight"].std()
    )  # as it would be otherwise
    assert not torch.equal(small["layer1.0.conv1.weight"], sliced["layer1.0.conv1.weight"])


@pytest.mark.parametrize("name", ["scratch", "distillation", "mutual", "filter-pruning", "replay"])
def test_these_methods_have_one_small_network(name):
    with pytest.raises(AdjoinedError, match=r"--alpha: the method .* has one small network"):
        job_of(name, alpha=[2.0, 4.0])


# ---- costs -----------------------------------------------------------------------------------------------------------


@cache
def cost_of(name: str) -> int:
    job = job_of(name)
    return step_macs(job.method, job.network, job.example)


def test_the_count_of_a_training_step_in_closed_form():
    # 3x3 convolution, 2 to 4 channels, then a linear layer of 4 * 36 inputs: the forward pass, and twice as much
    # backward, except for the first layer, whose input needs no gradient.
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(144, 5))
    conv, linear = 4 * 2 * 9 * 36, 144 * 5
    method = METHODS["standard"](Settings(method="standard"))
    assert step_macs(method, model, torch.zeros(1, 2, 8, 8)) == 2 * conv + 3 * linear
    assert all(each.grad is None for each in model.parameters())


def test_a_step_counts_the_same_without_numbers_as_with_them():
    """The count runs on the meta device, where norms and activations are given their shapes only."""
    norms = nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), *norms, nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5))
    method = METHODS["standard"](Settings(method="standard"))
    with FlopCounterMode(display=False) as counter:
        method.step(model, torch.randn(2, 2, 8, 8), torch.tensor([0, 1]), progress=0.5, measure=False).loss.backward()
    assert step_macs(method, model, torch.zeros(1, 2, 8, 8)) == counter.get_total_flops() // 4


@pytest.mark.parametrize(("data", "last"), [("segmentation:PATH", []), ("labels:FILE.csv", [nn.Flatten()])])
def test_a_step_costs_the_same_whatever_the_task(data: str, last: list[nn.Module]):
    model = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *last)
    method = METHODS["standard"](Settings(method="standard", data=data))
    assert step_macs(method, model, torch.zeros(1, 2, 8, 8)) == 2 * 4 * 2 * 9 * 64


def test_the_costs_of_the_methods_relative_to_each_other():
    base, small = cost_of("standard"), cost_of("scratch")
    assert cost_of("adjoint") == cost_of("adjoint+") == cost_of("slimmable") == cost_of("mutual") == base + small
    assert cost_of("dropout") == base
    job = job_of("distillation")
    assert cost_of("distillation") == small + measure_cost(job.model, job.example).macs


def test_several_processes_share_the_cost_of_a_training():
    costs = [training_macs(make_job(TINY, processes)) for processes in (1, 2)]
    assert costs[0] is not None
    assert costs[0] == costs[1]


def test_scratch_compute_trains_for_what_the_base_would_cost():
    job = job_of("scratch-compute", epochs=10, warmup_epochs=1.0)
    base = job_of("standard", epochs=10)
    macs = [measure_cost(each, job.example).macs for each in (job.model, job.network)]
    assert job.settings.epochs == round(10 * macs[0] / macs[1]) > 100
    assert job.settings.warmup_epochs == pytest.approx(job.settings.epochs / 10)
    costs = [each.settings.epochs * step_macs(each.method, each.network, each.example) for each in (job, base)]
    assert costs[0] == pytest.approx(costs[1], rel=0.03)
