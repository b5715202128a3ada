"""Random operators that run in eval mode, too: they narrow, and the check does without their chance."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_check import DIFFERENT, corrupted, error_of, plan_of, right
from torch import Tensor

from constructs import Net
from zoo import seeded

X = torch.zeros(2, 3, 8, 8)  # of a single image, the first channels' draws would be the same


class Draws(Net):
    """Draws for each channel."""

    def __init__(self, way: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.way = way

    def mid(self, x: Tensor) -> Tensor:
        return self.way(x)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "rrelu": lambda x: F.rrelu(x - 1, training=True),
    "rrelu in place": lambda x: F.rrelu(x - 1, training=True, inplace=True),
    "alpha dropout": lambda x: F.alpha_dropout(x, training=True),
    "feature alpha dropout": lambda x: F.feature_alpha_dropout(x, training=True),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "bernoulli, in place": lambda x: x * torch.empty_like(x).bernoulli_(x.sigmoid()),
    "normal around x": lambda x: torch.normal(x, 1.0),
    "normal of spread x": lambda x: torch.normal(0.0, x.abs()),
    "integers": lambda x: x * torch.randint_like(x, 5),
    "integers in place": lambda x: x * torch.empty_like(x).random_(1, 5),
    "poisson": lambda x: torch.poisson(x.abs()),
    "binomial": lambda x: torch.binomial(torch.full_like(x, 10.0), x.sigmoid()),
    "gamma": lambda x: x * torch.distributions.Gamma(x.abs() + 0.1, 1.0).rsample(),
    "poisson, then a permutation": lambda x: torch.poisson(x.abs())[:, :, torch.randperm(8)],
}


@pytest.mark.parametrize("way", DRAWS)
def test_draws_narrow_and_the_check_does_without_chance(way: str):
    model = seeded(lambda: Draws(DRAWS[way]))
    plan = plan_of(model)
    assert plan.small_shape("body.weight")[:2] == (24, 16)
    right(model, plan, X)


@pytest.mark.parametrize("way", ["rrelu", "bernoulli", "normal of spread x", "poisson", "binomial"])
def test_wrong_channels_are_seen_behind_draws(way: str):
    model = seeded(lambda: Draws(DRAWS[way]))
    wrong = dict(corrupted(plan_of(model)))
    for name in ("stem.0.weight 0", "body.weight 1"):
        assert error_of(model, wrong[name]) > DIFFERENT


def test_what_a_seeded_generator_draws_keeps_its_width():
    """The generator's numbers are a constant of the model, whose slice no narrower draw returns."""
    model = seeded(lambda: Draws(lambda x: x * torch.empty_like(x).normal_(generator=torch.Generator().manual_seed(3))))
    plan = plan_of(model)
    assert plan.small_shape("body.weight")[:2] == (24, 32)
    assert "drawn from a separate generator" in plan.groups[0].reason
    right(model, plan, X)
