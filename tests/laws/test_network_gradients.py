"""Law 4: one gradient for every shared weight, the sum over all networks, whatever wraps the joint network."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from adjoined import AdjoinedNetwork, adjoint_loss
from pairs import FAMILY, X, Y, build, joint, private, same, step
from unchecked import adjoin
from zoo import conv, images, seeded, spread


def cotangents(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """How the adjoint loss changes with every network's logits; taken apart from the network."""
    leaves = [out.detach().double().requires_grad_() for out in outputs]
    loss = adjoint_loss(leaves[0], leaves[1:], Y, progress=0.4)
    return tuple(torch.autograd.grad(loss, leaves))


def expected_gradients(net: AdjoinedNetwork, x: Tensor, autocast: bool = False) -> dict[str, Tensor]:
    """The gradient of every parameter of the joint network, from independent networks."""
    alone = [copy.deepcopy(net.base), *(net.extract(which) for which in range(len(net.plans)))]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        outputs = tuple(module(x) for module in alone)
    torch.autograd.backward(outputs, [c.to(out.dtype) for c, out in zip(cotangents(outputs), outputs, strict=True)])
    norms = private(net.base)
    expected = {}
    for name, parameter in alone[0].named_parameters():
        assert parameter.grad is not None
        expected[f"base.{name}"] = parameter.grad.clone()
        for which, plan in enumerate(net.plans):
            part = alone[1 + which].get_parameter(name).grad
            assert part is not None
            if name in norms:
                expected[f"smalls.{which}.{name}"] = part
            else:
                expected[f"base.{name}"] += spread(plan, name, part)
    return expected


def check_gradients(net: AdjoinedNetwork, wrapped: Any = None, *, autocast: bool = False, rounds: int = 1) -> None:
    """One backward pass (or several) of the network, maybe wrapped, leaves the sum of the independent gradients."""
    x = X.to(next(net.parameters()).dtype)
    net.train().zero_grad()
    state = copy.deepcopy(net.state_dict())
    expected = expected_gradients(net, x, autocast)
    for _ in range(rounds):
        net.load_state_dict(state)  # the norms' statistics
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs = (net if wrapped is None else wrapped)(x)
        torch.autograd.backward(outputs, [c.to(out.dtype) for c, out in zip(cotangents(outputs), outputs, strict=True)])
    got = dict(net.named_parameters())
    assert set(got) == set(expected)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-5}[x.dtype] if not autocast else 1e-2
    for name, gradient in expected.items():
        found = got[name].grad
        assert found is not None, name
        torch.testing.assert_close(
            found, rounds * gradient, rtol=0, atol=tolerance * gradient.abs().max().item(), msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("alpha", [1, 2.5, 4, FAMILY])
def test_gradient_is_the_sum_over_independent_networks(alpha: Any):
    check_gradients(joint(alpha=alpha).double())


@pytest.mark.parametrize("name", ["two groups", "concatenated"])
def test_gradient_is_the_sum_where_slices_have_several_pieces(name: str):
    model, x = build(name)
    net = adjoin(model, x, round_to=1).double()
    assert any(index and len(index.ranges) > 1 for kept in net.plan.tensors.values() for index in kept)
    check_gradients(net)


def of_the_base_alone(net: AdjoinedNetwork, alone: nn.Module) -> set[str]:
    """Check the gradients outside all slices; return the parameters whose whole gradient is that of the base alone."""
    found: set[str] = set()
    for name, parameter in alone.named_parameters():
        inside = sum(spread(plan, name, torch.ones(plan.small_shape(name))) for plan in net.plans)
        got = net.base.get_parameter(name).grad
        assert got is not None
        assert parameter.grad is not None
        assert same(got[inside == 0], parameter.grad[inside == 0]), name
        found |= {name} if same(got, parameter.grad) else set()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_gradient_of_large_networks_outside_the_slice_is_the_base_s_alone(name: str):
    model, x = build(name)
    net = adjoin(model.eval(), x, alpha=FAMILY)
    alone = copy.deepcopy(model)
    alone(x).square().mean().backward()
    torch.stack([out.square().mean() for out in net(x)]).sum().backward()
    assert of_the_base_alone(net, alone) <= private(model)


def test_gradient_outside_the_slice_is_the_base_s_alone_to_the_bit():
    net = joint(alpha=FAMILY)
    alone = copy.deepcopy(net.base)
    p, *q = net(X)
    (p.square().mean() + sum(each.square().mean() for each in q)).backward()
    alone(X).square().mean().backward()
    assert of_the_base_alone(net, alone) == private(net.base) & dict(alone.named_parameters()).keys()


def test_small_network_s_gradient_is_zero_outside_its_slice():
    net = joint()
    _, q = net(X)
    q.square().mean().backward()
    for name, parameter in net.base.named_parameters():
        if name in private(net.base):
            assert parameter.grad is None, name  # the base's norms took no part
            continue
        inside = spread(net.plan, name, torch.ones(net.plan.small_shape(name))) > 0
        assert parameter.grad is not None, name
        assert parameter.grad[inside].any(), name
        assert not parameter.grad[~inside].any(), name


def test_one_step_reaches_every_parameter_and_stays_finite():
    net = joint(alpha=FAMILY)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    p, *q = net(X)
    loss = adjoint_loss(p, q, Y, progress=0.5)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    for name, parameter in net.named_parameters():
        assert parameter.isfinite().all(), name
        assert not same(parameter, before[name]), name


def test_frozen_weights_get_no_gradient_and_the_others_theirs():
    net = joint()
    net.base.get_submodule("stem").requires_grad_(False)
    p, q = net(X)
    (p.square().mean() + q.square().mean()).backward()
    for name, parameter in net.named_parameters():
        assert (parameter.grad is None) == name.startswith("base.stem."), name


def test_accumulated_gradients_add_up():
    check_gradients(joint().double(), rounds=3)


def test_two_backward_passes_through_one_graph_give_twice_the_gradient():
    net = joint()
    p, q = net(X)
    loss = p.square().mean() + q.square().mean()
    loss.backward(retain_graph=True)
    once = {name: parameter.grad.clone() for name, parameter in net.named_parameters() if parameter.grad is not None}
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_hooks_of_every_parameter_fire_once_a_step():
    net = joint(alpha=FAMILY)
    fired: Counter[str] = Counter()
    for name, parameter in net.named_parameters():
        parameter.register_hook(lambda _, name=name: fired.update([name]))
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.update([f"{name} accumulated"]))
    torch.stack([out.square().mean() for out in net(X)]).sum().backward()
    names = [name for name, _ in net.named_parameters()]
    assert fired == Counter(names + [f"{name} accumulated" for name in names])


def test_deep_copy_shares_nothing():
    net = joint().double()
    twin = copy.deepcopy(net)
    check_gradients(twin)
    assert all(parameter.grad is None for parameter in net.parameters())
    mine, theirs = ({t.data_ptr() for t in n.state_dict().values()} for n in (net, twin))
    assert not mine & theirs
    step(twin.float())
    assert same(net.state_dict()["base.stem.weight"].float(), joint().state_dict()["base.stem.weight"])


def test_pickle_keeps_everything():
    net = joint(alpha=FAMILY)
    step(net)
    again = pickle.loads(pickle.dumps(net))
    assert again.plans == net.plans
    with torch.no_grad():
        assert all(same(a, b) for a, b in zip(again(X), net(X), strict=True))
    check_gradients(again.double())


def test_averaged_copy_averages_every_weight_once():
    net = joint()
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.75), use_buffers=True)
    average.update_parameters(net)  # the first call copies
    start = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    step(net)
    average.update_parameters(net)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            expected = 0.75 * start[name] + 0.25 * tensor
            torch.testing.assert_close(average.module.state_dict()[name], expected)
    averaged = average.eval().module
    assert isinstance(averaged, AdjoinedNetwork)
    with torch.no_grad():
        p, q = average(X)
        assert not same(q, net(X)[1])
        assert same(averaged.base(X), p)
        assert same(averaged.extract()(X), q)
    check_gradients(averaged.double())


def test_channels_last():
    net = joint().to(memory_format=torch.channels_last)
    assert net.base.get_submodule("inner").weight.is_contiguous(memory_format=torch.channels_last)  # pyright: ignore
    check_gradients(net.double())


def test_autocast():
    net = joint()
    with torch.autocast("cpu", torch.bfloat16):
        p, q = net(X)
    assert p.dtype == q.dtype == torch.bfloat16
    check_gradients(net, autocast=True)
    assert {parameter.grad.dtype for parameter in net.parameters() if parameter.grad is not None} == {torch.float32}


def test_compiled_network():
    net = joint(alpha=(2, 4)).double()
    try:
        check_gradients(net, torch.compile(net, backend="aot_eager", fullgraph=True))
    finally:
        torch.compiler.reset()


def test_distributed_data_parallel_in_one_process(tmp_path: Path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        net = joint(alpha=FAMILY).double()
        fired: Counter[str] = Counter()
        for name, parameter in net.named_parameters():
            parameter.register_post_accumulate_grad_hook(lambda _, name=name: fired.update([name]))
        wrapped = DistributedDataParallel(net)
        check_gradients(net, wrapped)
        assert fired == Counter(name for name, _ in net.named_parameters())
    finally:
        torch.distributed.destroy_process_group()


def test_checkpointed_activations():
    options: Any = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 16, "num_classes": 5}
    from torchvision.models import DenseNet

    x = images(6, 3, 32, 32)
    plain = seeded(lambda: DenseNet(**options))
    saving = DenseNet(**options, memory_efficient=True)
    saving.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, saving):
        net = adjoin(model, x, round_to=1).train()
        p, q = net(x)
        (p.square().mean() + q.square().mean()).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


class Checkpointed(nn.Module):
    """A block that is run again in the backward pass, and reads weights of its own, and of others, by itself."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 32), nn.Linear(32, 5)
        self.scale, self.reentrant = nn.Parameter(torch.rand(32, 1, 1) + 0.5), reentrant

    def block(self, x: Tensor) -> Tensor:
        x = self.body(x).relu() * self.scale
        return F.conv2d(x, self.body.weight, self.body.bias, padding=1).relu()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = checkpoint(self.block, x, use_reentrant=self.reentrant) if self.training else self.block(x)  # pyright: ignore
        return self.head(x.mean((2, 3)))


class Reversed(torch.autograd.Function):
    """Residual layers that keep no activation: the backward pass computes their input from their output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, one: nn.Module, two: nn.Module, *weights: Tensor) -> Tensor:
        ctx.layers, ctx.weights = (one, two), weights
        ctx.save_for_backward(out := residual(x, one, two))
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (one, two), (out,) = ctx.layers, ctx.saved_tensors
        upper, lower = out.chunk(2, 1)
        lower = lower - two(upper)
        x = torch.cat([upper - one(lower), lower], 1).detach().requires_grad_()
        with torch.enable_grad():
            found = torch.autograd.grad(residual(x, one, two), (x, *ctx.weights), gradients)
        return found[0], None, None, *found[1:]


def residual(x: Tensor, one: nn.Module, two: nn.Module) -> Tensor:
    upper, lower = x.chunk(2, 1)
    upper = upper + one(lower)
    return torch.cat([upper, lower + two(upper)], 1)


class Reversible(nn.Module):
    """A network whose middle is reversible in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.one, self.two, self.head = conv(3, 32), conv(16, 16), conv(16, 16), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.training:
            x = Reversed.apply(x, self.one, self.two, *self.one.parameters(), *self.two.parameters())  # pyright: ignore
        else:
            x = residual(x, self.one, self.two)
        return self.head(x.relu().mean((2, 3)))


def test_reversible_layers_run_again_in_the_backward_pass():
    net = adjoin(seeded(Reversible), X, alpha=(2, 4), round_to=1)
    assert net.plan.small_shape("one.weight") == (8, 8, 3, 3)
    found = []
    for training in (False, True):
        net.train(training).zero_grad()
        sum(out.square().sum() for out in net(X)).backward()  # pyright: ignore
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    with torch.no_grad():
        net.base.stem.weight.mul_(2)  # pyright: ignore
        assert same(net.extract().eval()(X), net.eval()(X)[1])


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # the call without gradients
@pytest.mark.parametrize("reentrant", [False, True])
def test_weights_that_checkpointed_code_reads_directly(reentrant: bool):
    net = adjoin(seeded(lambda: Checkpointed(reentrant)), X, alpha=(2, 4), round_to=1)
    found = []
    for training in (False, True):
        net.train(training).zero_grad()
        p, *q = net(X)
        with torch.no_grad():
            net(X * 2)
        (p.square().sum() + sum(each.square().sum() for each in q)).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")
    state = net.state_dict()
    assert [name for name in state if name.startswith("smalls")] == []
    twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
    assert not any("weight" in vars(part) for part in twin.modules())
    with torch.no_grad():
        net.base.body.weight.mul_(2)  # pyright: ignore
        assert same(net.extract().eval()(X), net.eval()(X)[1])
