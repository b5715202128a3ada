"""`check_plan` and code: numbers that a forward computes from widths, and what it keeps between calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_check import DIFFERENT, ROUNDING, X, corrupted, error_of, plan_of, right
from torch import Tensor, nn

from adjoined import AdjoinedError
from adjoined.slicing import check_plan, make_plan
from constructs import Net
from zoo import images, seeded


class ByWidth(Net):
    """Scales by numbers that the code reads from shapes: in the small network these are its own."""

    def __init__(self, scale: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.scale = scale

    def parts(self) -> None:
        self.key, self.weight = nn.Conv2d(32, 32, 1), nn.Parameter(torch.randn(32, 32, 3, 3))

    def mid(self, x: Tensor) -> Tensor:
        x = x * ((x * self.key(x)).sum(1, keepdim=True) * self.scale(x, self.weight)).sigmoid()
        return nn.functional.conv2d(x, self.weight / (9 * self.weight.shape[1]) ** 0.5, padding=1)


SCALES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a number": lambda x, weight: x.shape[1] ** -0.5,
    "made a tensor": lambda x, weight: torch.rsqrt(torch.tensor(float(x.shape[1]))),
    "filled in": lambda x, weight: x.new_full((1,), x.shape[1]) ** -0.5,
    "multiples, as a cumulative norm counts": lambda x, weight: (
        1 / torch.arange(x.shape[1], x.shape[1] * (x.shape[3] + 1), x.shape[1], dtype=x.dtype)
    ),
    "of a weight": lambda x, weight: 1 / weight.shape[1],
}


@pytest.mark.parametrize("scale", SCALES)
def test_numbers_that_code_computes_from_widths_are_those_of_the_small_network(scale: str):
    model = seeded(lambda: ByWidth(SCALES[scale]))
    plan = plan_of(model)
    assert plan.small_shape("weight") == (16, 16, 3, 3)
    checked = check_plan(model, X, plan)
    assert (checked.how, checked.where) == ("masked base with the small network's own numbers", "")
    assert checked.error is not None
    assert checked.error <= ROUNDING
    for name, wrong in corrupted(plan):
        if name.startswith("weight"):
            assert error_of(model, wrong) > DIFFERENT, name


class Checking(ByWidth):
    """Refuses a number that is not its width, as the small network's own is not in the masked base."""

    def mid(self, x: Tensor) -> Tensor:
        if int(torch.full((), x.shape[1])) != x.shape[1]:
            raise ValueError("a wrong width")
        return super().mid(x)


def test_code_that_refuses_the_numbers_of_the_small_network_keeps_its_width():
    model = seeded(lambda: Checking(SCALES["filled in"]))
    with pytest.raises(AdjoinedError, match="does not compute what the base network does"):
        check_plan(model, X, plan_of(model))
    plan = plan_of(model, check=True)
    assert plan.small_shape("weight")[1] == 32
    assert check_plan(model, X, plan).how == "masked base"


class Keeping(Net):
    """Spikes: adds to a potential that it keeps between its calls."""

    potential: Tensor | None = None

    def mid(self, x: Tensor) -> Tensor:
        self.potential = x if self.potential is None else 0.9 * self.potential + x
        return self.potential


def test_every_run_of_a_check_begins_with_the_state_that_the_model_has():
    model = seeded(Keeping)
    plan = plan_of(model)
    right(model, plan)
    assert error_of(model, next(wrong for name, wrong in corrupted(plan) if name == "body.weight 1")) > DIFFERENT


class Registers(nn.Sequential):
    """Three learned tokens beside the places of a picture."""

    def forward(self, x: Tensor) -> Tensor:
        stem, tokens, block, head = self
        places = stem(x).flatten(2).transpose(1, 2)
        return head(block(torch.cat([tokens.weight.expand(len(x), -1, -1), places], 1))[:, 0])


def registers() -> nn.Module:
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
    return Registers(nn.Conv2d(3, 32, 1), nn.Embedding(3, 32), block, nn.Linear(32, 5))


def test_a_softmax_over_learned_tokens_does_not_hide_the_scale_of_the_attention():
    """At alpha 3, four heads of eight features keep three each, with another scale."""
    model, x = seeded(registers), images(2, 3, 8, 8)
    checked = check_plan(model, x, make_plan(model, x, alpha=3, round_to=1))
    assert checked.how == "strict second run"
    assert "'2.self_attn': 1/√d" in checked.where
