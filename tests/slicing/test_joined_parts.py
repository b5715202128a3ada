"""Channels along which a tensor is joined with one of fixed width keep their width; all others narrow."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unchecked import adjoin
from zoo import images, seeded

X = images(2, 3, 12)


class Streaming(nn.Module):
    """Causal convolutions that begin with the last samples of the call before."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv1d(3, 32, 3), nn.Conv1d(32, 24, 3), nn.Linear(24, 5)
        self.before_one, self.before_two = nn.Buffer(torch.randn(1, 3, 2)), nn.Buffer(torch.randn(1, 32, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.before_one.expand(len(x), -1, -1), x], 2)
        self.before_one = x[:1, :, -2:].detach()
        x = torch.cat([self.before_two.expand(len(x), -1, -1), self.one(x).relu()], 2)
        self.before_two = x[:1, :, -2:].detach()
        return self.head(self.two(x).relu().mean(2))


class BesideInput(nn.Module):
    """Parameters with three channels and a table, joined with the input along its places."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.own, self.join = nn.Parameter(torch.randn(1, 3, 12)), join
        self.one, self.head = nn.Conv1d(3, 32, 3, padding=1), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.one(self.join(self.own.expand(len(x), -1, -1), x)).relu().mean(2))


class Tokens(nn.Module):
    """Learned tokens beside the features of the places, and beside zeros, which fit any width."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(1, 2, 32))
        self.one, self.two, self.head = nn.Conv1d(3, 32, 3), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x).transpose(1, 2)
        tokens = torch.cat([self.tokens.expand(len(x), -1, -1), x.new_zeros(x[:, :3].shape)], 1)
        return self.head(self.two(torch.cat([tokens, x], 1)).relu().mean(1))


@pytest.mark.parametrize("alpha", [2, 2.5, 4])
@pytest.mark.parametrize(
    ("make", "shapes"),
    [
        (Streaming, {"before_one": (1, 3, 2), "before_two": (1, 0, 2), "two.weight": (0, 0, 3)}),
        (lambda: BesideInput(lambda own, x: torch.cat([own, x], 2)), {"own": (1, 3, 12), "head.weight": (5, 0)}),
        (lambda: BesideInput(lambda own, x: torch.stack([own, x], 3).sum(3)), {"own": (1, 3, 12)}),
        (lambda: BesideInput(lambda own, x: torch.stack([x, own]).amax(0)), {"own": (1, 3, 12)}),
        (Tokens, {"tokens": (1, 2, 0), "two.weight": (0, 0), "one.weight": (0, 3, 3)}),
    ],
    ids=["cache", "cat", "stack behind", "stack before", "tokens"],
)
def test_only_what_meets_a_fixed_width_stays(make: Any, shapes: dict[str, tuple[int, ...]], alpha: float):
    """0 stands for a dimension of channels."""
    model = seeded(make)
    plan = adjoin(model, X, alpha=alpha, round_to=1).plan
    for name, shape in shapes.items():
        expected = tuple(small or -(-size // alpha) for small, size in zip(shape, plan.shapes[name], strict=True))
        assert plan.small_shape(name) == expected, name
    assert not [each.reason for each in plan.groups if "must match" in each.reason or "does not" in each.reason]
