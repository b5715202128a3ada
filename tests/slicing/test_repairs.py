"""Sizes stored in modules: the right one is corrected, even if others are equal, or the channels stay wide."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from adjoined.slicing import Kind, check_plan
from fused_attention import Detector, FusedAttention, FusedLinear, OnOneHalf
from unchecked import make_plan
from zoo import images, parameters, plan_of, seeded

X = images(2, 3, 8, 8)


class Attention(nn.Module):
    """Self-attention over positions that stores its sizes, several of them equal."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.window = heads, dim // heads, 8
        self.dim, self.sizes = dim, [dim, 2 * dim]
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, places, _ = x.shape
        x = x.reshape(b, self.window, -1, self.dim).flatten(1, 2)  # changes nothing, but uses the window's size
        q, kv = self.qkv(x).split(self.sizes, dim=-1)
        k, v = kv.reshape(b, places, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q = q.reshape(b, places, self.num_heads, self.head_dim).transpose(1, 2)
        x = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, places, self.num_heads * self.head_dim))


class Attentive(nn.Module):
    """Two attention blocks of different widths between convolutions."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, dim, 3, padding=1), Attention(dim, heads)
        self.widen, self.second = nn.Conv2d(dim, 2 * dim, 1), Attention(2 * dim, heads)
        self.head = nn.Linear(2 * dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv, attention in ((self.stem, self.first), (self.widen, self.second)):
            x = conv(x)
            x = x + attention(x.flatten(2).transpose(1, 2)).transpose(1, 2).view_as(x)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(("dim", "heads", "left", "small"), [(64, 8, 2, 8), (64, 4, 1, 16), (48, 3, 3, 4)])
def test_the_size_passed_to_the_operator_is_corrected(dim: int, heads: int, left: int, small: int):
    model = seeded(lambda: Attentive(dim, heads))
    plan = plan_of(model, alpha=4)
    net = plan.apply(model)
    assert not [group for group in plan.groups if group.why and group.why.kind is not Kind.OUTPUT]
    for name, factor in (("first", 1), ("second", 2)):
        block = net.get_submodule(name)
        assert (block.num_heads, block.head_dim, block.window) == (left, small * factor, 8)  # at 64 and 8 all were 8
        assert block.sizes == [left * small * factor, 2 * left * small * factor]
    assert net(X).shape == (2, 5)
    assert parameters(net) < 0.09 * parameters(model)


class Table(nn.Module):
    """A bias for each head, which another module gets by calling a method."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads, self.places = heads, 4
        self.table = nn.Parameter(torch.randn(heads * 16))

    def biases(self) -> Tensor:
        return self.table.view(self.heads, self.places, 4)


class Biased(nn.Module):
    """Attention of `heads` heads over 4 positions, with a table of biases in its own module."""

    def __init__(self, heads: int, features: int) -> None:
        super().__init__()
        self.heads, self.features, self.table = heads, features, Table(heads)
        self.qkv = nn.Linear(16, 3 * heads * features)
        self.proj = nn.Linear(heads * features, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 4, 3, self.heads, self.features).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) + self.table.biases()).softmax(-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(len(x), 4, -1))


class BiasedTwice(nn.Sequential):
    """Two of them: in each, the numbers of heads, positions and features are all 4."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 4, stride=4), nn.Flatten(2), Turned(), Biased(4, 4), Biased(4, 4), nn.Flatten(),
            nn.Linear(64, 5),
        )  # fmt: skip


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def test_a_size_that_another_module_gets_by_a_method_is_found():
    model = seeded(BiasedTwice)
    plan = plan_of(model, alpha=4)
    small = plan.apply(model)
    assert not [group for group in plan.groups if group.why and group.why.kind is not Kind.OUTPUT]
    for block in (small[3], small[4]):
        assert (block.heads, block.features, block.table.heads, block.table.places) == (1, 4, 1, 4)
        assert tuple(block.table.table.shape) == (16,)
    assert small(X).shape == (2, 5)
    checked = check_plan(model, X, plan)
    assert checked.error is not None
    assert checked.error < 1e-12


class Counted(nn.Module):
    """Divides a width by a number of heads that does not divide every quarter of it."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 8
        self.stem, self.mix = nn.Conv2d(3, 152, 1), nn.Conv2d(152, 152, 1)
        self.head = nn.Linear(152, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        rows = self.mix(x).view(len(x), self.heads, x.shape[1] // self.heads, -1)
        x = x + (rows * rows.mean(3, keepdim=True)).view(x.shape)
        return self.head(x.mean((2, 3)))


def test_a_width_that_code_divides_stays_divisible():
    model = seeded(Counted)
    plan = plan_of(model, alpha=4)  # 152 / 4 = 38 channels do not make 8 equal rows; 8 rows of 5 do
    small = plan.apply(model)
    assert small.stem.out_channels == small.mix.out_channels == 40
    assert small(X).shape == (2, 5)


class Chunked(nn.Module):
    """Attention of `heads` heads among 16 positions, with a bias that grows from chunk to chunk of 8."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.chunk, self.dim, self.num_heads = 8, dim, heads  # with batches of two, the code asks for 2 * heads
        self.stem, self.qkv, self.head = nn.Conv1d(3, dim, 1), nn.Linear(dim, 3 * dim), nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(2, 0, 1)
        length, b, _ = x.shape
        bias = torch.cat([torch.ones(self.chunk) * start for start in range(0, length, self.chunk)])
        q, k, v = (
            each.reshape(length, b * self.num_heads, self.dim // self.num_heads).transpose(0, 1)
            for each in self.qkv(x).chunk(3, -1)
        )
        x = ((q @ k.transpose(1, 2) + bias).softmax(-1) @ v).transpose(0, 1).reshape(length, b, self.dim)
        return self.head(x.mean(0))


def test_a_loop_that_runs_more_often_does_not_get_further():
    model, x = seeded(lambda: Chunked(64, 4)), images(2, 3, 16)
    plan = make_plan(model, x, alpha=2, round_to=1)
    assert plan.attributes == {"dim": 32, "num_heads": 2}
    assert check_plan(model, x, plan).how == "masked base"


class Refusing(nn.Module):
    """Checks a width in its own code, against a literal number."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 32, 1), nn.Conv2d(32, 48, 1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if x.shape[1] != 32:
            raise LookupError("thirty-two or nothing")
        return self.head(self.body(x).relu().mean((2, 3)))


def test_code_that_rejects_narrow_tensors_keeps_those_channels_wide_and_its_message_is_the_reason():
    model = seeded(Refusing)
    plan = plan_of(model)
    small = plan.apply(model)
    stem, body, _ = plan.groups
    assert (stem.name, stem.kept, body.name, body.kept) == ("stem", 32, "body", 12)
    assert "thirty-two or nothing" in stem.reason
    assert small(X).shape == (2, 5)


class NamedInTheClass(nn.Module):
    """Stores its number of channels in the body of the class."""

    channels = 32

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, self.channels, 1), nn.Linear(self.channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).view(len(x), self.channels, -1).relu().mean(2))


def test_a_number_in_the_body_of_a_class_is_corrected_only_in_the_small_network():
    model = seeded(NamedInTheClass)
    small = plan_of(model, alpha=4).apply(model)
    assert (small.channels, model.channels, NamedInTheClass.channels) == (8, 32, 32)
    assert small(X).shape == (2, 5)


class Neighbours(nn.Module):
    """Looks at channels side by side: a convolution along channels, or a pool over them."""

    def __init__(self, pool: bool, parts: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(3, 32 // parts, 3, padding=1) for _ in range(parts))
        self.along = nn.MaxPool1d(3, 1, 1) if pool else nn.Conv1d(1, 1, 3, padding=1)
        self.body, self.head = nn.Conv2d(32, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([part(x) for part in self.parts], 1)
        gate = self.along(x.mean((2, 3))[:, None])[:, 0, :, None, None]
        return self.head(self.body(x * gate.sigmoid()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("pool", "parts", "reason"),
    [
        (False, 1, ""),  # the first channels: behind the last of them lies padding, or zeros
        (False, 2, "channels become neighbours that are not neighbours in the base network, in 'along'"),
        (True, 1, "along the channel dimension, in 'along'"),
        (True, 2, "along the channel dimension, in 'along'"),
    ],
)
def test_channels_that_are_looked_at_side_by_side_keep_their_neighbours(pool: bool, parts: int, reason: str):
    model = seeded(lambda: Neighbours(pool, parts))
    plan = plan_of(model, alpha=2)
    stems = [group for group in plan.groups if group.name.startswith("parts")]
    assert len(stems) == parts
    for group in stems:
        assert bool(reason) == (group.kept == group.width)
        assert reason in group.reason
    checked = check_plan(model, X, plan)
    assert (checked.how, checked.error is not None and checked.error < 1e-12) == ("masked base", True)


class Particular(nn.Module):
    """Rejects features of any width but its own, without a message, as layers of many libraries do."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.conv = nn.Conv2d(channels, 24, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        return self.conv(x)


class OfTwoGroups(nn.Module):
    """Features of two channel groups of different widths, side by side, before such a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 24, 3)
        self.next, self.head = Particular(32), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.next(torch.cat([self.left(x), self.right(x)], 1)).relu().mean((2, 3)))


def test_a_number_that_counts_the_channels_of_several_groups_is_corrected():
    model = seeded(OfTwoGroups)
    plan = plan_of(model, alpha=4)
    small = plan.apply(model)
    assert not [group for group in plan.groups if group.why and group.why.kind is not Kind.OUTPUT]
    assert (small.next.channels, small.next.conv.in_channels) == (8, 8)
    assert small(X).shape == (2, 5)
    check_plan(model, X, plan)


@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize(
    ("block", "width", "heads", "key"),
    [(FusedAttention, 64, 1, 32), (FusedAttention, 64, 2, 16), (FusedLinear, 64, 4, 8), (OnOneHalf, 128, 2, 16)],
)
def test_a_size_computed_from_several_numbers_is_corrected(
    block: type[nn.Module], width: int, heads: int, key: int, alpha: float
):
    model = seeded(lambda: Detector(block, width, heads, key))
    plan = plan_of(model, alpha=alpha)
    assert {group.reason for group in plan.groups} == {"", "model output"}
    assert parameters(plan.apply(model)) < (0.35 if alpha == 2 else 0.12) * parameters(model)
    checked = check_plan(model, X, plan)
    assert (checked.how, checked.error is not None and checked.error <= 1e-12) == ("masked base", True)


class RelativeAttention(nn.Module):
    """Attention by einsum, whose operators depend on whether there is one head or several."""

    def __init__(self, dim: int, heads: int, places: int) -> None:
        super().__init__()
        self.heads, self.places = heads, places
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(torch.randn(places, heads))
        steps = torch.arange(places)
        self.register_buffer("index", (steps[:, None] - steps[None, :]).abs())

    def forward(self, x: Tensor) -> Tensor:
        n, places, width = x.shape
        q, k, v = (each.reshape(n, places, self.heads, width // self.heads) for each in self.qkv(x).chunk(3, -1))
        bias = self.table[self.index.view(-1)].view(self.places, self.places, -1).permute(2, 0, 1)
        weights = (torch.einsum("nihd,njhd->nhij", q, k) + bias).softmax(-1)
        return self.out(torch.einsum("nhij,njhd->nihd", weights, v).reshape(n, places, width))


@pytest.mark.parametrize("alpha", [2, 4])
def test_heads_of_attention_by_einsum_are_dropped_down_to_one(alpha: int):
    model = nn.Sequential(nn.Linear(5, 64), RelativeAttention(64, 4, 9), nn.Linear(64, 5))
    x = images(2, 9, 5)
    plan = make_plan(model, x, alpha=alpha, round_to=1)
    assert [group.why.kind for group in plan.groups if group.why is not None] == [Kind.OUTPUT]
    assert plan.apply(model)[1].heads == 4 // alpha
    checked = check_plan(model, x, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error <= 1e-8


class Choosing(nn.Module):
    """Code that chooses what to run by numbers of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.width = 24
        self.stem, self.body, self.head = nn.Conv2d(3, 20, 3), nn.Conv2d(20, 24, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.chosen(x, self.body(x)).relu().mean((2, 3)))

    def chosen(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the outputs of the second layer, changed for some numbers of channels."""
        raise NotImplementedError


class OneStepMore(Choosing):
    def chosen(self, x: Tensor, y: Tensor) -> Tensor:
        return y if y.shape[1] > 16 else y.tanh()


class OneStepLess(Choosing):
    def chosen(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(y, 2) if y.shape[1] > 16 else y


class EqualByRounding(Choosing):
    def chosen(self, x: Tensor, y: Tensor) -> Tensor:
        return y.tanh() if y.shape != x.shape else y


class ByAnAttribute(Choosing):
    def chosen(self, x: Tensor, y: Tensor) -> Tensor:
        return y.tanh() if y.shape[1] == self.width else y


@pytest.mark.parametrize(
    ("kind", "left", "why"),
    [
        (OneStepMore, 24, "for fewer channels, the code runs tanh in the model's own forward"),
        (OneStepLess, 24, "for fewer channels, the code runs no avg_pool2d in the model's own forward"),
        (EqualByRounding, 24, "for fewer channels, the code runs no tanh in the model's own forward"),
        (ByAnAttribute, 8, ""),
    ],
)
def test_a_small_network_runs_the_operators_of_the_base(kind: type[Choosing], left: int, why: str):
    model = seeded(kind)
    plan = plan_of(model, alpha=3, round_to=8)
    assert plan.small_shape("body.weight")[:2] == (left, 8)
    (group,) = (group for group in plan.groups if group.name == "body")
    assert group.reason == why
    assert not why or (group.why and group.why.kind) == Kind.BY_WIDTH
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error < 1e-12
