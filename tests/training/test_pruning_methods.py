"""Methods that prune: how much is left, which weights, and that removed weights stay zero."""

import sys
from typing import Any

import pytest
import torch
from test_methods import X, Y, job_of
from torch import Tensor, nn

from adjoined.errors import AdjoinedError
from adjoined.methods.finetune import Pruned
from adjoined.methods.weights import smallest
from adjoined.slicing import SlicePlan, make_plan, measure_cost
from adjoined.training import train
from adjoined.training.checkpoints import read_checkpoint
from adjoined.training.job import Job, make_job
from adjoined.training.optimizers import make_optimizer
from tiny_runs import QUIET, TINY


def trained(seed: int, width: float = 1) -> nn.Module:
    """A model whose norms and filters differ, as after a training."""
    torch.manual_seed(seed)
    model = make_job(TINY.for_method("standard", model_options={"width": width})).model
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.5 * each.std().nan_to_num(1.0).clamp(min=0.1) * torch.randn_like(each))
    return model


def pruned(model: nn.Module, **changes: Any) -> tuple[Job, SlicePlan]:
    settings = TINY.for_method("filter-pruning", model_options={"width": 1}, **changes)
    job = make_job(settings, earlier={"base": model})
    plan = job.built.plans["small"]
    assert plan is not None
    return job, plan


def budget(job: Job, alpha: float, what: str) -> int:
    plan = make_plan(job.model, job.example, alpha=alpha)
    return getattr(measure_cost(plan.apply(job.model), job.example), what)


@pytest.mark.parametrize(("what", "alpha"), [("parameters", 4.0), pytest.param("macs", 2.0, marks=pytest.mark.slow)])
def test_what_is_left_is_within_the_budget_and_near_it(what, alpha):
    model = trained(1)
    job, plan = pruned(model, prune_to=what, alpha=alpha)
    left = getattr(measure_cost(job.network, job.example), what)
    allowed = budget(job, alpha, what)
    assert 0.7 * allowed <= left <= allowed  # widths are multiples of 8
    assert measure_cost(plan.apply(model), job.example) == measure_cost(job.network, job.example)
    for tensor, kept in zip(plan.apply(model).state_dict().values(), job.network.state_dict().values(), strict=True):
        assert torch.equal(tensor, kept)
    assert all(width % 8 == 0 for width in (m.out_channels for m in _convolutions(job.network)))


def test_the_filters_with_the_smallest_l1_norm_go():
    model = trained(2)
    _, plan = pruned(model)
    narrowed = 0
    for name, module in model.named_modules():
        index = plan.indices(f"{name}.weight")[0] if isinstance(module, nn.Conv2d) and name.endswith("conv1") else None
        if index is not None and "layer" in name:  # inside a block: nothing else decides about these channels
            norms = module.get_parameter("weight").abs().sum(dim=(1, 2, 3))
            kept = sorted(norms.topk(len(index)).indices.tolist())
            assert index.tolist() == kept
            narrowed += 1
    assert narrowed >= 3


def test_what_is_kept_stays_at_full_width():
    job, plan = pruned(trained(4), keep=["conv1", "bn1", "layer1*"], alpha=2.0)
    assert not [name for name in plan.tensors if name.startswith(("conv1", "bn1")) or "layer1.0.conv1" in name]
    assert plan.tensors
    assert job.network.training or job.network(X).shape == (6, 10)


def test_a_budget_that_cannot_be_met_is_refused(monkeypatch):
    monkeypatch.setattr("adjoined.methods.channels.HALVINGS", 1)  # half of the channels, and no more
    with pytest.raises(AdjoinedError, match="cannot be pruned that far"):
        pruned(trained(5), alpha=4.0)


def test_without_torch_pruning_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    monkeypatch.setattr("adjoined.methods.base.find_spec", lambda library: None)
    with pytest.raises(AdjoinedError, match=r"torch_pruning is not installed.*pip install 'adjoined\[pruning\]'"):
        job_of("filter-pruning")


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [each for each in network.modules() if isinstance(each, nn.Conv2d)]


# ---- single weights --------------------------------------------------------------------------------------------------


def zeros(network: nn.Module) -> tuple[int, int]:
    """Return how many weights of convolutions and linear layers are zero, and how many there are."""
    weights = [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)


def test_the_smallest_weights_of_all_layers_go():
    model = trained(6)
    weights = torch.cat([m.weight.flatten().abs() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))])
    masks = smallest(model, 0.9)
    assert zeros(model)[0] == 0
    kept = torch.cat([mask.flatten() for mask in masks.values()]).bool()
    assert kept.sum() == round(0.1 * len(weights))
    assert weights[kept].min() >= weights[~kept].max()


@pytest.mark.parametrize("change", [{"sparsity": 0.8}, {}])
def test_weight_pruning_leaves_as_many_parameters_as_asked_for(change):
    job = make_job(
        TINY.for_method("weight-pruning", model_options={"width": 1}, **change), earlier={"base": trained(7)}
    )
    finished = job.method.finish(job.built)["sparse"]
    assert finished.sparse
    gone, total = zeros(finished.module)
    if change:
        assert gone == round(0.8 * total)
    else:
        left = sum(each.numel() for each in job.model.parameters()) - gone
        assert left == budget(job, 4.0, "parameters")


def test_what_is_zero_stays_zero_in_training():
    job = make_job(TINY.for_method("weight-pruning", sparsity=0.5), earlier={"base": make_job(TINY).model})
    before = _zeros_of(job.method.finish(job.built)["sparse"].module)
    optimizer = make_optimizer(job.settings, job.network)
    for _ in range(3):
        optimizer.zero_grad()
        job.method.step(job.network.train(), X, Y, progress=0.5, measure=False).loss.backward()
        optimizer.step()
    after = job.method.finish(job.built)["sparse"].module
    assert all(torch.equal(each, before[name]) for name, each in _zeros_of(after).items())
    assert not torch.equal(after.get_parameter("fc.weight"), make_job(TINY).model.get_parameter("fc.weight"))
    assert not [name for name, _ in after.named_parameters() if "parametrizations" in name]
    assert after.state_dict().keys() == job.model.state_dict().keys()


def _weights(network: nn.Module) -> list[Tensor]:
    return [m.weight for m in network.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def _zeros_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: each == 0 for name, each in network.named_parameters() if each.ndim > 1}


def test_a_method_that_does_not_define_prune_cannot_be_created():
    class Unsaid(Pruned):
        pass

    with pytest.raises(TypeError, match=r"abstract method '?prune"):
        Unsaid(TINY)  # pyright: ignore[reportAbstractUsage]


@pytest.mark.parametrize("method", ["filter-pruning", "weight-pruning"])
def test_fine_tuning_trains_the_norms_of_the_finished_base(method, tmp_path):
    settings = TINY.for_method(method, epochs=1)
    train(settings, tmp_path / "run", console=QUIET)
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "last.ckpt")["state_dict"]
    counts = {int(each) for name, each in state.items() if name.endswith("num_batches_tracked")}
    measured, steps = 5, 5  # a finished network's statistics are measured on the five batches of an epoch
    assert counts == {measured + steps}
