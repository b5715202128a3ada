"""Laws 1, 3 and 4: what the joint network computes and holds, and everything that wraps, copies or stores it."""

from __future__ import annotations

import copy
import io
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from zoo import Concatenated, Flattened, Residual, TwoGroups, images, lively, plan_of, spread, torchvision_model

from adjoined import AdjoinedNetwork, SlicePlan, adjoin, adjoint_loss

OWN = {"residual": Residual, "two groups": TwoGroups, "flattened": Flattened, "concatenated": Concatenated}
FAMILY = (2, 4, 8)
X, Y = images(6, 3, 8, 8), torch.arange(6) % 5


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in eval mode with lively norms, and an input for it; float32."""
    if name not in OWN:
        x = images(2, 3, 64, 64)
        return lively(torchvision_model(name, seed=seed), x).float(), x
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lively(OWN[name](), X).float(), X


def joint(*, alpha: float | tuple[float, ...] = 4, seed: int = 0) -> AdjoinedNetwork:
    """The residual network of the zoo with its small networks, in train mode."""
    return adjoin(build("residual", seed)[0], X, alpha=alpha, round_to=1).train()


def private(model: nn.Module) -> set[str]:
    """Names of everything that a small network has for itself: its norms."""
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    return {f"{name}.{own}" for name, module in norms for own in module.state_dict()}


def same(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit."""
    return a.dtype == b.dtype and torch.equal(a, b)


def step(net: AdjoinedNetwork, x: Tensor = X) -> None:
    """Move every weight and statistic, those of base and small norms differently."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    p, *q = net.train()(x)
    adjoint_loss(p, q, Y[: len(x)], progress=1.0).backward()
    optimizer.step()
    optimizer.zero_grad()
    net.eval()


# ---- law 1: alpha = 1 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OWN, "resnet18", "mobilenet_v2", "googlenet"])
def test_alpha_1_is_the_base_to_the_bit(name: str):
    model, x = build(name)
    net = adjoin(model, x, alpha=1)
    assert not net.plan.tensors
    with torch.no_grad():
        alone = model(x)
        for logits in (*net(x), net.small(x), net.extract()(x)):
            assert same(logits, alone)


@pytest.mark.parametrize("name", ["residual", "two groups", "resnet18", "densenet121"])
def test_alpha_1_is_the_base_to_the_bit_in_train_mode(name: str):
    model, x = build(name)
    before = copy.deepcopy(model.state_dict())
    net = adjoin(model, x, alpha=1).train()
    p, q = net(x)
    assert same(p, q)
    assert any(not same(before[key], value) for key, value in model.state_dict().items())
    for key, statistic in net.smalls[0].state_dict().items():
        assert same(statistic, model.state_dict()[key]), key


# ---- law 3: extract ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*OWN, "resnet18", "densenet121", "mobilenet_v2", "resnext50_32x4d"])
def test_extracted_network_equals_the_branch_to_the_bit(name: str):
    model, x = build(name)
    net = adjoin(model, x, alpha=4)
    small = net.extract()
    with torch.no_grad():
        p, q = net(x)
        assert not torch.allclose(p, q)
        assert same(small(x), q)
        assert same(net.small(x), q)


def test_extracted_family_equals_its_branches_after_training():
    net = joint(alpha=FAMILY)
    step(net)
    with torch.no_grad():
        outputs = net(X)
        assert len(outputs) == 1 + len(FAMILY)
        assert same(outputs[0], net.base(X))
        for which in range(len(FAMILY)):
            assert same(net.extract(which)(X), outputs[1 + which])
            assert same(net.small(X, which=which), outputs[1 + which])
    widths = [net.extract(which).get_submodule("stem").weight.shape[0] for which in range(len(FAMILY))]  # pyright: ignore
    assert widths == [8, 4, 2]


def test_extracted_network_stands_alone():
    net = joint()
    step(net)
    small = net.extract()
    assert type(small) is Residual
    for module in small.modules():
        assert not type(module).__module__.startswith("adjoined")
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    with torch.no_grad():
        before = small(X)
        for tensor in net.state_dict().values():
            tensor.zero_()
        assert same(small(X), before)
    assert small.training is False
    assert net.train().extract().training is True


@pytest.mark.parametrize("alpha", [4, FAMILY])
def test_saved_state_and_plan_rebuild_all_networks(alpha: Any, tmp_path: Path):
    net = joint(alpha=alpha)
    step(net)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    texts = [json.dumps(plan.to_json()) for plan in net.plans]
    fresh, _ = build("residual", seed=1)
    again = adjoin(fresh, X, plan=[SlicePlan.from_json(json.loads(text)) for text in texts])
    with torch.no_grad():
        assert not same(again(X)[1], net(X)[1])
        again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        for which, (got, expected) in enumerate(zip(again(X), net(X), strict=True)):
            assert same(got, expected)
            if which:
                assert same(again.extract(which - 1)(X), expected)


def test_saved_small_network_loads_into_a_fresh_skeleton(tmp_path: Path):
    net = joint()
    step(net)
    torch.save(net.extract().state_dict(), tmp_path / "small.pt")
    net.plan.save(tmp_path / "plan.json")
    small = SlicePlan.load(tmp_path / "plan.json").apply(build("residual", seed=1)[0])
    small.load_state_dict(torch.load(tmp_path / "small.pt", weights_only=True))
    with torch.no_grad():
        assert same(small(X), net(X)[1])


# ---- law 4: state --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [4, FAMILY])
def test_state_holds_every_shared_weight_once(alpha: Any):
    model, _ = build("residual")
    net = adjoin(model, X, alpha=alpha, round_to=1)
    assert net.base is model
    own = {f"smalls.{which}.{name}" for which in range(len(net.plans)) for name in private(model)}
    assert set(net.state_dict()) == {f"base.{name}" for name in model.state_dict()} | own
    places = Counter(tensor.untyped_storage().data_ptr() for tensor in net.state_dict().values())
    assert set(places.values()) == {1}
    for name, parameter in model.named_parameters():
        assert net.get_parameter(f"base.{name}") is parameter
    for which, plan in enumerate(net.plans):
        for name, tensor in net.smalls[which].state_dict().items():
            assert tuple(tensor.shape) == plan.small_shape(name)


def test_optimizer_sees_every_parameter_once():
    net = joint(alpha=FAMILY)
    listed = [id(parameter) for parameter in net.parameters()]
    assert len(listed) == len(set(listed))
    assert {id(parameter) for parameter in net.base.parameters()} <= set(listed)
    affine = sum(1 for name in private(net.base) if name.endswith(("weight", "bias")))
    assert len(listed) == len(list(net.base.parameters())) + len(FAMILY) * affine


def test_small_norms_start_as_slices_of_the_base_and_go_their_own_way():
    net = joint()
    for name, tensor in net.smalls[0].state_dict().items():
        (index,) = net.plan.indices(name) or (None,)
        base = net.base.state_dict()[name]
        assert same(tensor, base if index is None else base[index.tolist()])
    step(net)
    for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.running_mean", "norm2.running_var"):
        (index,) = net.plan.indices(name)
        assert index is not None
        assert not same(net.smalls[0].state_dict()[name], net.base.state_dict()[name][index.tolist()]), name


def test_mode_reaches_every_network():
    net = joint()
    assert net.training
    assert net.smalls[0].training
    net.eval()
    assert not any(module.training for module in net.modules())
    assert not adjoin(build("residual")[0].eval(), X).training
    assert adjoin(build("residual")[0].train(), X).training


# ---- law 4: gradients, whatever wraps the network ------------------------------------------------------------------


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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "mobilenet_v2"])
def test_gradient_of_large_networks_outside_the_slice_is_the_base_s_alone(name: str):
    model, x = build(name)
    net = adjoin(model.eval(), x, alpha=FAMILY)
    alone = copy.deepcopy(model)
    alone(x).square().mean().backward()
    sum(out.square().mean() for out in net(x)).backward()
    norms = private(model)
    for weight, parameter in alone.named_parameters():
        inside = sum(spread(plan, weight, torch.ones(plan.small_shape(weight))) for plan in net.plans)
        got = net.base.get_parameter(weight).grad
        assert got is not None
        assert parameter.grad is not None
        assert same(got[inside == 0], parameter.grad[inside == 0]), weight
        assert weight in norms or not same(got, parameter.grad), weight


def test_gradient_outside_the_slice_is_the_base_s_alone_to_the_bit():
    net = joint(alpha=FAMILY)
    alone = copy.deepcopy(net.base)
    p, *q = net(X)
    (p.square().mean() + sum(each.square().mean() for each in q)).backward()
    alone(X).square().mean().backward()
    for name, parameter in alone.named_parameters():
        inside = sum(spread(plan, name, torch.ones(plan.small_shape(name))) for plan in net.plans)
        got = net.base.get_parameter(name).grad
        assert got is not None
        assert parameter.grad is not None
        assert same(got[inside == 0], parameter.grad[inside == 0]), name
        assert same(got, parameter.grad) == (name in private(net.base)), name


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
    sum(out.square().mean() for out in net(X)).backward()
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


def test_whole_network_goes_through_torch_save():
    net = joint().eval()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        assert same(again(X)[1], net(X)[1])


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
    average.eval()
    with torch.no_grad():
        p, q = average(X)
        assert not same(q, net(X)[1])
        assert same(average.module.base(X), p)
        assert same(average.module.extract()(X), q)
    check_gradients(average.module.double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype):
    net = joint().to(dtype).eval()
    with torch.no_grad():
        p, q = net(X.to(dtype))
        assert p.dtype == q.dtype == dtype
        assert same(net.extract()(X.to(dtype)), q)
    assert {tensor.dtype for tensor in net.parameters()} == {dtype}


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


def test_inference_mode():
    net = joint().eval()
    with torch.inference_mode():
        p, q = net(X)
    assert not p.requires_grad
    with torch.no_grad():
        assert same(net(X)[1], q)


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
    options = {"growth_rate": 8, "block_config": (2, 2), "num_init_features": 16, "num_classes": 5}
    from torchvision.models import DenseNet

    x = images(6, 3, 32, 32)
    torch.manual_seed(0)
    plain = DenseNet(**options)  # pyright: ignore[reportArgumentType]
    saving = DenseNet(**options, memory_efficient=True)  # pyright: ignore[reportArgumentType]
    saving.load_state_dict(plain.state_dict())
    found = []
    for model in (plain, saving):
        net = adjoin(model, x, round_to=1).train()
        p, q = net(x)
        (p.square().mean() + q.square().mean()).backward()
        found.append({name: parameter.grad for name, parameter in net.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=lambda m, n=name: f"{n}: {m}")


def test_plan_of_the_same_settings_is_the_same():
    model, _ = build("residual")
    assert plan_of(model) == plan_of(copy.deepcopy(model))
