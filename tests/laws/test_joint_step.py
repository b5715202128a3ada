"""The whole joint step, forward, loss and backward: compiled, channels-last, in bfloat16; norms synchronised."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedNetwork, adjoint_loss
from pairs import X, Y, joint, same


@pytest.fixture(autouse=True)
def forget_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def loss_of(net: AdjoinedNetwork, x: Tensor, y: Tensor) -> Tensor:
    p, q = net(x)
    return adjoint_loss(p, q, y, progress=0.4, detach=True, temperature=4, small_ce=1)


def taken(net: AdjoinedNetwork, loss: Any, x: Tensor) -> dict[str, Tensor]:
    """The loss of a training step and the gradient of every parameter."""
    net.train().zero_grad()
    value = loss(net, x, Y)
    value.backward()
    gradients = {name: each.grad for name, each in net.named_parameters() if each.grad is not None}
    assert gradients.keys() == {name for name, _ in net.named_parameters()}
    return {"loss": value.detach(), **gradients}


def close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, each in wanted.items():
        largest = each.abs().max().item()
        torch.testing.assert_close(got[name], each, rtol=0, atol=tolerance * largest, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_step_compiles_without_a_graph_break(backend: str):
    net = joint().double()
    x = X.double()
    wanted = taken(copy.deepcopy(net), loss_of, x)
    got = taken(net, torch.compile(loss_of, backend=backend, fullgraph=True), x)
    close(got, wanted, 1e-10)


def test_copies_of_a_compiled_network_run_their_own_weights():
    """Such as a moving average, which is a deep copy."""
    net = joint().eval()
    net.compile(backend="eager")
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):  # called, but not compiled
            for each in twin.parameters():
                each.zero_()
            assert all(each.eq(0).all() for each in twin(X))
            assert not any(each.eq(0).all() for each in net(X))


@pytest.mark.parametrize("autocast", [False, True])
def test_channels_last_step_is_the_step(autocast: bool):
    net = joint()
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        wanted = taken(net, loss_of, X)
        got = taken(last, loss_of, X.contiguous(memory_format=torch.channels_last))
    close(got, wanted, 5e-2 if autocast else 1e-4)


def test_norms_of_all_networks_are_synchronised():
    """Forward in training needs a GPU; in evaluation a synchronised norm is a norm."""
    net = joint().eval()
    outputs = net(X)
    names = list(net.state_dict())
    norms = [name for name, each in net.named_modules() if isinstance(each, nn.BatchNorm2d)]
    assert any(name.startswith("smalls.") for name in norms)
    nn.SyncBatchNorm.convert_sync_batchnorm(net)  # in place, except for a norm that is the whole module
    assert [name for name, each in net.named_modules() if isinstance(each, nn.SyncBatchNorm)] == norms
    assert list(net.state_dict()) == names
    for got, wanted in zip(net(X), outputs, strict=True):
        torch.testing.assert_close(got, wanted)
    assert same(net.extract()(X), net(X)[1])
