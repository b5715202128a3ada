"""Code that names channels by fixed numbers: the small network picks and writes the same ones, or they stay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.slicing import check_plan
from constructs import Net, X, network
from unchecked import make_plan


def with_ones(x: Tensor, numbers: list[int]) -> Tensor:
    x = x.clone()
    x[:, numbers] = 1
    return x


def filled(x: Tensor, numbers: list[int]) -> Tensor:
    return x.index_fill(1, torch.tensor(numbers), 1)


def picked(x: Tensor, numbers: list[int]) -> Tensor:
    return x + x.index_select(1, torch.tensor(numbers)).mean(1, keepdim=True)


def replaced(x: Tensor, numbers: list[int]) -> Tensor:
    return x.select_scatter(x[:, 0].tanh(), 1, numbers[-1])


def added(x: Tensor, numbers: list[int]) -> Tensor:
    images = torch.zeros(len(numbers), dtype=torch.long)
    return x.index_put((images, torch.tensor(numbers)), torch.ones(len(numbers), 8, 8, dtype=x.dtype), accumulate=True)


class Halves(Net):
    """Two convolutions write the first and the last 16 channels, of which the code then names some."""

    way: Callable[[Tensor, list[int]], Tensor]
    numbers: list[int]

    def parts(self) -> None:
        self.first, self.last = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)

    def mid(self, x: Tensor) -> Tensor:
        return type(self).way(torch.cat([self.first(x), self.last(x)], 1), self.numbers)


@pytest.mark.parametrize("numbers", [[0, 3, 10], [0, 3, 20]], ids=str)
@pytest.mark.parametrize("way", [with_ones, filled, replaced, added], ids=lambda way: way.__name__)
def test_a_number_names_the_same_channel_in_both_networks(way: Callable[..., Tensor], numbers: list[int]):
    """With 8 channels of each half, channel 10 would be one of the other half, and there would be no channel 20."""
    model = network(type("Named", (Halves,), {"way": way, "numbers": numbers}))
    plan = make_plan(model, X, alpha=2, round_to=1)
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert (checked.error or 0) < 1e-12
    assert plan.small_shape("stem.0.weight")[0] == 16 or way is replaced  # otherwise only what is named stays


def test_a_number_beyond_the_channels_that_are_left_keeps_them():
    """The meta device does not compare indices with sizes."""
    model = network(type("Named", (Halves,), {"way": picked, "numbers": [0, 3, 20]}))
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert check_plan(model, X, plan).error is not None
    assert plan.apply(model)(X).shape == model(X).shape


class PassesOn(Net):
    """Adds a kernel that passes every channel on, written element by element."""

    def parts(self) -> None:
        self.one = nn.Parameter(torch.randn(32, 32, 3, 3) / 4)

    def mid(self, x: Tensor) -> Tensor:
        passing, each = torch.zeros_like(self.one), torch.arange(len(self.one))
        passing[each, each, 1, 1] = 1
        return F.conv2d(x, self.one + passing, padding=1)


def test_a_number_written_into_all_channels_narrows_with_them():
    model = network(PassesOn)
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert plan.small_shape("one") == (16, 16, 3, 3)
    assert (check_plan(model, X, plan).error or 0) < 1e-12


class Rows(Net):
    """Reads channels as the rows of a table."""

    def parts(self) -> None:
        self.turned = nn.Conv2d(1, 32, 1)

    def mid(self, x: Tensor) -> Tensor:
        table = x.mean((0, 2, 3))[:, None].expand(-1, 4)
        rows = F.embedding(torch.tensor([0, 3, 20]), table)
        return self.turned(rows.mean() + x.mean(1, keepdim=True))


def test_channels_that_are_rows_of_a_table_stay():
    model = network(Rows)
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert plan.apply(model)(X).shape == model(X).shape
    assert plan.small_shape("stem.0.weight")[0] == 32
    assert plan.small_shape("turned.weight")[0] == 16


def padded(x: Tensor) -> Tensor:
    n = x.shape[1]
    return F.pad(torch.ones(n // 2, dtype=x.dtype), (0, n - n // 2))


def joined(x: Tensor) -> Tensor:
    n = x.shape[1]
    return torch.cat([torch.zeros(n // 2, dtype=x.dtype), torch.ones(n - n // 2, dtype=x.dtype)])


def counted(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], dtype=x.dtype).cumsum(0) % 5


def triangle(x: Tensor) -> Tensor:
    return torch.ones(x.shape[1], x.shape[1], dtype=x.dtype).tril().sum(0) % 5


def written(x: Tensor) -> Tensor:
    factors = torch.zeros(x.shape[1], dtype=x.dtype)
    factors[:] = torch.arange(x.shape[1]) % 5
    return factors


def written_through_a_view(x: Tensor) -> Tensor:
    factors = torch.zeros(x.shape[1], dtype=x.dtype).view(2, -1)
    factors[0] = 1
    return factors.flatten()


class Scaled(Net):
    """Two convolutions write halves of the channels, of which each gets a factor that code computes from its place."""

    factors: Callable[[Tensor], Tensor]

    def parts(self) -> None:
        self.first, self.last = nn.Conv2d(32, 16, 1), nn.Conv2d(32, 16, 1)

    def mid(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first(x), self.last(x)], 1)
        return x * type(self).factors(x)[:, None, None]


@pytest.mark.parametrize("factors", [padded, joined, counted, triangle, written, written_through_a_view])
def test_zeros_and_ones_from_which_code_makes_numbers_by_place_do_not_fit_any_width(factors: Callable[..., Tensor]):
    """With 8 channels of each half, the ninth factor would be that of another channel."""
    model = network(type("Factors", (Scaled,), {"factors": staticmethod(factors)}))
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert (check_plan(model, X, plan).error or 0) < 1e-12
    assert plan.small_shape("first.weight")[:2] == (16, 16)  # the stem is narrowed
    assert plan.apply(model)(X).shape == (2, 5)


@pytest.mark.parametrize("pads", [False, True])
def test_zeros_beside_zeros_fit_any_width(pads: bool):
    def factors(x: Tensor) -> Tensor:
        zeros = torch.zeros(x.shape[1] // 2, dtype=x.dtype)
        return 1 + (F.pad(zeros, (0, len(zeros))) if pads else torch.cat([zeros, zeros]))

    model = network(type("Factors", (Scaled,), {"factors": staticmethod(factors)}))
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert (check_plan(model, X, plan).error or 0) < 1e-12
    assert plan.small_shape("first.weight")[:2] == (8, 16)


class Masked(Net):
    """Attention to earlier places; the mask has a copy for each head."""

    copies: Callable[[Tensor, int, int], Tensor]

    def parts(self) -> None:
        self.heads, self.qkv, self.out = 4, nn.Linear(32, 96), nn.Linear(32, 32)

    def mid(self, x: Tensor) -> Tensor:
        images, channels, height, width = x.shape
        qkv = self.qkv(x.flatten(2).transpose(1, 2)).view(images, height * width, 3, self.heads, channels // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).flatten(1, 2)
        mask = type(self).copies(torch.ones(height * width, height * width, dtype=x.dtype), images, self.heads)
        mixed = (q @ k.transpose(1, 2)).masked_fill(mask == 0, float("-inf")).softmax(-1) @ v
        mixed = mixed.view(images, self.heads, height * width, channels // self.heads).transpose(1, 2).flatten(2)
        return self.out(mixed).transpose(1, 2).unflatten(2, (height, width))


@pytest.mark.parametrize(
    "copies",
    [
        lambda ones, images, heads: ones.tril().repeat(images * heads, 1, 1),
        lambda ones, images, heads: ones.repeat(images, heads, 1, 1).cumsum(-1).tril().flatten(0, 1),
    ],
)
def test_a_mask_with_equal_copies_fits_any_number_of_heads(copies: Callable[..., Tensor]):
    model = network(type("Masks", (Masked,), {"copies": staticmethod(copies)}))
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert (check_plan(model, X, plan).error or 0) < 1e-12
    assert plan.small_shape("qkv.weight") == (48, 16)
