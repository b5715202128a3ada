"""Quantisation-aware training: fake-quantised layers narrow, whichever comes first, `prepare_qat` or `adjoin`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.nn.quantized import FloatFunctional
from torch.ao.quantization import quantize_fx

from adjoined import adjoint_loss
from unchecked import adjoin
from zoo import conv, images, parameters, seeded

X, Y = images(4, 3, 8, 8), torch.arange(4)
BACKEND = "x86"

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao:DeprecationWarning", "ignore::UserWarning")


def network() -> nn.Sequential:
    layers = [conv(3, 32, bias=False), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 64), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))


def with_stubs(*, fused: bool = True) -> nn.Sequential:
    """Return the network between the stubs that say where integers begin and end."""
    inside = network().train()
    if fused:
        inside = quantization.fuse_modules_qat(inside, [["0", "1", "2"], ["3", "4"]])
    model = nn.Sequential(quantization.QuantStub(), inside, quantization.DeQuantStub()).train()
    model.qconfig = quantization.get_default_qat_qconfig(BACKEND)
    return model


class Skip(nn.Module):
    """A residual sum by the module that stands in for one of integers, as in torchvision's quantizable networks."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.add = conv(32, 32), FloatFunctional()

    def forward(self, x: Tensor) -> Tensor:
        return self.add.add(self.one(x), x)


def with_skip() -> nn.Module:
    layers = quantization.QuantStub(), conv(3, 32), Skip(), conv(32, 48), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(48, 4), quantization.DeQuantStub()).train()
    model.qconfig = quantization.get_default_qat_qconfig(BACKEND)
    return model


def prepared_with_skip() -> nn.Module:
    return quantization.prepare_qat(with_skip())


def prepared() -> nn.Module:
    return quantization.prepare_qat(with_stubs())


def prepared_and_trained() -> nn.Module:
    model = prepared()
    model(X)  # the ranges have one entry for each channel now
    return model


def prepared_with_observers() -> nn.Module:
    """Return it with observers and fake quantisation as separate operators, which resize their buffers."""
    fake, observers = quantization.FakeQuantize, quantization
    model = with_stubs()
    model.qconfig = quantization.QConfig(
        activation=fake.with_args(observer=observers.MovingAverageMinMaxObserver, quant_min=0, quant_max=255),
        weight=fake.with_args(
            observer=observers.MovingAveragePerChannelMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_channel_symmetric,
        ),
    )
    return quantization.prepare_qat(model)


def prepared_as_graph() -> nn.Module:
    settings = quantization.get_default_qat_qconfig_mapping(BACKEND)
    return quantize_fx.prepare_qat_fx(network().train(), settings, (X,))


def observed_as_graph() -> nn.Module:
    settings = quantization.get_default_qconfig_mapping(BACKEND)
    return quantize_fx.prepare_fx(network().eval(), settings, (X,))


PREPARED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "fused": (prepared, quantization.convert),
    "trained": (prepared_and_trained, quantization.convert),
    "skip": (prepared_with_skip, quantization.convert),
    "observers": (prepared_with_observers, quantization.convert),
    "graph": (prepared_as_graph, quantize_fx.convert_fx),
    "graph of observers": (observed_as_graph, quantize_fx.convert_fx),
}


def trains_and_converts(net: nn.Module, convert: Callable[[nn.Module], nn.Module]) -> None:
    """Check that one step trains both networks, and that the small one becomes a network of integers."""
    adjoint_loss(*net.train()(X), Y, progress=1.0).backward()
    assert all(p.grad is not None for p in net.base.parameters() if p.requires_grad)
    small = net.eval().extract()
    assert parameters(small) < 0.32 * parameters(net.base)
    with torch.no_grad():
        expected = small(X)
        assert torch.equal(net(X)[1], expected)
        assert torch.allclose(convert(small)(X), expected, atol=0.05)


@pytest.mark.parametrize("kind", PREPARED)
def test_a_prepared_model_narrows(kind: str):
    make, convert = PREPARED[kind]
    net = adjoin(seeded(make), X, alpha=2, round_to=1)
    assert {group.reason for group in net.plan.groups} == {"", "model output"}
    trains_and_converts(net, convert)


@pytest.mark.parametrize("make", [lambda: with_stubs(fused=False), with_skip], ids=["plain", "skip"])
def test_a_joint_network_is_prepared(make: Callable[[], nn.Module]):
    net = adjoin(seeded(make), X, alpha=2, round_to=1).train()
    trains_and_converts(quantization.prepare_qat(net), quantization.convert)
