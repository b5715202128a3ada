"""Constructs of other packages that timm and torchvision do not use, each in a small network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined import SlicePlan
from adjoined.slicing import Kind, check_plan
from unchecked import adjoin
from zoo import images, plan_of, seeded

X = images(2, 3, 8, 8)


class Parting(nn.Conv2d):
    """A convolution that cuts its weight in two at a stored number, as octave convolutions do: its outputs split."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 1, bias=False)
        self.upper_out = out // 2

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        return F.conv2d(x, self.weight[: self.upper_out]), F.conv2d(x, self.weight[self.upper_out :])


class Joining(nn.Conv2d):
    """The same for its inputs, which join."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__(into, out, 1, bias=False)
        self.upper_in = into // 2

    def forward(self, upper: Tensor, lower: Tensor) -> Tensor:  # pyright: ignore
        return F.conv2d(upper, self.weight[:, : self.upper_in]) + F.conv2d(lower, self.weight[:, self.upper_in :])


class InTwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.join = nn.Conv2d(3, 32, 3), Parting(32, 64), Joining(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        upper, lower = self.part(self.stem(x).relu())
        return self.head(self.join(upper.relu(), lower.sigmoid()).relu().mean((2, 3)))


class Fused(nn.Module):
    """Two convolutions that eval mode computes as one, whose weight is set through `data` in every call."""

    def __init__(self, into: int, out: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Conv2d(into, 2 * out, 1, bias=False), nn.Conv2d(2 * out, out, 1)
        self.both = nn.Conv2d(into, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.narrow(self.widen(x))
        inner, outer = (c.weight.data.clone().detach().flatten(1) for c in (self.widen, self.narrow))
        self.both.weight.data = (outer @ inner)[..., None, None]
        self.both.bias.data = self.narrow.bias.data.clone()  # pyright: ignore
        return self.both(x)


class OfFused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 16, 3), Fused(16, 32), Fused(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.stem(x)).relu()).relu().mean((2, 3)))


def wide(plan: SlicePlan) -> list[str]:
    return [group.name for group in plan.groups if group.why and group.why.kind is not Kind.OUTPUT]


def test_sizes_stored_by_a_subclass_of_a_layer_are_corrected():
    model = seeded(InTwoParts).eval()
    plan = plan_of(model, alpha=4)
    small = plan.apply(model)
    assert not wide(plan)
    assert (small.part.upper_out, small.part.out_channels, small.join.upper_in) == (8, 16, 8)
    assert check_plan(model, X, plan).how == "masked base"


def test_weights_that_are_set_from_others_in_every_call_are_narrowed_with_them():
    model = seeded(OfFused).eval()
    plan = plan_of(model, alpha=4)
    small = plan.apply(model)
    assert not wide(plan)
    shapes = {name: tuple(tensor.shape) for name, tensor in small.named_parameters()}
    assert shapes["first.both.weight"] == (8, 4, 1, 1)
    assert shapes["first.widen.weight"] == (16, 4, 1, 1)
    assert shapes["first.narrow.weight"] == (8, 16, 1, 1)
    assert check_plan(model, X, plan).how == "masked base"


def test_training_such_a_network_trains_the_source_weights():
    net = adjoin(seeded(OfFused), X, alpha=4, round_to=1, check=True).train()
    p, q = net(X)
    (p.square().mean() + q.square().mean()).backward()
    assert all(bool(net.get_parameter(f"base.{name}.weight").grad.any()) for name in ("first.widen", "second.narrow"))
    net.eval()
    p, q = net(X)
    assert torch.allclose(net.extract()(X), q, atol=1e-6)
    assert torch.allclose(net.base.train()(X), p, atol=1e-5)


class Computed(nn.Module):
    """Something that torch computes from other operators, and that has no rule of its own, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.body(x)
        return self.head(y.tanh().mean((2, 3))), self.computed(x, y)

    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        """Return what the construct computes from the outputs of the first layer and the second."""
        raise NotImplementedError


class SquaredDifference(Computed):
    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(y, x.detach()) + F.mse_loss(x, y, reduction="none").mean((1, 2, 3)).sum()


class SmoothDifference(Computed):
    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(x, y) + F.huber_loss(x, y, delta=0.5)


class CrossEntropyOfGates(Computed):
    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(x.sigmoid(), y.sigmoid()) + F.logsigmoid(y).mean()


class Distance(Computed):
    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.dist(x, y)


class TraceOfProducts(Computed):
    def computed(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.trace(x.mean((2, 3)).t() @ y.mean((2, 3)))


@pytest.mark.parametrize("kind", [SquaredDifference, SmoothDifference, CrossEntropyOfGates, Distance, TraceOfProducts])
def test_what_torch_computes_from_other_operators_is_followed_through_them(kind: type[Computed]):
    model = seeded(kind)
    plan = plan_of(model)
    assert plan.small_shape("stem.weight")[0] == plan.small_shape("body.weight")[0] == 8
    assert plan.small_shape("body.weight")[1] == 8
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error < 1e-12
    with torch.no_grad():
        small = plan.apply(model)
        features = small.stem(X)
        torch.testing.assert_close(small(X)[1], model.computed(features, small.body(features)))
