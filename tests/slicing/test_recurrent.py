"""Narrowing of recurrent layers and cells, embeddings, kernels for each image, statistics behind a pixel shuffle."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.slicing import Kind, SlicePlan, check_plan
from constructs import Net
from recurrent import SOUND, Cell, ImageCell, Letters, ModulatedUpsampling, Packed, Recurrent, Tracker, Words
from unchecked import adjoin, make_plan
from zoo import images, parameters, seeded

WORDS = torch.arange(24).view(2, 12) % 50
EACH: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "RNNCell": (lambda: Cell(nn.RNNCell), SOUND),
    "LSTMCell": (lambda: Cell(nn.LSTMCell), SOUND),
    "GRUCell": (lambda: Cell(nn.GRUCell), SOUND),
    "RNNCell with its state": (lambda: Cell(nn.RNNCell, given=True), SOUND),
    "LSTMCell with its state": (lambda: Cell(nn.LSTMCell, given=True), SOUND),
    "RNN": (lambda: Recurrent(nn.RNN, num_layers=2, bidirectional=True), SOUND),
    "LSTM": (lambda: Recurrent(nn.LSTM), SOUND),
    "LSTM with projections": (lambda: Recurrent(nn.LSTM, num_layers=2, proj_size=12), SOUND),
    "LSTM beside a value": (lambda: Recurrent(nn.LSTM, reads=True, bidirectional=True), SOUND),
    "GRU beside a value": (lambda: Recurrent(nn.GRU, reads=True), SOUND),
    "LSTM on packed sequences": (lambda: Packed(nn.LSTM, bidirectional=True), SOUND),
    "GRU on packed sequences": (lambda: Packed(nn.GRU), SOUND),
    "ConvLSTM on pictures": (ImageCell, images(2, 3, 3, 6, 6)),
    "ConvLSTM of two layers on pictures": (lambda: ImageCell(apart=True), images(2, 3, 3, 6, 6)),
    "a cell by hand": (Letters, images(2, 3, 10)),
    "Embedding": (Words, WORDS),
    "EmbeddingBag": (lambda: Words(together=True), WORDS),
    "groups are images": (ModulatedUpsampling, images(2, 3, 8, 8)),
    "kernels are images": (Tracker, images(2, 3, 8, 8)),
}


def narrow_and_right(model: nn.Module, x: Tensor, share: float) -> SlicePlan:
    plan = make_plan(model, x, alpha=2, round_to=1)
    assert {group.why and group.why.kind for group in plan.groups} == {None, Kind.OUTPUT}
    assert parameters(plan.apply(model)) < share * parameters(model)
    checked = check_plan(model, x, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error <= 1e-12
    return plan


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("name", EACH)
def test_it_narrows_and_both_networks_take_a_step(name: str):
    make, x = EACH[name]
    model = seeded(make)
    narrow_and_right(model, x, 0.37)
    net = adjoin(model, x, alpha=2, round_to=1)
    q: Any = net(x)[1]
    q.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.ndim > 1)
    torch.optim.SGD(net.parameters(), 0.1).step()  # recurrent layers still hold slices of the weights before
    small, twin = net.eval().extract(), copy.deepcopy(net)
    with torch.no_grad():
        p, q = net(x)
        assert torch.allclose(q, small(x), atol=1e-6)
        assert all(map(torch.equal, twin(x), (p, q)))


@pytest.mark.parametrize("make", [ModulatedUpsampling, Tracker])
def test_the_plan_does_not_depend_on_the_number_of_images(make: Callable[[], nn.Module]):
    model = seeded(make)
    plans = [make_plan(model, images(n, 3, 8, 8), alpha=2, round_to=1) for n in (1, 2, 5)]
    assert plans[0].tensors
    assert plans[0].tensors == plans[1].tensors == plans[2].tensors
    assert plans[0].conv_groups == plans[1].conv_groups == plans[2].conv_groups == {}


class Decoder(nn.Module):
    """Upsampling by a pixel shuffle, onto a skip connection or alone, then a statistic across channels."""

    def __init__(self, statistic: Callable[[Tensor], Tensor], skip: bool) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 32, 2, 2)
        self.up, self.last = nn.Conv2d(32, 64, 1), nn.Conv2d(16, 3, 3, padding=1)
        self.statistic, self.skip = statistic, skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        up = F.pixel_shuffle(self.up(self.down(x)), 2)
        return self.last(self.statistic(up + x if self.skip else up))


STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x - x.mean(1, keepdim=True),
    "standard deviation": lambda x: x / (x.std(1, keepdim=True) + 1),
    "maximum": lambda x: x * x.amax(1, keepdim=True).sigmoid(),
    "length": lambda x: F.normalize(x, dim=1),
    "layer norm": lambda x: F.layer_norm(x.movedim(1, -1), x.shape[1:2]).movedim(-1, 1),
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("statistic", STATISTICS)
def test_a_statistic_behind_a_pixel_shuffle_does_not_tie_the_channels(statistic: str, skip: bool):
    narrow_and_right(seeded(lambda: Decoder(STATISTICS[statistic], skip)), images(1, 3, 8, 8), 0.34)


class StateSpace(Net):
    """A diagonal state space: each channel's own kernel over the places, by a product with the channels as batch."""

    def parts(self) -> None:
        self.decay, self.gain = nn.Parameter(-torch.rand(32, 4)), nn.Parameter(torch.randn(32, 4))

    def mid(self, x: Tensor) -> Tensor:
        steps = (self.decay[..., None] * torch.arange(64)).exp()
        return x * torch.einsum("cn,cnl->cl", self.gain, steps).view(-1, 8, 8)


def test_channels_that_are_the_batch_of_both_factors_are_the_same():
    model = seeded(StateSpace)
    x = torch.zeros(1, 3, 8, 8)
    plan = make_plan(model, x, alpha=2, round_to=1)
    assert (plan.small_shape("decay"), plan.small_shape("gain")) == ((16, 4), (16, 4))
    assert (check_plan(model, x, plan).error or 0) < 1e-12


class MatricesOfPlaces(Net):
    """A matrix for each place of a small spectrum, whose rows and columns are the batch of both factors."""

    def parts(self) -> None:
        self.one, self.two = nn.Parameter(torch.randn(32, 2, 2)), nn.Parameter(torch.randn(32, 32, 2, 2))

    def mid(self, x: Tensor) -> Tensor:
        scales = torch.einsum("ixy,ioxy->oxy", self.one, self.two) / 32
        return x * scales.repeat(1, 4, 4)


def test_rows_and_columns_that_are_the_batch_of_both_factors_stay_apart():
    model = seeded(MatricesOfPlaces)
    x = torch.zeros(1, 3, 8, 8)
    plan = make_plan(model, x, alpha=2, round_to=1)
    assert (plan.small_shape("one")[1:], plan.small_shape("two")[1:]) == ((2, 2), (16, 2, 2))
    assert (check_plan(model, x, plan).error or 0) < 1e-12
