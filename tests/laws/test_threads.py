"""Law 4: threads that share a joint network, and torch.func: right answers, and nothing is left in the modules."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adjoined import AdjoinedNetwork
from pairs import FAMILY, X, joint, same, step
from unchecked import adjoin
from zoo import conv, images, seeded

CALLS = 15


@pytest.fixture
def eager_switching() -> Iterator[None]:
    """Let threads take turns as often as Python can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(*calls: Callable[[], Tensor]) -> list[list[Tensor]]:
    """Make each call several times in its own thread, all at the same time; return the results."""
    gate, failures = threading.Barrier(len(calls)), []
    found: list[list[Tensor]] = [[] for _ in calls]

    def work(number: int) -> None:
        try:
            gate.wait()
            for _ in range(CALLS):
                found[number].append(calls[number]())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return found


def names(net: AdjoinedNetwork) -> list[str]:
    return [*net.state_dict(), *(name for name, _ in net.named_parameters())]


@pytest.mark.usefixtures("eager_switching")
@pytest.mark.parametrize("grad", [False, True])
def test_threads_get_what_each_would_get_alone(grad: bool):
    net = joint(alpha=FAMILY).eval()
    step(net)
    before, batches = names(net), [images(6, 3, 8, 8, seed=seed) for seed in range(4)]
    expected = [net(x) for x in batches]

    def all_of(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad):
            return torch.stack(net(x))

    def one_of(x: Tensor) -> Tensor:
        with torch.set_grad_enabled(grad):
            return net.small(x, which=2)

    def cut_out(x: Tensor) -> Tensor:
        return net.extract(1)(x)

    a, b, c, d = batches
    found = together(lambda: all_of(a), lambda: one_of(b), lambda: all_of(c), lambda: cut_out(d))
    wanted = [torch.stack(expected[0]), expected[1][3], torch.stack(expected[2]), expected[3][2]]
    for answers, answer in zip(found, wanted, strict=True):
        assert len(answers) == CALLS
        assert all(same(each, answer) for each in answers)
    assert names(net) == before
    torch.stack(net.train()(X)).sum().backward()
    assert all(parameter.is_leaf and parameter.grad is not None for parameter in net.parameters())


@pytest.mark.usefixtures("eager_switching")
def test_copies_for_threads_follow_the_network():
    """Its mode, its weights, private ones too, its hooks and its parts, when threads come again."""
    net = joint().eval()

    def answers() -> set[bytes]:
        def call() -> Tensor:
            with torch.no_grad():
                return net(X)[1]

        return {each.numpy().tobytes() for of_one in together(*[call] * 4) for each in of_one}

    def alone() -> set[bytes]:
        with torch.no_grad():
            return {net.extract()(X).numpy().tobytes()}

    assert answers() == alone()
    step(net)
    assert answers() == alone()
    net.load_state_dict({name: tensor * 1.5 for name, tensor in net.state_dict().items()}, assign=True)
    assert answers() == alone()
    small = net.smalls[0]
    before = answers()
    handle = small.get_submodule("norm1").register_forward_hook(lambda _m, _a, out: out * 2)
    doubled = answers()
    assert doubled == alone() != before
    handle.remove()
    assert answers() == alone()
    small.norm1 = nn.Identity()
    assert len(answers() | doubled) == 2


class Keeps(nn.Module):
    """What its forward keeps is read by the same forward: a thread that sees another's gives wrong answers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 32), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.stem(x).relu()
        return self.head(self.features.mean((2, 3)))


@pytest.mark.usefixtures("eager_switching")
def test_a_call_alone_keeps_its_state_in_the_small_network_itself():
    net = adjoin(seeded(Keeps), X, alpha=2, round_to=1).eval()
    with torch.no_grad():
        expected = net.small(X)
        for answers in together(*[lambda: net.small(X)] * 3):
            assert all(torch.equal(each, expected) for each in answers)
        net.smalls[0].features = None  # pyright: ignore[reportArgumentType]
        net.small(X)
    assert net.smalls[0].features.shape[1] == 16  # pyright: ignore


def logits_of(net: AdjoinedNetwork, x: Tensor) -> Tensor:
    return torch.stack(net(x))


TRANSFORMS: dict[str, Callable[[AdjoinedNetwork, Tensor], Any]] = {
    "vmap": lambda net, x: torch.func.vmap(lambda one: logits_of(net, one[None]))(x),
    "grad": lambda net, x: torch.func.grad(lambda v: logits_of(net, v).square().sum())(x),
    "jvp": lambda net, x: torch.func.jvp(lambda v: logits_of(net, v), (x,), (x,))[1],
    "vjp": lambda net, x: torch.func.vjp(lambda v: net.small(v), x)[1](torch.ones(len(x), 5, dtype=x.dtype))[0],
    "per sample": lambda net, x: torch.func.vmap(
        lambda one: torch.func.grad(
            lambda weights: torch.func.functional_call(net, weights, (one[None],))[1].square().sum()
        )(dict(net.named_parameters()))["base.stem.weight"]
    )(x),
    "hessian": lambda net, x: torch.func.hessian(lambda v: net.small(v).square().sum())(x[:1]),
}


class Apart(nn.Module):
    """The same outputs, computed by separate networks."""

    def __init__(self, net: AdjoinedNetwork) -> None:
        super().__init__()
        self.parts = nn.ModuleList([net.base, net.extract()])

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(part(x) for part in self.parts)

    def small(self, x: Tensor) -> Tensor:
        return self.parts[1](x)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, by forward mode
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(transform: str):
    net = joint().double().eval()
    x = X[:2].double()
    found = TRANSFORMS[transform](net, x)
    if transform == "per sample":
        weight = net.base.get_parameter("stem.weight")
        each = [torch.autograd.grad(net(one[None])[1].square().sum(), weight) for one in x]
        expected = torch.stack([gradient for (gradient,) in each])
    else:
        expected = TRANSFORMS[transform](Apart(net), x)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 0


def test_a_batch_of_gradients():
    net = joint().double().eval()
    weight, logits = net.base.get_parameter("stem.weight"), logits_of(net, X[:1].double()).flatten()
    each = torch.eye(len(logits), dtype=torch.float64)
    (batch,) = torch.autograd.grad(logits, weight, each, is_grads_batched=True, retain_graph=True)
    expected = [torch.autograd.grad(logits, weight, one, retain_graph=True)[0] for one in each]
    torch.testing.assert_close(batch, torch.stack(expected))
