"""Code that runs in train mode alone: the small network is right there, too, whatever chance does."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import MethodType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined import AdjoinedError
from adjoined.slicing import check_plan
from masked import masked, relative_error
from train_parts import PARTS, weigh_in_training
from unchecked import adjoin, make_plan
from zoo import conv, images, lively, seeded

X = images(2, 3, 8, 8, dtype=torch.float64)


class Weighs(nn.Module):
    """In train mode, two joined branches of 16 channels meet the 32 scales of the stem."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = conv(3, 32), conv(32, 16), conv(32, 16), conv(32, 5)
        self.scale, self.joined = nn.Parameter(torch.rand(32)), nn.Identity()

    def weigh(self, x: Tensor) -> Tensor:
        return x * self.scale[:, None, None]

    def forward(self, x: Tensor) -> Tensor:
        x = self.weigh(self.stem(x))
        return self.head(self.joined(torch.cat([self.left(x), self.right(x)], 1)))


class Branches(Weighs):
    def forward(self, x: Tensor) -> Tensor:
        x = self.weigh(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(self.weigh(x) if self.training else x)


class Switched(Weighs):
    """`train` sets a switch of the model's own."""

    deploy = False

    def train(self, mode: bool = True) -> Switched:
        self.deploy = not mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        x = self.weigh(self.stem(x))
        x = torch.cat([self.left(x), self.right(x)], 1)
        return self.head(x if self.deploy else self.weigh(x))


class Hooked(Weighs):
    def __init__(self) -> None:
        super().__init__()
        self.joined.scale = self.scale
        self.joined.register_forward_hook(weigh_in_training)


class Replaced(Weighs):
    """The forward of a part is replaced in this model alone."""

    def __init__(self) -> None:
        super().__init__()
        self.joined.scale = self.scale
        self.joined.forward = MethodType(lambda part, x: weigh_in_training(part, x, x), self.joined)


class Switching(Switched):
    """The same, with another way to set the switch in this model alone."""

    train = nn.Module.train

    def __init__(self) -> None:
        super().__init__()
        self.train = MethodType(Switched.train, self)


def with_part(part: type[nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = Weighs()
        model.joined = part()  # pyright: ignore[reportAttributeAccessIssue]
        model.joined.scale = model.scale
        return model

    make.__name__ = part.__name__
    return make


class Counted(Branches):
    """The same, but the code needs a value in train mode, so that it cannot be followed without values."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen = float(x.detach().abs().max())
        return super().forward(x)


@pytest.mark.parametrize("make", [Branches, Switched, Hooked, Replaced, Switching, Counted, *map(with_part, PARTS)])
def test_channels_that_meet_in_train_mode_alone(make: Callable[[], nn.Module]):
    """With the first halves of both branches and of the scales, shapes would fit, and the wrong channels meet."""
    model = lively(seeded(make), X)
    net = adjoin(model, X, alpha=2, round_to=1)
    assert net.plan.small_shape("head.weight")[1] == 16
    for mode in (True, False):
        p, q = net.train(mode)(X)
        assert torch.equal(p, model(X))
        assert relative_error(q, masked(model, net.plan).train(mode)(X)) < 1e-12


class Features(nn.Module):
    """Returns its features, too, in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(self.stem(x).relu()).mean((2, 3))
        return (self.head(x), x) if self.training else self.head(x)


def test_what_is_returned_in_train_mode_alone_has_full_width():
    net = adjoin(seeded(Features).double(), X, alpha=2, round_to=1).train()
    (_, p), (_, q) = net(X)
    assert p.shape == q.shape == (2, 48)
    assert net.plan.small_shape("body.weight") == (48, 16, 3, 3)


class Queue(nn.Module):
    """Features of earlier images in a ring, whose place to write to is read in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 32), nn.Linear(32, 5)
        self.register_buffer("queue", torch.randn(32, 8))
        self.register_buffer("place", torch.zeros(1, dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x, queue, place = self.stem(x).mean((2, 3)), self.get_buffer("queue"), self.get_buffer("place")
        alike = x @ queue.clone()
        if self.training:
            start = int(place)
            queue[:, start : start + len(x)] = x.detach().t()
            place[0] = (start + len(x)) % 8
        return self.head(x), alike


def test_small_networks_are_made_from_the_state_before_the_run_in_train_mode():
    """Else the first places of the base's ring would be the third ones of theirs."""
    net = adjoin(seeded(Queue).double(), X, alpha=2, round_to=1)
    assert net.plan.small_shape("queue") == (16, 8)
    assert net.plan.in_order
    assert torch.equal(net.extract().get_buffer("queue"), net.base.get_buffer("queue")[:16])


class Latent(nn.Module):
    """A variational autoencoder of 8 latent channels, which returns their spread."""

    def __init__(self) -> None:
        super().__init__()
        self.latent = 8
        self.encode, self.decode, self.out = conv(3, 16), nn.ConvTranspose2d(8, 8, 2, 2), conv(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encode(x)
        mean, spread = x[:, : self.latent], x[:, self.latent :]
        mean = mean + spread * torch.randn_like(mean) if self.training else mean
        return self.out(self.decode(mean)), spread


def test_one_channel_is_not_repeated_in_train_mode():
    """One channel of the mean and eight of the spread would fit."""
    net = adjoin(seeded(Latent).double(), X, alpha=(8, 2), round_to=1)
    assert [plan.small_shape("decode.weight")[0] for plan in net.plans] == [8, 8]
    assert len({tuple(out.shape for out in outs) for outs in net.train()(X)}) == 1


# ---- chance ----------------------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws a number for every channel, in train mode or always."""

    def __init__(self, way: str, *, always: bool = False) -> None:
        super().__init__()
        self.way, self.always = way, always
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.training or self.always:
            x = self.noisy(x)
        return self.head(self.body(x).relu().mean((2, 3)))

    def noisy(self, x: Tensor) -> Tensor:
        n, c, *_ = x.shape
        match self.way:
            case "dropout":
                return F.dropout(x, training=True)
            case "mask":
                return x * (torch.rand(c) > 0.2).to(x)[:, None, None]
            case "added":
                return x + torch.randn_like(x)
            case "scaled":
                return x + x * torch.randn(n, c, 1, 1, dtype=x.dtype)
            case "gumbel":
                return x + F.gumbel_softmax(x, dim=1)
            case "shuffled":  # after draws for all channels
                return (x + torch.randn_like(x))[torch.randperm(n)]
            case _:
                return x * x.new_empty(n, c, 1, 1).bernoulli_(0.9)


WAYS = ("dropout", "mask", "added", "scaled", "gumbel", "shuffled", "path")


@pytest.mark.parametrize("way", WAYS)
def test_noise_in_train_mode_leaves_channels_free(way: str):
    """They are narrowed, and the largest filters come first."""
    model = seeded(lambda: Noisy(way)).double()
    net = adjoin(model, X, alpha=2, round_to=1, order="l1")
    assert net.plan.small_shape("body.weight")[:2] == (24, 16)
    assert not net.plan.unordered
    sum(out.sum() for out in net.train()(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("way", WAYS)
def test_a_check_does_without_chance(way: str):
    """The small network draws fewer numbers than the base, and is right nevertheless."""
    model = seeded(lambda: Noisy(way, always=True)).double()
    checked = check_plan(model, X, make_plan(model, X, alpha=2, round_to=1))
    assert checked.how == "masked base"
    assert (checked.error or 0) < 1e-12


class Branching(nn.Module):
    """In train mode, one of two branches runs, by a number that code draws."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw = draw
        self.stem, self.left, self.right, self.head = conv(3, 32), conv(32, 48), conv(32, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        if self.training:
            return self.head((self.left if self.draw() < 0.5 else self.right)(x).relu().mean((2, 3)))
        return self.head((self.left(x) + self.right(x)).relu().mean((2, 3)))


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def by_numpy() -> float:
    return np.random.rand()  # noqa: NPY002 models use the global state, too


def by_torch() -> float:
    return float(torch.rand(()))


@pytest.mark.parametrize("draw", [random.random, by_numpy, by_torch])
def test_every_network_of_a_plan_takes_the_branch_that_the_first_one_took(draw: Callable[[], float]):
    """The caller's own draws go on as they would have without the plan."""
    for seed in range(5):
        seed_all(seed)
        plan = make_plan(seeded(lambda: Branching(draw)), X.float(), alpha=2, round_to=1)
        assert [plan.small_shape(f"{name}.weight")[:2] for name in ("left", "right")] == [(24, 16), (24, 16)]
        after = draw()
        seed_all(seed)
        assert after == draw()


class Gradient(nn.Module):
    """Returns the gradient of an energy, which still has its history."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = nn.Sequential(conv(3, 32), nn.Softplus(), conv(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_outputs_with_a_history_are_checked_without_a_warning():
    model = seeded(Gradient).double()
    assert (check_plan(model, X, make_plan(model, X, alpha=2)).error or 0) < 1e-12


class Freezes(nn.Module):
    """Its forward freezes a layer."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        match self.way:
            case "attribute":
                self.stem.weight.requires_grad = False
            case "method":
                self.stem.weight.requires_grad_(False)
            case "of the layer":
                self.stem.requires_grad_(False)
        x = self.stem(x.requires_grad_(self.way == "input")).relu()
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("way", ["attribute", "method", "of the layer"])
def test_a_forward_that_freezes_weights_is_refused_with_its_line(way: str):
    net = adjoin(seeded(lambda: Freezes(way)), X.float(), alpha=2, round_to=1)
    with pytest.raises(
        AdjoinedError, match=r"forward, line \d+ of .*test_train_mode.*changes requires_grad of a weight"
    ):
        net(X.float())


def test_another_error_of_a_line_that_names_requires_grad_is_passed_on():
    net = adjoin(seeded(lambda: Freezes("input")), X.float(), alpha=2, round_to=1)
    net(X.float())
    with pytest.raises(RuntimeError, match="expected input") as caught:
        net.small(X[:, :2].float())
    assert not isinstance(caught.value, AdjoinedError)
