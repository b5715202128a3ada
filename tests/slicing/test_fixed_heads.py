"""Heads whose number the code fixes: their features are narrowed instead."""

from __future__ import annotations

import pytest
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
