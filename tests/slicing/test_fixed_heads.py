"""Heads that cannot be dropped whole: their features are narrowed instead, or they stay wide."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adjoined.slicing import check_plan
from zoo import images, parameters, plan_of, seeded

X = images(2, 3, 8, 8)


class FourHeads(nn.Module):
    """Attention whose code fixes the number of heads, as an einops layer does, or that of their features, too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(3, 32, 2, 2), nn.Linear(32, 96), nn.Linear(32, 5)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        features = 8 if self.how == "features fixed" else -1
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, features).permute(2, 0, 3, 1, 4)
        if self.how == "fused":
            weighed = F.scaled_dot_product_attention(q, k, v)
        else:
            weighed = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.out(weighed.transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize(("how", "narrow"), [("", True), ("fused", True), ("features fixed", False)])
def test_heads_whose_number_the_code_fixes_are_narrowed_inside(how: str, narrow: bool):
    model = seeded(lambda: FourHeads(how))
    plan = plan_of(model, alpha=2)
    reasons = [group.reason for group in plan.groups if group.kept == group.width]
    assert any("the code asks for a size of" in reason for reason in reasons) != narrow
    assert (parameters(plan.apply(model)) < 0.4 * parameters(model)) == narrow
    assert check_plan(model, X, plan).how == "masked base"


class FadingHeads(FourHeads):
    """Attention with linear biases: each head looks less far, by a slope that the code computes."""

    def __init__(self, heads: int) -> None:
        super().__init__("")
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, x.shape[2] // self.heads).permute(2, 0, 3, 1, 4)
        slopes = 2.0 ** -torch.arange(1, self.heads + 1, dtype=x.dtype)
        places = torch.arange(x.shape[1])
        biases = -slopes[:, None, None] * (places[:, None] - places).abs()
        return self.out(((q @ k.transpose(-2, -1) + biases).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


@pytest.mark.parametrize("heads", [2, 4, 8])
def test_heads_that_differ_by_a_computed_number_are_narrowed_inside(heads: int):
    model = seeded(lambda: FadingHeads(heads))
    plan = plan_of(model, alpha=2)
    assert plan.small_shape("qkv.weight") == (48, 16)
    assert check_plan(model, X, plan).how == "masked base"


class WidthOfAnother(nn.Module):
    """The code fixes the number of heads, and takes their width from another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.query = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.body, self.head = nn.Conv2d(32, 48, 3, padding=1), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        query = self.query(x).view(n, 4, c // 4, h, w)
        x = (query * query.sum(2, keepdim=True).sigmoid()).view(n, c, h, w)
        return self.head(self.body(x).relu().mean((2, 3)))


def test_only_layers_as_wide_as_what_the_code_asks_for_stay_wide():
    model = seeded(WidthOfAnother)
    plan = plan_of(model, alpha=4, round_to=1)
    shapes = [plan.small_shape(f"{name}.weight")[:2] for name in ("stem", "query", "body")]
    assert shapes == [(32, 3), (32, 32), (12, 32)]
    assert (check_plan(model, X, plan).error or 0) < 1e-12


class PooledHeads(nn.Module):
    """As in MViT, the queries of all heads are normalised by the same layer, and all but the first are pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.qkv, self.out = nn.Conv2d(3, 32, 2, 2), nn.Linear(32, 96), nn.Linear(32, 5)
        self.pool, self.norm = nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        n, places, _ = x.shape
        q, k, v = self.qkv(x).view(n, places, 3, 4, -1).permute(2, 0, 3, 1, 4)
        pooled = self.pool(q.transpose(2, 3).reshape(n * 4, -1, 4, 4))
        q = self.norm(torch.cat([q[:, :, :1], pooled.view(n, 4, -1, 4).transpose(2, 3)], 2))
        return self.out(((q @ k.transpose(-2, -1)).softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


def test_heads_that_share_a_layer_are_narrowed_inside():
    """Dropped whole, the heads would tie all features of that layer; its norm's weights are not gates of the heads."""
    model = seeded(PooledHeads)
    plan = plan_of(model, alpha=4, round_to=1)
    assert [plan.small_shape(f"{name}.weight")[0] for name in ("pool", "norm", "qkv")] == [2, 2, 24]
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert (checked.error or 0) < 1e-12


class Areas(nn.Module):
    """Attention within areas of the picture, whose code takes three times the width of its input for the heads' own."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.features = heads, width // heads
        self.stem, self.qkv, self.out = nn.Conv2d(3, width, 3), nn.Conv2d(width, 3 * width, 1), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        areas = self.qkv(x).flatten(2).transpose(1, 2).reshape(2 * n, h * w // 2, 3 * c)
        rows = areas.view(2 * n, h * w // 2, self.heads, 3 * self.features)
        q, k, v = rows.permute(0, 2, 3, 1).split([self.features] * 3, 2)
        mixed = (v @ (q.transpose(-2, -1) @ k).softmax(-1).transpose(-2, -1)).permute(0, 3, 1, 2)
        return self.out(mixed.reshape(n, h * w, c).mean(1))


@pytest.mark.parametrize(("alpha", "kept"), [(2, 16), (2.5, 16), (3.5, 12), (4, 8)])
def test_what_code_multiplies_is_raised_to_what_the_heads_need(alpha: float, kept: int):
    """Four heads of eight features keep as many each; the 13 channels of the stem at alpha = 2.5 would not fit."""
    model = seeded(lambda: Areas(32, 4))
    plan = plan_of(model, alpha=alpha)
    assert plan.small_shape("stem.weight") == (kept, 3, 3, 3)
    assert plan.small_shape("qkv.weight") == (3 * kept, kept, 1, 1)
    assert check_plan(model, X, plan).error == pytest.approx(0, abs=1e-12)
