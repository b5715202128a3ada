"""Channels whose order the model's code depends on: they keep it, or nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from test_order import X, differ, reordered
from torch import Tensor, nn

from adjoined import SlicePlan
from adjoined.slicing import Inputs
from adjoined.slicing.order.symmetry import Probe
from unchecked import adjoin
from zoo import conv, seeded


class Ordered(nn.Module):
    """Something in the middle depends on the order of the channels."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.last = conv(3, 16), conv(16, 16), conv(16, 5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.middle(self.first(x))).relu())


class AcrossChannels(nn.Module):
    """Efficient channel attention: a convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mix(x.mean((2, 3)).unsqueeze(1)).squeeze(1)[..., None, None].sigmoid()


MIDDLES: dict[str, Callable[[Tensor], Tensor]] = {
    "cumsum": lambda x: x.cumsum(1),
    "sort": lambda x: x.sort(1).values,
    "ramp": lambda x: x * torch.linspace(0, 1, 16, dtype=x.dtype).view(1, 16, 1, 1),
    "argmax": lambda x: x + x.argmax(1, keepdim=True),
    "flip": lambda x: x + x.flip(1).cumsum(1),
    "shuffle": lambda x: x.view(-1, 4, 4, 8, 8).transpose(1, 2).flatten(1, 2),
    "halves": lambda x: torch.cat([x[:, 4:], x[:, :4]], 1),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_channels_whose_order_matters_stay_or_are_still_right(name: str):
    before, after, plan = reordered(seeded(lambda: Ordered(MIDDLES[name])), X)
    assert differ(before, after, X) < 1e-10
    assert not torch.equal(before.second.weight, after.second.weight)  # the others are reordered all the same
    if name == "cumsum":
        assert plan.unordered == {"first": "in another order the base network would compute something else"}
    if name == "argmax":  # which channel it is matters, so all of them stay, as they are
        assert plan.small_shape("first.weight")[0] == 16
        assert torch.equal(before.first.weight, after.first.weight)


def test_attention_across_channels_keeps_its_order():
    before, after, _ = reordered(seeded(lambda: Ordered(AcrossChannels())), X)
    assert differ(before, after, X) < 1e-10
    assert torch.equal(before.first.weight, after.first.weight)


class Keeping(Ordered):
    """Something that depends on the order of the channels is stored for the user's code, and not returned."""

    def __init__(self, keep: Callable[[Tensor], object], *, training: bool = False) -> None:
        super().__init__(lambda x: x)
        self.keep, self.only_training, self.calls = keep, training, torch.zeros(())
        self.kept: object = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        self.calls += 1
        if self.training or not self.only_training:
            self.kept = self.keep(x)
        return self.last(self.second(x).relu())


RAMP = torch.linspace(0, 1, 16, dtype=torch.float64)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("keep", "stays"),
    [
        (lambda x: x.cumsum(1), True),
        (lambda x: {"losses": [0.0, (x.mean((0, 2, 3)) * RAMP[: x.shape[1]]).sum()]}, True),
        (lambda x: (x[:, 1:] - x[:, :-1]).abs().mean(), True),
        (lambda x: x, False),
        (
            lambda x: [x.mean((2, 3)), x.norm(), torch.einsum("nchw,ndhw->ncd", x, x), x.detach().to(torch.complex128)],
            False,
        ),
    ],
)
def test_what_a_forward_stores_stays_the_same(keep: Callable[[Tensor], object], stays: bool, training: bool):
    before, after, plan = reordered(seeded(lambda: Keeping(keep, training=training)), X)
    assert torch.equal(before.first.weight, after.first.weight) == stays
    assert not torch.equal(before.second.weight, after.second.weight)
    assert plan.small_shape("first.weight")[0] == 4 or stays


@pytest.mark.parametrize("name", ["cumsum", "argmax"])
def test_a_mistake_is_seen_even_if_the_weights_hide_it(name: str):
    """The check of the outputs can fail: a scale of zero silences the channels, until it is trained."""
    model = seeded(lambda: Ordered(MIDDLES[name])).double().eval()
    with torch.no_grad():
        model.second.weight.zero_()
    turned = {"first.weight": [torch.arange(16).flip(0), None, None, None], "first.bias": [torch.arange(16).flip(0)]}
    probe = Probe(model, Inputs.of(X))
    probe.start(None)
    assert not probe.same({**turned, "second.weight": [None, torch.arange(16).flip(0), None, None]})
    assert probe.same({})


class Silent(nn.Module):
    """Returns classes, and the channels that a fixed gate closes: zeros, as long as these stay in their places."""

    def __init__(self, opening: float) -> None:
        super().__init__()
        self.first, self.last = conv(3, 16), conv(16, 5)
        self.register_buffer("gate", torch.cat([torch.zeros(8), torch.full((8,), opening)]).view(16, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x).relu()
        return self.last(x), (x * self.gate)[:, :8]


@pytest.mark.parametrize("opening", [1.0, 1e-12])
def test_outputs_of_zeros_stay_zeros(opening: float):
    probe = Probe(seeded(lambda: Silent(opening)), Inputs.of(X))
    probe.start(None)
    turned = torch.arange(16).flip(0)
    together = {"first.weight": [turned, None, None, None], "first.bias": [turned], "gate": [turned, None, None]}
    assert not probe.same({**together, "last.weight": [None, turned, None, None]})
    del together["gate"]  # the gate closes the first places, whichever channels are there
    assert probe.same({**together, "last.weight": [None, turned, None, None]})


def test_the_plan_says_what_was_done():
    net = adjoin(seeded(lambda: Ordered(MIDDLES["cumsum"])), torch.zeros(1, 3, 8, 8), round_to=1, order="l2")
    again = SlicePlan.from_json(net.plan.to_json())
    assert again == net.plan
    assert (again.order, list(again.unordered)) == ("l2", ["first"])
    assert "first" in str(net.plan)
    assert "l2" in str(net.plan)
