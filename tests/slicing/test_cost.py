"""Parameters and MACs: against published figures, the paper's count, and arithmetic by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined.models import build
from adjoined.slicing import Cost, cost_by_module, measure_cost
from unchecked import adjoin, make_plan
from zoo import Residual, conv, parameters, torchvision_cnns, torchvision_model

IMAGE = torch.zeros(1, 3, 224, 224, device="meta")
PAPER = {"alpha": 4, "round_to": 1, "keep": ("conv1", "bn1", "layer1")}
"""What the paper does to ResNet-50: the stem and the first stage stay as they are."""


def on_meta(name: str) -> nn.Module:
    """A torchvision classifier without storage: counting needs shapes only."""
    with torch.device("meta"):
        return torchvision_model(name)


@pytest.mark.parametrize(
    ("name", "millions", "giga_macs"),
    [
        ("resnet18", 11.69, 1.81),
        ("resnet50", 25.56, 4.09),
        ("mobilenet_v2", 3.50, 0.30),
        ("vgg16_bn", 138.4, 15.5),
    ],
)
def test_published_figures(name: str, millions: float, giga_macs: float):
    model = on_meta(name)
    cost = measure_cost(model, IMAGE)
    assert cost.parameters == parameters(model)
    assert cost.parameters / 1e6 == pytest.approx(millions, abs=0.05 if millions > 100 else 0.005)
    assert cost.macs / 1e9 == pytest.approx(giga_macs, rel=1e-2)
    last = parameters([module for module in model.modules() if isinstance(module, nn.Linear)][-1])
    assert cost.parameters_without_last == cost.parameters - last


@pytest.mark.slow
def test_published_figures_of_all_torchvision_networks():
    """Parameters to the last one, MACs to the last digit that torchvision publishes."""
    from torchvision.models import get_model_weights

    checked = 0
    for name in torchvision_cnns():
        weights = next(iter(get_model_weights(name)))
        size = weights.transforms().crop_size[-1]
        if name.startswith("regnet"):
            continue  # their constructor asks for values, which the meta device does not have
        with torch.device("meta"):
            cost = measure_cost(build(f"torchvision:{name}", num_classes=1000), torch.zeros(1, 3, size, size))
        if name != "inception_v3":  # published with its auxiliary head
            assert cost.parameters == weights.meta["num_params"], name
        assert abs(cost.macs - 1e9 * weights.meta["_ops"]) <= 0.5e6 + 1, name
        checked += 1
    assert checked > 45


def deep_stem() -> nn.Sequential:
    """The stem of the paper's ResNet-50: three convolutions of 32, 64 and 64 channels."""
    widths = (3, 32, 64, 64)
    layers: list[nn.Module] = []
    for number in range(3):
        layers += [
            nn.Conv2d(widths[number], widths[number + 1], 3, stride=2 if number == 0 else 1, padding=1, bias=False),
            nn.BatchNorm2d(widths[number + 1]),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers[:-2])  # the norm and the ReLU after the last are the model's own


def test_the_paper_s_small_resnet50():
    """1.8 M parameters and 1.6 G MACs, the paper says; its stem has three convolutions."""
    with torch.device("meta"):
        model = torchvision_model("resnet50")
        model.conv1 = deep_stem()
    small = make_plan(model, IMAGE, **PAPER).apply(model)
    cost = measure_cost(small, IMAGE)
    assert 1.76e6 <= cost.parameters_without_last <= 1.78e6
    assert cost.macs / 1e9 == pytest.approx(1.62, abs=0.01)
    ratio = measure_cost(model, IMAGE).parameters_without_last / cost.parameters_without_last
    assert ratio == pytest.approx(13.3, abs=0.05)


def test_the_paper_s_rule_on_torchvision_s_resnet50():
    model = on_meta("resnet50")
    small = make_plan(model, IMAGE, **PAPER).apply(model)
    cost = measure_cost(small, IMAGE)
    ratio = measure_cost(model, IMAGE).parameters_without_last / cost.parameters_without_last
    assert ratio == pytest.approx(13.66, abs=0.01)
    assert cost.macs / 1e9 == pytest.approx(1.03, abs=0.01)
    for name in ("conv1", "bn1", "layer1"):
        assert parameters(small.get_submodule(name)) == parameters(model.get_submodule(name))


def test_narrowing_everything_costs_less_than_the_paper_s_network():
    model = on_meta("resnet50")
    base, small = measure_cost(model, IMAGE), measure_cost(make_plan(model, IMAGE, round_to=1).apply(model), IMAGE)
    assert base.parameters_without_last / small.parameters_without_last == pytest.approx(15.9, abs=0.1)
    assert base.macs / small.macs == pytest.approx(14.7, abs=0.1)


# ---- by hand -------------------------------------------------------------------------------------------------------


def test_every_kind_of_layer_by_hand():
    layers = {
        "plain": conv(3, 8),  # 3*8*9 + 8; at 6 x 6 positions
        "depthwise": conv(8, 8, groups=8, bias=False),  # 8*9
        "grouped": conv(8, 16, groups=2, bias=False),  # 16*4*9
        "strided": nn.Conv2d(16, 4, 3, stride=2, padding=1, bias=False),  # 4*16*9; at 3 x 3 positions
        "up": nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),  # 4*2*4; every one of 3 x 3 inputs times its weights
        "norm": nn.BatchNorm2d(2),
        "flat": nn.Flatten(),
        "inner": nn.Linear(72, 7),
        "outer": nn.Linear(7, 5, bias=False),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    by_hand = {
        "plain": (224, 216 * 36),
        "depthwise": (72, 72 * 36),
        "grouped": (576, 576 * 36),
        "strided": (576, 576 * 9),
        "up": (32, 32 * 9),
        "norm": (4, 0),
        "flat": (0, 0),
        "inner": (72 * 7 + 7, 72 * 7),
        "outer": (35, 35),
    }
    costs = cost_by_module(model, torch.zeros(1, 3, 6, 6))
    for name, (count, macs) in by_hand.items():
        assert costs[name] == Cost(count, 0 if name == "outer" else count, macs), name
    total = sum(count for count, _ in by_hand.values())
    assert costs[""] == Cost(total, total - 35, sum(macs for _, macs in by_hand.values()))


def test_batch_size_does_not_matter():
    one, many = (measure_cost(Residual(), torch.zeros(n, 3, 8, 8)) for n in (1, 5))
    assert one == many


def test_module_s_cost_includes_its_children_s():
    model = nn.Sequential(nn.Sequential(conv(3, 4), conv(4, 4)), nn.Flatten(), nn.Linear(4 * 64, 5))
    costs = cost_by_module(model, torch.zeros(1, 3, 8, 8))
    assert set(costs) == {"", "0", "0.0", "0.1", "1", "2"}
    assert costs["0"].macs == costs["0.0"].macs + costs["0.1"].macs
    assert costs[""].macs == costs["0"].macs + costs["2"].macs
    assert costs["0"].parameters == costs["0.0"].parameters + costs["0.1"].parameters


class Twice(nn.Module):
    """One convolution called twice, and two linear layers on one weight; the last to run is not the last in name."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 5)
        self.conv, self.stem = conv(4, 4, bias=False), conv(3, 4, bias=False)
        self.one, self.two = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(self.stem(x))).mean((2, 3))
        return self.last(self.two(self.one(x)))


def test_shared_parameters_count_once_and_every_call_counts():
    costs = cost_by_module(Twice(), torch.zeros(1, 3, 8, 8))
    assert costs["conv"].macs == 2 * 4 * 4 * 9 * 64
    assert costs[""].parameters == 25 + 144 + 108 + 16
    assert costs[""].parameters_without_last == 144 + 108 + 16
    assert costs["last"].parameters_without_last == 0


class Chosen(nn.Module):
    """An LSTM in a network that reads a value: it runs on its own device, where torch would run it as one operator."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.steps(x)[0]
        return self.head(y if float(x.sum()) < 1 else -y)


def test_an_lstm_counts_where_the_network_reads_a_value():
    assert measure_cost(Chosen(), torch.zeros(1, 5, 8)).macs == 5 * (4 * 16 * (8 + 16) + 16 * 3)


def test_network_without_a_linear_layer_counts_all():
    cost = measure_cost(nn.Sequential(conv(3, 8), nn.AdaptiveAvgPool2d(1)), torch.zeros(1, 3, 8, 8))
    assert cost.parameters == cost.parameters_without_last == 224


def test_measuring_changes_nothing():
    model = Residual().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    measure_cost(model, torch.zeros(2, 3, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)


# ---- compress: alpha for a wanted ratio ----------------------------------------------------------------------------


def check_compress(model: nn.Module, size: int, compress: float, round_to: int) -> None:
    x = torch.zeros(1, 3, size, size, device=next(model.parameters()).device)

    def reached(**settings: float) -> float:
        small = make_plan(model, x, round_to=round_to, **settings).apply(model)  # pyright: ignore[reportArgumentType]
        return measure_cost(model, x).parameters_without_last / measure_cost(small, x).parameters_without_last

    plan = make_plan(model, x, compress=compress, round_to=round_to)
    assert reached(alpha=plan.alpha) >= compress
    for share in (0.7, 0.9, 0.97, 0.995):
        assert reached(alpha=max(1.0, plan.alpha * share)) < compress


@pytest.mark.slow
def test_compress_finds_the_smallest_alpha_for_resnet18():
    check_compress(on_meta("resnet18"), 64, compress=13.7, round_to=1)


@pytest.mark.parametrize(("compress", "round_to"), [(13.7, 1), (13.7, 8), (3, 8), (1.5, 1)])
def test_compress_finds_the_smallest_alpha_that_suffices(compress: float, round_to: int):
    check_compress(Residual(width=192), 8, compress, round_to)


def test_compress_reaches_adjoin_and_respects_keep():
    model = Residual(width=64)
    x = torch.zeros(1, 3, 8, 8)
    net = adjoin(model, x, compress=5, round_to=1, keep=["stem"])
    small = net.extract()
    base = measure_cost(model, x).parameters_without_last
    assert base / measure_cost(small, x).parameters_without_last >= 5
    assert small.get_submodule("stem").weight.shape == (64, 3, 3, 3)
    assert net.plan.alpha > 1


class _HandsItsParameterOn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places, self.body = nn.Parameter(torch.zeros(1, 3, 8, 8)), nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return x.mean() + self.body(self.places[:, :, :4])


def test_a_parameter_that_is_handed_to_a_module_as_its_input_is_counted_too():
    model = _HandsItsParameterOn()
    assert measure_cost(model, torch.zeros(1, 3, 8, 8)).macs == 4 * 3 * 32
    assert model.places.requires_grad


class _Listed(nn.Module):
    """Calls layers of a list that is never called itself, and one of them from outside of its block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU())])

    def forward(self, x: Any) -> Any:
        block: Any = self.blocks[1]
        return block[0](block(self.blocks[0](x)))


def test_layers_of_a_list_count_for_the_list():
    costs = cost_by_module(_Listed(), torch.zeros(1, 3, 5, 5))
    assert {name: cost.macs for name, cost in costs.items()} == {
        "": 25 * (12 + 16 + 16),
        "blocks": 25 * (12 + 16 + 16),
        "blocks.0": 25 * 12,
        "blocks.1": 25 * (16 + 16),
        "blocks.1.0": 25 * (16 + 16),
        "blocks.1.1": 0,
    }
