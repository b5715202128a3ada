"""Laws 1, 3 and 4: what the joint network computes, holds and extracts, and how it is stored."""

from __future__ import annotations

import copy
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from adjoined import SlicePlan
from pairs import FAMILY, OWN, X, build, joint, private, same, step
from unchecked import adjoin
from zoo import Residual, plan_of

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


@pytest.mark.parametrize("name", ["residual", "two groups", "resnet18", "densenet"])
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


@pytest.mark.parametrize("name", [*OWN, "resnet18", "densenet", "mobilenet_v2", "resnext50_32x4d"])
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


def test_whole_network_goes_through_torch_save():
    net = joint().eval()
    buffer = io.BytesIO()
    torch.save(net, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    with torch.no_grad():
        assert same(again(X)[1], net(X)[1])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype):
    net = joint().to(dtype).eval()
    with torch.no_grad():
        p, q = net(X.to(dtype))
        assert p.dtype == q.dtype == dtype
        assert same(net.extract()(X.to(dtype)), q)
    assert {tensor.dtype for tensor in net.parameters()} == {dtype}


def test_inference_mode():
    net = joint().eval()
    with torch.inference_mode():
        p, q = net(X)
    assert not p.requires_grad
    with torch.no_grad():
        assert same(net(X)[1], q)


def test_tensors_in_place_of_weights_do_not_become_parameters():
    """FSDP1 with `use_orig_params=True` puts views of its own there and registers those that pass for parameters."""
    net = joint(alpha=1)
    weights = {name: each.detach() * 2 for name, each in net.named_parameters()}
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            outputs = torch.func.functional_call(net, weights, (X,))
        assert all(type(each) is torch.Tensor and not isinstance(each, nn.Parameter) for each in weights.values())
    net.load_state_dict(weights, strict=False)
    with torch.no_grad():
        assert all(map(same, outputs, net(X)))


def test_plan_of_the_same_settings_is_the_same():
    model, _ = build("residual")
    assert plan_of(model) == plan_of(copy.deepcopy(model))


# ---- what users do with it -------------------------------------------------------------------------------------------


def test_loops_over_modules_meet_every_weight_once_and_none_that_is_none():
    net = joint(alpha=FAMILY)
    own = [
        p for m in net.modules() for name in ("weight", "bias") if (p := getattr(m, name, ())) != () and p is not None
    ]
    assert Counter(map(id, own)) == Counter(map(id, net.parameters()))
    assert [name for name, m in net.named_modules() if m._parameters.get("weight", X) is None] == []
    held = nn.ModuleDict({"net": net})
    assert {name for name, _ in held.named_modules()} == {"", *(f"net.{n}".rstrip(".") for n, _ in net.named_modules())}
    assert {name for name, _ in net.named_buffers()} >= {f"smalls.2.{name}" for name, _ in net.base.named_buffers()}


def test_loops_over_modules_meet_attention_and_recurrent_layers_once():
    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.attention = nn.Conv2d(3, 32, 3), nn.MultiheadAttention(32, 2, batch_first=True)
            self.recurrent, self.head = nn.LSTM(32, 32, batch_first=True), nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.recurrent(self.attention(x, x, x)[0])[0].mean(1))

    net = adjoin(Attentive(), X, alpha=2, round_to=1)
    assert net.plan.small_shape("attention.in_proj_weight") == (48, 16)
    for module in net.modules():  # as code that initialises does
        if isinstance(module, nn.MultiheadAttention):
            nn.init.zeros_(module.in_proj_weight)
            nn.init.xavier_uniform_(module.out_proj.weight)
        if isinstance(module, nn.LSTM):
            nn.init.orthogonal_(module.weight_hh_l0)
    p, q = net.eval()(X)
    assert same(net.extract()(X), q)
    assert not net.base.attention.in_proj_weight.any()
    assert same(p, net.base(X))


class Noisy(nn.Conv2d):
    """A layer that does something else in train mode."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * (2 if self.training else 1)


def test_loops_over_modules_restore_the_mode_of_every_part_that_has_one():
    """As trainers do around a validation."""

    class Attentive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.noisy, self.attention = Noisy(3, 32, 3), nn.MultiheadAttention(32, 2, dropout=0.1, batch_first=True)
            self.head = nn.Linear(32, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.noisy(x).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x)[0].mean(1))

    net = adjoin(Attentive(), X, alpha=2)
    modes = {name: module.training for name, module in net.named_modules()}
    net.eval()
    for name, module in net.named_modules():
        module.training = modes[name]
    assert all(net.smalls[0].get_submodule(name).training for name in ("", "noisy", "attention"))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_traced_and_stored_it_computes_the_same():
    net = joint().eval()
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(net, X), file)
    file.seek(0)
    with torch.no_grad():
        for got, expected in zip(torch.jit.load(file)(X), net(X), strict=True):
            torch.testing.assert_close(got, expected)


class Unregistered(nn.Module):
    """Layers and weights that it does not register."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 5, 3)
        self.layers = [nn.Conv2d(32, 32, 1), nn.ReLU()]
        self.more = {"scale": (torch.ones(32, 1, 1, requires_grad=True),)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x * self.more["scale"][0])


def test_weights_that_a_model_does_not_register_are_the_same_in_all_networks():
    net = adjoin(Unregistered(), X, alpha=2)
    for each in (net, copy.deepcopy(net)):
        base, small = each.base, each.smalls[0]
        hidden = [*base.layers[0].parameters(), base.more["scale"][0]]  # pyright: ignore
        assert all(a is b for a, b in zip(hidden, [*small.layers[0].parameters(), small.more["scale"][0]], strict=True))  # pyright: ignore
        before = each.small(X)
        with torch.no_grad():
            for weight in hidden:
                weight.mul_(1.5)
        assert not torch.allclose(each.small(X), before)
        assert same(each.small(X), each.extract()(X))
        assert not any(a is b for a in hidden for b in each.extract().layers[0].parameters())  # pyright: ignore
