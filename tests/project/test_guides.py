"""The code in the guide to other tasks runs as it is, and trains both networks."""

import re
from pathlib import Path

import pytest
import torch

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
