"""The small networks' private last layer: where it is, what trains it, how it is extracted and stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import adjoined
from adjoined import AdjoinedError, AdjoinedNetwork, adjoint_loss
from adjoined.slicing import Slicer
from adjoined.training import train
from pairs import FAMILY, X, Y, build, joint, same, step
from tiny_runs import QUIET, TINY
from unchecked import adjoin


def with_head(alpha: Any = 4) -> AdjoinedNetwork:
    model, x = build("residual")
    return adjoin(model, x, alpha=alpha, round_to=1, private_head=True).train()


def head_of(net: AdjoinedNetwork) -> tuple[Tensor, Tensor, list[int]]:
    """Return the last weight of base and small network, and the inputs that the small one has."""
    name = Slicer(net.base, X).last_layer()
    index = net.plan.indices(f"{name}.weight")[1]
    assert index is not None
    base, small = net.base.get_parameter(f"{name}.weight"), net.smalls[0].get_parameter(f"{name}.weight")
    return base, small, index.tolist()


def test_it_begins_as_the_slice_and_goes_its_own_way():
    net = with_head()
    base, small, kept = head_of(net)
    assert same(small, base[:, kept])
    step(net)
    assert not same(small, base[:, kept])


@pytest.mark.parametrize("alpha", [4, FAMILY])
def test_it_is_all_that_a_joint_network_gains(alpha: Any):
    def size(net: nn.Module) -> int:
        return sum(each.numel() for each in net.parameters())

    net, other = with_head(alpha), joint(alpha=alpha)
    heads = [net.extract(which).get_submodule(Slicer(net.base, X).last_layer()) for which in range(len(net.plans))]
    assert size(net) - size(other) == sum(map(size, heads)) > 0
    assert [size(net.extract(which)) for which in range(len(net.plans))] == [
        size(other.extract(which)) for which in range(len(net.plans))
    ]


def test_each_head_learns_only_from_its_own_network():
    net = with_head()
    base, small, _ = head_of(net)
    p, q = net(X)
    p.square().sum().backward(retain_graph=True)
    assert small.grad is None
    net.zero_grad()
    q.square().sum().backward()
    assert small.grad is not None
    assert base.grad is None
    assert net.base.get_submodule("stem").get_parameter("weight").grad is not None  # shared as ever


def test_extracted_networks_have_it():
    net = with_head(FAMILY)
    step(net)
    with torch.no_grad():
        for which, q in enumerate(net(X)[1:]):
            assert same(net.extract(which)(X), q)
            assert same(net.small(X, which=which), q)


def test_a_saved_state_holds_both_heads_and_resumes():
    net, other = with_head(), with_head()
    step(net)
    other.load_state_dict(net.state_dict())
    other.eval()
    with torch.no_grad():
        assert all(same(a, b) for a, b in zip(net(X), other(X), strict=True))
    with pytest.raises(RuntimeError, match="Missing key"):
        with_head().load_state_dict(joint().state_dict())


def test_a_network_without_a_linear_layer_has_its_last_convolution():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = adjoin(model, X, alpha=4, round_to=1, private_head=True)
    assert [name for name, _ in net.smalls.named_parameters()] == ["0.2.weight", "0.2.bias"]
    adjoint_loss(*net(X), Y, progress=1.0).backward()  # pyright: ignore[reportCallIssue]
    assert all(each.grad is not None for each in net.parameters())


def test_a_network_with_neither_is_refused():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.scale).mean((2, 3))

    assert adjoin(Scaled(), X).plan.alpha == 4
    with pytest.raises(AdjoinedError, match="Scaled: no last layer was found"):
        adjoin(Scaled(), X, private_head=True)


def test_a_model_that_is_one_layer_is_refused():
    with pytest.raises(AdjoinedError, match="Conv2d: no last layer was found"):
        adjoin(nn.Conv2d(3, 16, 3), X, private_head=True)


def test_further_modules_may_be_private():
    model, x = build("residual")
    plan = adjoin(model, x, alpha=4, round_to=1).plan
    net = AdjoinedNetwork(model, [plan], private=("ste?",)).train()
    assert "0.stem.weight" in dict(net.smalls.named_parameters())
    step(net)
    with torch.no_grad():
        assert same(net.extract()(X), net(X)[1])
    with pytest.raises(AdjoinedError, match=r"private='stam': no module of the model has this name.*'stem'"):
        AdjoinedNetwork(model, [plan], private=("stam",))


def test_a_tied_weight_stays_shared_where_it_is_not_the_head():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
            self.stem = nn.Conv2d(3, 16, 3)
            self.last.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(self.stem(x).mean((2, 3))).relu())

    net = adjoin(Tied(), X, alpha=4, round_to=1, private_head=True)
    names = [name for name, _ in net.smalls.named_parameters()]
    assert names == ["0.last.weight"]
    p, q = net(X)
    with torch.no_grad():
        net.smalls[0].get_parameter("last.weight").zero_()
    assert same(net(X)[0], p)
    assert not same(net(X)[1], q)
    assert same(net.extract()(X), net(X)[1])


@pytest.mark.parametrize("method", ["adjoint", "slimmable"])
def test_a_run_keeps_it(method: str, tmp_path: Path):
    settings = TINY.for_method(method, private_head=True)
    train(settings, tmp_path / "run", console=QUIET)
    base, small = (adjoined.load(tmp_path / "run", which) for which in ("base", "small"))
    name = Slicer(base, torch.zeros(1, 1, 8, 8)).last_layer()
    wide, narrow = base.get_parameter(f"{name}.weight"), small.get_parameter(f"{name}.weight")
    assert narrow.shape[1] < wide.shape[1]
    assert not torch.allclose(narrow, wide[:, : narrow.shape[1]])
