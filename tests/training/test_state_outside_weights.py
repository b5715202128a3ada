"""What a network computes with, beside its weights: a run is refused before its first step, if that would be lost."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import adjoined
from adjoined import AdjoinedError
from adjoined.models import build
from adjoined.training import train
from tiny_runs import QUIET, with_code

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes, kind):
        super().__init__()
        self.kind, self.gain = kind, 1.0
        self.conv = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU())
        self.head = nn.Linear(32, num_classes)
        self.order = torch.randperm(64)
        self.register_buffer("kept", torch.randperm(64))
        self.register_buffer("scale", torch.ones(()), persistent=False)

    def forward(self, x):
        order = {"attribute": self.order, "buffer": self.kept}.get(self.kind, torch.arange(64))
        z = self.conv(x.flatten(2)[:, :, order].view_as(x)).mean((2, 3))
        return self.head(self.gain * self.scale * z)

class Extra(Net):
    def get_extra_state(self):
        return torch.tensor(self.gain) if self.kind == "tensor" else {"gain": self.gain}

    def set_extra_state(self, state):
        self.gain = state["gain"] if isinstance(state, dict) else float(state)

def make(num_classes, kind="none"):
    return (Extra if kind in ("tensor", "mapping") else Net)(num_classes, kind)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("attribute", r"base.json: built again .* computes something else.*could not be finished.*register_buffer"),
        ("mapping", r"_extra_state: the network has a state that is not a tensor.*could not be finished .*got dict"),
        ("buffer", ""),
        ("tensor", ""),
    ],
)
def test_a_run_whose_networks_cannot_be_built_again_is_refused_before_its_first_step(
    kind: str, message: str, tmp_path: Path
):
    settings = replace(with_code(tmp_path, CODE), model_options={"kind": kind}, epochs=1)
    if message:
        with pytest.raises(AdjoinedError, match=message):
            train(settings, tmp_path / "run", console=QUIET)
        assert not (tmp_path / "run").exists()
    else:
        train(settings, tmp_path / "run", console=QUIET)


def test_what_changed_in_your_own_loop_is_not_lost_silently(tmp_path: Path):
    settings = with_code(tmp_path, CODE)
    given = {"model": settings.model, "data": "digits", "limit": 4}
    options = {"num_classes": 10, "in_channels": 1, "image_size": 8}

    def joint(kind: str) -> adjoined.AdjoinedNetwork:
        return adjoined.adjoin(build(settings.model, **options, options={"kind": kind}), torch.zeros(1, 1, 8, 8))

    for name, value in (("gain", 2.0), ("scale", torch.tensor(2.0))):
        net = joint("none")
        setattr(net.base, name, value)
        with pytest.raises(AdjoinedError, match=r"base.json: built again from the saved weights"):
            adjoined.save(net, tmp_path / "run", **given, model_options={"kind": "none"})
        assert not (tmp_path / "run").exists()
    net = joint("mapping")
    with pytest.raises(AdjoinedError, match=r"_extra_state: the network has a state that is not a tensor"):
        adjoined.save(net, tmp_path / "run", **given, model_options={"kind": "mapping"})
    net = joint("tensor")
    net.base.gain = 2.0
    adjoined.save(net, tmp_path / "run", **given, model_options={"kind": "tensor"})
    assert adjoined.load(tmp_path / "run", "base", model=settings.model).gain == 2.0


@pytest.mark.parametrize("method", ["standard", "adjoint", "replay"])
@pytest.mark.parametrize("kind", ["gain", "scale"])
def test_a_run_stops_after_an_epoch_that_changed_more_than_the_state(kind: str, method: str, tmp_path: Path):
    change = {"gain": "self.gain = self.gain * 1.1", "scale": "self.scale.mul_(1.1)"}[kind]
    code = CODE.replace("        order = ", f"        if self.training:\n            {change}\n        order = ")
    settings = replace(with_code(tmp_path, code).for_method(method), epochs=2)
    with pytest.raises(AdjoinedError, match=r"base.json: built again .* computes something else.*register_buffer"):
        train(settings, tmp_path / "run", console=QUIET)
    assert not list((tmp_path / "run").rglob("*.ckpt"))
    kept = code.replace(", persistent=False", "").replace("self.gain * 1.1", "self.gain")
    train(replace(with_code(tmp_path, kept).for_method(method), epochs=2), tmp_path / "kept", console=QUIET)
