"""Models as users have them: wrapped, trained already, with layers that cannot be narrowed or store activations."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
import torch.fx
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm
from torch.optim.swa_utils import AveragedModel

from adjoined import AdjoinedError, AdjoinedNetwork
from adjoined.slicing import Kind, check_plan
from unchecked import adjoin, make_plan
from zoo import conv, images, parameters, seeded

X = images(2, 3, 8, 8)


def plain() -> nn.Sequential:
    return nn.Sequential(
        conv(3, 32), nn.BatchNorm2d(32), nn.ReLU(), conv(32, 64), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(64, 5),
    )  # fmt: skip


# ---- wrappers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, AveragedModel, lambda m: nn.DataParallel(AveragedModel(m))]
)
def test_the_model_is_taken_out_of_a_wrapper(wrap: Callable[[nn.Module], Any]):
    wrapped = wrap(seeded(plain))
    net = adjoin(wrapped, X, alpha=2, round_to=1)
    assert type(net.base) is nn.Sequential
    assert {id(p) for p in net.base.parameters()} == {id(p) for p in wrapped.parameters()}
    assert parameters(net.extract()) < 0.4 * parameters(net.base)
    assert make_plan(wrapped, X, alpha=2, round_to=1) == net.plan
    assert check_plan(wrapped, X, net.plan).error is not None
    assert parameters(net.plan.apply(wrapped)) == parameters(net.extract())
    assert type(AdjoinedNetwork(wrapped, [net.plan]).base) is nn.Sequential


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def torchao_int8() -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    model = plain()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    return model


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "joint": (lambda: adjoin(plain(), X), r"joint network already.*net\.base"),
    "joint inside": (lambda: nn.Sequential(adjoin(plain(), X)), r"'0' is a joint network already.*net\.extract"),
    "scripted": (lambda: torch.jit.script(plain()), "class Sequential.*before it was scripted.*load_state_dict"),
    "traced": (lambda: torch.jit.trace(plain().eval(), X), "class Sequential.*before it was scripted.*load_state_dict"),
    "exported": (lambda: torch.export.export(plain().eval(), (X,)), "exported program.*module that was exported"),
    "exported, as a module": (
        lambda: torch.export.export(plain().eval(), (X,)).module(),
        "exported program.*before it was exported",
    ),
    "exported inside": (
        lambda: nn.Sequential(torch.export.export(conv(3, 3).eval(), (X,)).module(), plain()),
        "'0' is an exported program.*before it was exported",
    ),
    "distributed": (lambda: DistributedDataParallel(plain()), "several processes.*wrap the joint network"),
    "quantized": (lambda: torch.ao.quantization.quantize_dynamic(plain(), {nn.Linear}), "'7' is quantized.*at the end"),
    "quantized by torchao": (lambda: torchao_int8(), r"'7\.weight' is quantized.*at the end"),
    "class": (lambda: nn.Linear, "not a model"),
}


@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:FutureWarning", "ignore:torch.ao:DeprecationWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_narrowed_is_refused_with_the_remedy(kind: str):
    make, message = REFUSED[kind]
    model = make()
    for call in (adjoin, make_plan):
        with pytest.raises(AdjoinedError, match=message):
            call(model, X, alpha=2)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_scripted_part_stays_wide_and_the_plan_says_how_to_narrow_it():
    model = nn.Sequential(conv(3, 3), torch.jit.script(plain()))
    reasons = [group.why for group in make_plan(model, X, alpha=2).groups if group.why is not None]
    wide = next(why for why in reasons if why.kind is Kind.TORCH_SCRIPT)
    assert "'1' (class Sequential)" in wide.text
    assert "load_state_dict" in wide.remedy
    python = plain()
    python.load_state_dict(model[1].state_dict())
    assert parameters(make_plan(python, X, alpha=2).apply(python)) < parameters(python)


# ---- a base that is changed afterwards ------------------------------------------------------------------------------


def other_head(base: nn.Sequential) -> None:
    base[7] = nn.Linear(64, 9)


def no_layer(base: nn.Sequential) -> None:
    base[3] = nn.Identity()


CHANGES: dict[str, tuple[Callable[[nn.Sequential], Any], str]] = {
    "pruned": (lambda base: prune.l1_unstructured(base[3], "weight", 0.5), r"3\.weight"),
    "parametrized": (lambda base: parametrizations.weight_norm(base[0]), r"0\.weight"),
    "other head": (other_head, r"7\.weight.*\(5, 64\).*\(9, 64\)"),
    "no layer": (no_layer, r"3\.weight"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_base_that_is_changed_afterwards_is_refused_at_the_next_call(change: str):
    apply, message = CHANGES[change]
    base = plain()
    net = adjoin(base, X, alpha=2, round_to=1)
    apply(base)
    for call in (net, net.small):
        with pytest.raises(AdjoinedError, match=f"{message}.*call adjoin again"):
            call(X)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("record", [torch.jit.script, torch.fx.symbolic_trace], ids=["script", "fx"])
def test_a_joint_network_is_not_recorded_as_one_graph_but_its_networks_are(record: Callable[[nn.Module], nn.Module]):
    net = adjoin(plain(), X, alpha=2, round_to=1).eval()
    for joint in (net, nn.Sequential(net)):
        with pytest.raises(AdjoinedError, match=r"cannot record a joint network.*net\.base and on net\.extract"):
            record(joint)
    with torch.no_grad():
        for module, expected in zip((net.base, net.extract()), net(X), strict=True):
            assert torch.allclose(record(module)(X), expected, atol=1e-6)


def test_a_function_is_applied_to_what_each_network_owns():
    net = adjoin(plain(), X, alpha=2, round_to=1)
    applied: list[nn.Module] = []

    def initialise(module: nn.Module) -> None:
        applied.append(module)
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            nn.init.constant_(module.weight, 2.0)

    assert net.apply(initialise) is net
    assert applied[-1] is net
    assert all(bool((p == 2).all()) for name, p in net.named_parameters() if name.endswith("weight"))
    assert all(any(module is each for each in applied) for module in net.modules())
    assert bool((net.extract().get_parameter("3.weight") == 2).all())


def test_a_default_device_is_the_model_s_business():
    """Users set it to "cuda"; "meta" shows here whether anything of ours is computed there."""
    expected = make_plan(model := seeded(plain), X, alpha=2.5)
    torch.set_default_device("meta")
    try:
        net = adjoin(model, X, alpha=2.5, order="l1", check=True)
        assert net.plan.tensors == expected.tensors
        assert [each.device.type for each in (*net(X), *net.extract().parameters())] == ["cpu"] * 10
    finally:
        torch.set_default_device(None)


# ---- models that have run ------------------------------------------------------------------------------------------


class Keeps(nn.Module):
    """Keeps activations, alone and in containers, as for attention maps and auxiliary losses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = conv(3, 32), conv(32, 48), nn.Linear(48, 5)
        self.maps: dict[str, list[Tensor]] = {"all": []}

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(self.stem(x).relu()).relu()
        self.maps["all"] = [self.features, self.features.mean(1)]
        return self.head(self.features.mean((2, 3)))


def test_stored_activations_do_no_harm():
    net = adjoin(seeded(Keeps), X, alpha=2, round_to=1)
    sum(out.square().sum() for out in net(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    small = net.extract()
    assert small.features.shape[1] == 24  # pyright: ignore
    twin = copy.deepcopy(net)
    average = AveragedModel(net)
    assert adjoin(net.base, X, alpha=2, round_to=1).plan == net.plan
    with torch.no_grad():
        expected = net(X)
        for again in (twin(X), average(X), (net.base(X), small(X))):
            assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))
    assert not {p.data_ptr() for p in twin.parameters()} & {p.data_ptr() for p in net.parameters()}


def pruned(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize(
    "wrap", [nn.utils.weight_norm, spectral_norm, lambda c: prune.l1_unstructured(c, "weight", 0.5)]
)
def test_hooks_that_compute_a_weight(wrap: Callable[[nn.Module], nn.Module]):
    model = nn.Sequential(conv(3, 32), nn.ReLU(), wrap(conv(32, 32)), nn.ReLU(), conv(32, 5))
    net = adjoin(seeded(lambda: model), X, alpha=2, round_to=1)
    sum(out.square().sum() for out in net(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    torch.optim.SGD(net.parameters(), lr=1e-3).step()
    small = net.eval().extract()
    assert parameters(small) < parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(small(X), net(X)[1])


# ---- layers that cannot be narrowed --------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A parametrization that holds a tensor of the weight's size, and no name by which to slice it."""

    def __init__(self) -> None:
        super().__init__()
        self.by = [torch.rand(32, 32, 1, 1)]

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.by[0]


class OnlyWide(nn.Conv2d):
    """Its code accepts only one width."""

    @property
    def out_channels(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 32

    @out_channels.setter
    def out_channels(self, value: int) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        if value != 32:
            raise LookupError("32 channels or nothing")


def mixed() -> nn.Module:
    layer = conv(32, 32)
    parametrize.register_parametrization(layer, "weight", Mixed())
    return layer


FIXED: dict[str, Callable[[], nn.Module]] = {
    "orthogonal": lambda: parametrizations.orthogonal(conv(32, 32)),
    "mixed": mixed,
    "only wide": lambda: OnlyWide(32, 32, 3, padding=1),
}


@pytest.mark.parametrize("kind", FIXED)
def test_a_layer_that_rejects_narrower_tensors_stays_wide_with_a_reason(kind: str):
    model = seeded(lambda: nn.Sequential(conv(3, 32), FIXED[kind](), nn.ReLU(), conv(32, 64), nn.ReLU(), conv(64, 5)))
    net = adjoin(model.eval(), X, alpha=2, round_to=1)
    assert net.plan.small_shape("3.weight")[0] == 32
    wide = [group for group in net.plan.groups if "1" in group.modules and group.reason]
    assert wide
    assert all(group.why and group.why.remedy for group in wide)
    with torch.no_grad():
        assert torch.equal(net(X)[1], net.extract()(X))


def test_a_model_that_cannot_be_copied_is_refused():
    model = plain()
    model.numbers = (i for i in range(3))  # pyright: ignore
    with pytest.raises(AdjoinedError, match=r"cannot be copied.*generators"):
        adjoin(model, X)


class KeepsInBuffers(nn.Module):
    """Buffers that a forward creates or reshapes, and uses in the next call."""

    later: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 32), conv(32, 5)
        self.register_buffer("mean", torch.zeros(0))
        self.register_buffer("late", None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        now = x.detach().mean((0, 2, 3))
        self.mean = now if not self.mean.numel() else 0.5 * (self.mean + now)
        self.late = now if self.late is None else self.late
        if not hasattr(self, "later"):
            self.register_buffer("later", now)
        return self.head((x - torch.stack([self.mean, self.late, self.later]).sum(0)[:, None, None]).relu())


def test_buffers_that_change_their_shape():
    net = adjoin(seeded(KeepsInBuffers), X, alpha=2, round_to=1)
    assert net.plan.small_shape("head.weight")[1] == 16
    for _ in range(2):
        net(X)
    small = net.extract()
    assert [small.state_dict()[name].shape for name in ("mean", "late", "later")] == [(16,)] * 3
    with torch.no_grad():
        assert torch.equal(small(X), net(X)[1])
    again = adjoin(net.base, X, alpha=2, round_to=1).plan  # the buffers have channels now
    assert again.tensors.items() >= net.plan.tensors.items()


# ---- numbers of channels that are in no tensor ---------------------------------------------------------------------

NORMS: dict[str, tuple[Callable[[], nn.Module], str, Any]] = {
    "batch": (lambda: nn.BatchNorm2d(32, affine=False, track_running_stats=False), "num_features", 16),
    "batch with statistics": (lambda: nn.BatchNorm2d(32, affine=False), "num_features", 16),
    "instance": (lambda: nn.InstanceNorm2d(32), "num_features", 16),
    "group": (lambda: nn.GroupNorm(4, 32, affine=False), "num_channels", 16),
    "layer": (lambda: nn.LayerNorm([32, 8, 8], elementwise_affine=False), "normalized_shape", (16, 8, 8)),
    "rms": (lambda: nn.RMSNorm([32, 8, 8], elementwise_affine=False), "normalized_shape", (16, 8, 8)),
}


@pytest.mark.parametrize("kind", NORMS)
def test_norms_without_scales_get_the_new_numbers(kind: str):
    make, attribute, value = NORMS[kind]
    model = seeded(lambda: nn.Sequential(conv(3, 32), make(), nn.ReLU(), conv(32, 5)))
    net = adjoin(model, X, alpha=2, round_to=1, check=True)
    assert net.plan.small_shape("3.weight")[1] == 16
    assert getattr(net.extract()[1], attribute) == value  # pyright: ignore
    net(X)


def test_a_bilinear_layer_gets_the_new_numbers():
    class Pairs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.both, self.head = (
                conv(3, 32),
                conv(3, 24),
                nn.Bilinear(32, 24, 40),
                nn.Linear(40, 5),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.both(self.one(x).mean((2, 3)), self.two(x).mean((2, 3))).relu())

    both = adjoin(seeded(Pairs), X, alpha=2, round_to=1, check=True).extract().get_submodule("both")
    assert (both.in1_features, both.in2_features, both.out_features) == (16, 12, 20)


# ---- modes and freezing --------------------------------------------------------------------------------------------


def test_inference_mode_around_the_calls():
    model = seeded(plain)
    with torch.inference_mode():
        net = adjoin(model, X, alpha=2)
    for network in (net, net.extract()):
        sum(out.sum() for out in network(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.inference_mode():
        small = net.extract()
        made = plain()
    small(X).sum().backward()
    with pytest.raises(AdjoinedError, match=r"'?0\.weight'?: .*inference mode"):
        adjoin(made, X)


def test_an_empty_batch():
    net = adjoin(seeded(plain).eval(), X, alpha=2)
    assert [out.shape for out in net(X[:0])] == [(0, 5), (0, 5)]
    for example in (X[:0], {"input": X[:0]}):
        with pytest.raises(AdjoinedError, match="the batch is empty"):
            adjoin(plain(), example)


def test_the_repr_says_that_private_weights_stay_frozen():
    model = seeded(plain).requires_grad_(False)
    net = adjoin(model, X, alpha=2)
    assert "frozen" not in net.extra_repr()
    net.base.requires_grad_(True)
    assert "2 private weights frozen, the base's are not" in repr(net)
    net.requires_grad_(True)
    assert "frozen" not in net.extra_repr()
    sum(out.sum() for out in net(X)).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(parameter.grad is not None for parameter in net.parameters())
