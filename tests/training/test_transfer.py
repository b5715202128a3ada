"""Fine-tuning from trained weights: what the small network inherits, and that the base is unaffected."""

from __future__ import annotations

import copy
import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedError, adjoin, adjoin_pretrained, load
from adjoined.head import fit_head
from adjoined.inherit import inherit, inherit_all
from adjoined.methods import METHODS
from adjoined.network import AdjoinedNetwork
from adjoined.settings import Settings
from adjoined.slicing import make_plan
from adjoined.training import train
from adjoined.training.job import make_job, prepare
from adjoined.transfer import ENOUGH_TO_SEARCH
from tiny_runs import NORMED, QUIET, TINY, with_code

TRANSFER = replace(TINY, method="transfer", alpha=2, round_to=1)


class Redundant(nn.Module):
    """Half of its channels are scaled copies of others: half the width is enough."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, (3, 5), stride=2, padding=(1, 2), dilation=1, groups=groups)
        self.c = nn.Conv2d(16, 8, 1, padding="same")
        self.head = nn.Linear(8, 4)
        with torch.no_grad():
            self.a.weight[8:] = 0.5 * self.a.weight[:8]
            self.b.weight[8:] = 2 * self.b.weight[:8]
            self.c.weight[4:] = -self.c.weight[:4]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.c(self.b(self.norm(self.a(x)))).mean((2, 3)))


def of_base_and_small(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the outputs of a model, of its slice at half width, and of the slice that has inherited from it."""
    model(x)  # the norm gets statistics of its own
    model.eval()
    plan = make_plan(model, x[:1], alpha=2, round_to=1)
    sliced, fitted = plan.apply(model), plan.apply(model)
    inherit(model, fitted, plan, x)
    assert not fitted.training
    return model(x), sliced(x), fitted(x)


def test_where_half_the_channels_suffice_the_small_network_gives_what_the_base_gives():
    torch.manual_seed(0)
    base, sliced, fitted = of_base_and_small(Redundant(), torch.randn(64, 3, 10, 10))
    assert (sliced - base).abs().mean() > 10 * (fitted - base).abs().mean()
    assert (fitted - base).abs().mean() < 0.05 * base.abs().mean()


def test_depthwise_layers_are_fitted_channel_by_channel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    base, sliced, fitted = of_base_and_small(model, torch.randn(64, 3, 8, 8))
    assert (fitted - base).square().mean() < 0.5 * (sliced - base).square().mean()


def test_at_full_width_nothing_changes():
    torch.manual_seed(0)
    model, x = Redundant(), torch.randn(32, 3, 10, 10)
    model.norm.momentum = 1.0
    model(x)
    model.eval()
    plan = make_plan(model, x[:1], alpha=1)
    small = plan.apply(model)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    assert inherit(model, small, plan, x) == 4
    assert torch.allclose(small(x), model(x), atol=1e-2 * model(x).abs().max().item())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_a_layer_with_more_inputs_than_the_images_can_tell_stays_a_slice():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4)).eval()
    x = torch.randn(200, 3, 8, 8)
    plan = make_plan(model, x[:1], alpha=2, round_to=1)
    head = plan.apply(model).state_dict()["3.weight"]
    for count, fitted in ((63, 1), (64, 2)):  # the small head has 32 inputs, and one row of them for each image
        small = plan.apply(model)
        assert inherit(model, small, plan, x[:count]) == fitted
        assert torch.equal(small.state_dict()["3.weight"], head) == (fitted == 1)


@pytest.mark.parametrize(("count", "fitted"), [(63, 2), (64, 3)])
def test_a_norm_makes_up_for_what_narrow_layers_do_not_explain(count: int, fitted: int):
    """Otherwise the signal fades from layer to layer, and the small network learns slowly."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(64, 8, 1, bias=False), nn.BatchNorm2d(8, momentum=1.0), nn.ReLU())
    model = nn.Sequential(nn.Conv2d(3, 64, 1), nn.MaxPool2d(8), *model, nn.Conv2d(8, 4, 1))
    x = torch.randn(count, 3, 8, 8)
    model(x)
    model.eval()
    plan = make_plan(model, x[:1], alpha=2, round_to=1)  # the second layer has 32 inputs, and a row of them per image
    small: Any = plan.apply(model)
    assert inherit(model, small, plan, x) == fitted  # where the second layer is not fitted, it stays a slice
    variance, mean = torch.var_mean(small[:4](x), (0, 2, 3))
    torch.testing.assert_close(mean, torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(variance, torch.ones(4), rtol=0, atol=1e-3)


def test_only_small_networks_with_their_own_weights_inherit_in_a_joint_network():
    torch.manual_seed(0)
    model, x = Redundant().eval(), torch.randn(64, 3, 10, 10)
    before = copy.deepcopy(model.state_dict())
    net = adjoin(model, x[:1], alpha=(2, 4), round_to=1, private=("*",)).eval()
    inherit_all(net, x)
    p, *family = net(x)
    assert all(torch.equal(each, before[name]) for name, each in net.base.state_dict().items())
    assert (family[0] - p).abs().mean() < 0.05 * p.abs().mean() < (family[1] - p).abs().mean()
    with pytest.raises(AdjoinedError, match=r"a\.weight: the small network shares weights"):
        inherit_all(adjoin(model, x[:1], alpha=2, round_to=1), x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.full((16, 3, 8, 8), torch.nan), r"0\.weight: .*not finite on these images"),
        (torch.randn(1, 3, 8, 8), r"images: .*one value per channel.*two images or more, got an input \(1, 8, 1, 1\)"),
        (torch.zeros(16, 3, 8, 8, dtype=torch.uint8), r"does not run .*expected float32"),
    ],
)
def test_images_that_would_leave_weights_or_statistics_not_finite_are_refused(x: Tensor, message: str):
    pooled = nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16, 4)
    net = adjoin(nn.Sequential(*pooled), torch.zeros(1, 3, 8, 8), alpha=2, private=("*",))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(AdjoinedError, match=message):
        inherit_all(net, x)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())


def test_a_trained_head_stays_and_a_new_one_is_fitted():
    torch.manual_seed(0)
    x = torch.randn(200, 1, 4, 4)
    y = (x[:, 0, 0, 0] > 0).long() + 2 * (x[:, 0, 1, 1] > 0).long()
    model: Any = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    assert fit_head(model, x, y)
    assert (model(x).argmax(1) == y).float().mean() > 0.9
    with torch.no_grad():  # what generalises better than a fit of 100 images
        model[1].weight.copy_(1000 * torch.eye(16)[[0, 0, 0, 0]])
        model[1].weight[:, 0] = torch.tensor([-50.0, 50.0, -50.0, 50.0])
        model[1].weight[:, 1:] = 0
        model[1].weight[:, 5] = torch.tensor([-50.0, -50.0, 50.0, 50.0])
    kept = model[1].weight.clone()
    assert not fit_head(model, x, y)
    assert torch.equal(model[1].weight, kept)


def test_channels_are_ordered_by_what_the_loss_changes_without_them():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(1, 6, 1), nn.Flatten(), nn.Linear(6, 3))
    x = torch.randn(40, 1, 1, 1)
    y = torch.randint(3, (40,))
    with pytest.raises(AdjoinedError, match="no gradients"):
        adjoin(model, x[:1], alpha=2, round_to=1, order="taylor")
    nn.functional.cross_entropy(model(x), y).backward()
    conv, head = model[0], model[2]
    exact = [
        (conv.weight.grad[c] * conv.weight[c]).sum().abs()
        + (conv.bias.grad[c] * conv.bias[c]).abs()
        + (head.weight.grad[:, c] * head.weight[:, c]).sum().abs()
        for c in range(6)
    ]
    best = [conv.weight[c].item() for c in sorted(range(6), key=lambda c: -exact[c])]
    logits = model(x)
    net = adjoin(model, x[:1], alpha=2, round_to=1, order="taylor")
    assert [each.item() for each in model[0].weight] == best  # the same object as net.base
    assert torch.allclose(net.base(x), logits, atol=1e-6)


def test_the_small_network_inherits_the_channels_that_matter():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 1), nn.ReLU(), nn.Conv2d(16, 4, 1)
    model: Any = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        model[2].weight[:, :8] = 0  # the first eight channels do nothing
    x, y = torch.randn(64, 3, 8, 8), torch.arange(64) % 4
    plan = make_plan(model, x[:1], alpha=2, round_to=1)
    net = adjoin_pretrained(model, x, y, plan=plan).eval()
    p, q = net(x)
    torch.testing.assert_close(q, p, atol=1e-3, rtol=0)
    with pytest.raises(AdjoinedError, match="plan replaces these settings"):
        adjoin_pretrained(model, x, y, plan=plan, alpha=2)
    first = adjoin(model, x[:1], plan=plan, private=("*",)).eval()
    inherit_all(first, x)
    assert (first(x)[1] - p).abs().mean() > 100 * (q - p).abs().mean()


class Scaled(nn.Module):
    """Scales its channels by numbers that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 1), nn.Linear(16, 4)
        self.register_buffer("scale", torch.arange(16.0)[:, None, None] / 4, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.scale * self.conv(x).relu()).mean((2, 3)))


def test_what_a_small_network_inherits_is_all_in_its_checkpoint():
    torch.manual_seed(0)
    model, x = Scaled(), torch.randn(64, 3, 8, 8)
    plan, again = make_plan(model, x[:1], alpha=2, round_to=1), copy.deepcopy(model)
    net = adjoin_pretrained(model, x, torch.arange(64) % 4, plan=plan)
    resumed = adjoin(again, x[:1], plan=plan, private=("*",))
    resumed.load_state_dict(net.state_dict())
    for before, after in zip(net(x), resumed(x), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_base_starts_as_it_would_alone():
    job = make_job(TRANSFER)
    network = job.network
    assert isinstance(network, AdjoinedNetwork)
    before = copy.deepcopy(network.state_dict())
    prepare(job, torch.device("cpu"))
    same = {name for name, each in network.state_dict().items() if each.equal(before[name])}
    assert same >= {name for name in before if name.startswith("base.")}
    assert "smalls.0.conv1.weight" in before.keys() - same
    assert all(each.grad is None for each in network.base.parameters())


@pytest.mark.parametrize("settings", [{}, {"grad_clip": 0.1, "ema": 0.9, "optimizer": "adamw", "layer_decay": 0.75}])
def test_the_base_ends_as_it_would_alone(tmp_path: Path, settings: dict[str, Any]):
    own = with_code(tmp_path, NORMED)
    transfer = replace(TRANSFER, model=own.model, model_options={}, **settings)
    beside = train(transfer, tmp_path / "beside", console=QUIET)
    alone = train(transfer.for_method("standard"), tmp_path / "alone", console=QUIET)
    states = [load(each.folder, "base", model=own.model).state_dict() for each in (beside, alone)]
    assert states[0].keys() == states[1].keys()
    assert all(each.equal(states[1][name]) for name, each in states[0].items())


def test_the_base_is_trained_as_it_would_be_alone():
    job = make_job(TRANSFER)
    network = job.network
    assert isinstance(network, AdjoinedNetwork)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(10, (16,))
    job.method.step(network, x, y, progress=0.5, measure=False).loss.backward()
    beside = {name: each.grad.clone() for name, each in network.base.named_parameters() if each.grad is not None}
    network.zero_grad()
    nn.functional.cross_entropy(network.base(x), y).backward()
    assert beside.keys() == {name for name, _ in network.base.named_parameters()}
    assert all(torch.equal(each.grad, beside[name]) for name, each in network.base.named_parameters())  # pyright: ignore
    shapes = {name: tuple(each.shape) for name, each in network.extract().named_parameters()}
    assert {name: tuple(each.shape) for name, each in network.smalls[0].named_parameters()} == shapes


@pytest.mark.slow
def test_a_small_network_that_inherits_is_ahead_before_its_first_step(tmp_path):
    trained = train(Settings(method="standard", epochs=6, accelerator="cpu"), tmp_path / "base", console=QUIET)
    settings = Settings(method="transfer", alpha=2, accelerator="cpu")
    job = make_job(settings)
    network = job.network
    assert isinstance(network, AdjoinedNetwork)
    network.base.load_state_dict(load(trained.folder, "base").state_dict())
    plan = network.plan

    def right(module: nn.Module) -> float:
        pairs = [(module.eval()(x).argmax(1) == y).float() for x, y in job.images.val_loader()]
        return float(torch.cat(pairs).mean())

    sliced = right(plan.apply(network.base))
    prepare(job, torch.device("cpu"))
    assert right(network.extract()) > sliced + 0.2
    assert right(network.base) > 0.9


def test_a_run_ends_with_networks_of_both_sizes(tmp_path):
    result = train(TRANSFER, tmp_path / "run", console=QUIET)
    assert [each.name for each in result.networks] == ["base", "small"]
    assert result.networks[1].parameters < result.networks[0].parameters / 3
    assert METHODS["transfer"].samples > 0
    rates = [float(row["lr"]) for row in csv.DictReader((tmp_path / "run/metrics.csv").read_text().splitlines())]
    assert max(rates) == pytest.approx(TRANSFER.lr)  # the small network's is twice that


def test_a_pretrained_network_is_joined_in_one_call():
    torch.manual_seed(0)
    model, x = Redundant(), torch.randn(ENOUGH_TO_SEARCH, 3, 10, 10)
    y = torch.arange(len(x)) % 4
    model.norm.eval()
    model.b.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    net = adjoin_pretrained(model, x, y, alpha=2, round_to=1)
    assert net.base is model
    assert model.training
    assert not model.norm.training
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["b.weight", "b.bias"]
    assert all(each.grad is None for each in net.parameters())
    assert all(each.equal(before[name]) for name, each in model.state_dict().items())
    uniform = make_plan(model, x[:1], alpha=2, round_to=1)
    assert net.plan.cost is not None
    assert uniform.cost is not None
    assert net.plan.cost.macs <= uniform.cost.macs
    p, q = adjoin_pretrained(model, x, y, plan=uniform).eval()(x)
    assert (q - p).abs().mean() < 0.1 * p.abs().mean()


def test_widths_are_searched_with_enough_images_and_the_search_is_shown(capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    x, y = torch.randn(ENOUGH_TO_SEARCH, 3, 10, 10), torch.arange(ENOUGH_TO_SEARCH) % 4
    adjoin_pretrained(Redundant(), x, y, alpha=2, round_to=1)
    assert "trying each channel group narrow: 0 %" in capsys.readouterr().err
    told: list[str] = []
    within = adjoin_pretrained(
        Redundant(), x, y, budget="3 kB", round_to=1, progress=lambda what, share: told.append(what)
    )
    assert within.plan.cost is not None
    assert within.plan.cost.bytes <= 3_000
    assert told
    few = adjoin_pretrained(Redundant(), x[1:], y[1:], alpha=2, round_to=1)
    assert few.plan.widths == {}
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("x", "y", "what"),
    [
        (torch.zeros(5, 3, 8, 8), torch.zeros(5).long(), r"x: .*12 or more, got torch.float32 \(5, 3, 8, 8\)"),
        (torch.zeros(20, 3, 8, 8).byte(), torch.zeros(20).long(), r"x: .*floating type"),
        (
            torch.full((20, 3, 8, 8), torch.nan),
            torch.zeros(20).long(),
            r"x: the images have values that are not finite",
        ),
        (torch.zeros(20, 3, 8, 8), torch.zeros(20), r"y: .*expected int64 \(20,\)"),
        (torch.zeros(20, 3, 8, 8), torch.arange(20) % 5, r"y: .*from 0 to 3, got 0 to 4"),
        (torch.zeros(20, 1, 8, 8), torch.zeros(20).long(), r"does not run .*expected float32 \(N, 3, H, W\)"),
        (torch.zeros(20, 3, 8, 8).double(), torch.zeros(20).long(), r"does not run .*got float64"),
    ],
)
def test_images_and_classes_that_do_not_fit_are_refused(x: Tensor, y: Tensor, what: str):
    with pytest.raises(AdjoinedError, match=what):
        adjoin_pretrained(Redundant(), x, y)
