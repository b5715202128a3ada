"""The code of the guides runs as it is, and trains both networks."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import adjoined

GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "tasks.md"
BLOCKS = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


def test_the_guide_has_code_for_every_task():
    assert [title.split(":")[0] for title, _ in BLOCKS[:5]] == [
        "Pose", "Super-resolution", "Audio tagging", "Volumes", "Metric learning",
    ]  # fmt: skip


@pytest.mark.parametrize(("title", "code"), BLOCKS, ids=[title for title, _ in BLOCKS])
def test_the_code_of_a_task_runs(title: str, code: str):
    torch.manual_seed(0)
    names: dict[str, object] = {}
    exec(compile(code, f"{GUIDE.name}, {title}", "exec"), names)
    net, loss = names["net"], names["loss"]
    assert isinstance(net, adjoined.AdjoinedNetwork)
    assert isinstance(loss, torch.Tensor)
    assert loss.isfinite()
    assert all(each.grad is not None for each in net.parameters())
    kept = [sum(each.numel() for each in network.parameters()) for network in (net.base, net.eval().extract())]
    assert kept[1] < 0.6 * kept[0]


def test_a_user_s_loop_inherits_from_a_base_as_the_guide_says():
    torch.manual_seed(0)
    page = (GUIDE.parent / "pretrained.md").read_text()
    _, start, step = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 2),
    )  # fmt: skip
    classes = torch.arange(400) % 2
    images = torch.randn(400, 3, 8, 8) + classes[:, None, None, None]
    names: dict[str, Any] = {"model": model, "images": images, "classes": classes, "x": images[:64], "y": classes[:64]}
    exec(compile(start, "pretrained.md", "exec"), names)
    net = names["net"]
    before = [each.clone() for each in net.parameters()]
    exec(compile(step, "pretrained.md, step", "exec"), names)
    names["loss"].backward()
    names["optimizer"].step()
    assert all(not torch.equal(old, new) for old, new in zip(before, net.parameters(), strict=True))
    kept = [sum(each.numel() for each in network.parameters()) for network in (net.base, net.eval().extract())]
    assert kept[1] < 0.6 * kept[0]
