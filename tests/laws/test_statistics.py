"""Law 3: the finished networks have statistics that fit. `measure_statistics` against statistics computed by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from torch.utils.data import TensorDataset

from adjoined import AdjoinedError, AdjoinedNetwork, adjoint_loss
from pairs import FAMILY, X, joint, same
from unchecked import adjoin
from zoo import conv, images, seeded


class Slow(nn.Module):
    """Norms that follow slowly, as in pretrained networks, dropout, and an instance norm with statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = conv(3, 32, bias=False), nn.BatchNorm2d(32, momentum=0.01)
        self.body, self.own = conv(32, 48, bias=False), nn.InstanceNorm2d(48, track_running_stats=True, momentum=0.01)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head(self.drop(self.own(self.body(x)).relu().mean((2, 3))))


def trained(alpha: Any = (2, 4)) -> AdjoinedNetwork:
    """A joint network whose weights have moved much further than its statistics could follow."""
    net = adjoin(seeded(Slow), X, alpha=alpha, round_to=1).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for seed in range(3):
        p, *q = net(images(6, 3, 8, 8, seed=seed))
        adjoint_loss(p, q, torch.arange(6) % 5, progress=1.0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return net


def batches() -> Iterator[Tensor]:
    return (images(5, 3, 8, 8, seed=10 + seed) for seed in range(3))


def test_the_statistics_are_those_of_the_extracted_network():
    net = trained()
    stale = net.extract().state_dict()["norm.running_mean"].clone()
    before = copy.deepcopy(net.state_dict())
    assert net.measure_statistics(batches()) == 15
    for which in range(2):
        small = net.extract(which)
        assert isinstance(small, Slow)
        with torch.no_grad():
            seen = [small.stem(x) for x in batches()]
        torch.testing.assert_close(small.norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
        torch.testing.assert_close(small.norm.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
        with torch.no_grad():
            seen = [small.body(small.norm.train()(small.stem(x)).relu()).mean((2, 3)).mean(0) for x in batches()]
        torch.testing.assert_close(small.own.running_mean, torch.stack(seen).mean(0))
    assert not torch.allclose(net.extract().state_dict()["norm.running_mean"], stale, rtol=0.1)
    for name, tensor in net.state_dict().items():
        if name.startswith("base") or ("running" not in name and "num_batches" not in name):
            assert same(tensor, before[name]), name
    assert all(module.training for module in net.modules())
    assert {norm.momentum for norm in net.modules() if isinstance(norm, nn.BatchNorm2d)} == {0.01}


def test_it_is_what_torch_measures_for_a_network_alone():
    """A batch is what a loader returns: images first, then targets."""
    net = joint(alpha=FAMILY)
    alone = [net.extract(which).eval() for which in range(len(FAMILY))]
    loader = [(x, torch.zeros(5)) for x in batches()]
    for small in alone:
        update_bn(loader, small)
    net.measure_statistics(loader)
    for which, small in enumerate(alone):
        for name, tensor in net.extract(which).state_dict().items():
            assert same(tensor, small.state_dict()[name]), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([], "at least one image"),
        (iter(()), "at least one image"),
        ([torch.zeros(0, 3, 8, 8)], "^batch 0: .*at least one sample"),
        ([X, torch.zeros(1, 3, 1, 1)], "batch 1: .* at least two values for each channel"),
        ([X, None], "^batch 1: .*expected a tensor .* got NoneType"),
        ([X, {"x": X, "y": X}], r"run on batch 1: .*'y'.* got 'x', 'y'\).*own arguments from each batch.* \(x,\) or"),
    ],
)
def test_nothing_is_lost_where_it_fails(wrong: Any, message: str):
    net = trained()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(AdjoinedError, match=message):
        net.measure_statistics(wrong)
    assert all(same(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_an_error_of_the_model_itself_is_not_blamed_on_the_norms():
    class Checked(Slow):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] > 8:
                raise ValueError("images are too large")
            return super().forward(x)

    net = adjoin(seeded(Checked), X, alpha=2, round_to=1)
    with pytest.raises(ValueError, match=r"^images are too large$"):
        net.measure_statistics([X, images(2, 3, 9, 9)])


def test_a_network_without_statistics_uses_no_image():
    net = adjoin(nn.Sequential(conv(3, 32), nn.GroupNorm(4, 32), nn.ReLU(), conv(32, 5)), X, alpha=2)
    assert net.measure_statistics([X]) == 0


def test_keyword_arguments():
    net = joint()
    assert net.measure_statistics([{"x": X}, {"x": X}]) == 2 * len(X)


@pytest.mark.parametrize("batches", [None, X, TensorDataset(X)], ids=["nothing", "one batch", "a data set"])
def test_what_holds_no_batches_is_refused(batches: Any):
    with pytest.raises(AdjoinedError, match=r"^batches: not batches of images .*Pass a data loader"):
        joint().measure_statistics(batches)


def test_norms_that_no_longer_follow_are_measured_too():
    net = joint()
    norm = next(each for each in net.smalls.modules() if isinstance(each, nn.BatchNorm2d))
    norm.track_running_stats = False  # so Lightning's fine-tuning freezes norms, which still use their statistics
    assert norm.running_mean is not None
    before = norm.running_mean.clone()
    net.measure_statistics([X])
    assert not torch.equal(norm.running_mean, before)
    assert not norm.track_running_stats


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_statistics_that_are_not_finite_are_refused_and_the_old_ones_stay(value: float):
    net = joint()
    before = {name: each.clone() for name, each in net.named_buffers()}
    damaged = X.clone()
    damaged[0, 0, 0, 0] = value
    with pytest.raises(AdjoinedError, match=r"^batches: the measured statistics are not finite .*Look for NaN"):
        net.measure_statistics([X, damaged])
    assert all(torch.equal(each, before[name]) for name, each in net.named_buffers())
