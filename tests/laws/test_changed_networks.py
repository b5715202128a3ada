"""What is changed in a network after it was joined, and small networks that are extracted as they run."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.parametrize import remove_parametrizations
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

from adjoined import AdjoinedError, AdjoinedNetwork
from adjoined.slicing import tensor_leaves
from pairs import X, joint, same
from unchecked import adjoin


def test_a_base_of_other_parts_is_refused_when_the_mode_is_set_and_by_extract():
    net = adjoin(nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 5, 3)), X, alpha=2)
    net.base[1] = nn.SiLU()  # pyright: ignore[reportIndexIssue]
    with pytest.raises(AdjoinedError, match=r"'1': the base network was changed.*expected activation.ReLU, got .*SiLU"):
        net.eval()
    with pytest.raises(AdjoinedError, match="'1': the base network was changed"):
        net.extract()
    net.smalls[0][1] = nn.SiLU()  # pyright: ignore[reportIndexIssue]
    assert same(net.eval().extract()(X), net(X)[1])
    net.base.append(nn.ReLU())  # pyright: ignore[reportCallIssue]
    with pytest.raises(AdjoinedError, match=r"'3': the base network was changed.*no such module"):
        net.train()
    net.base = copy.deepcopy(net.base)
    with pytest.raises(AdjoinedError, match=r"base: the base network was changed.*another Sequential"):
        net.train()


def test_a_fused_base_has_no_small_network():
    """The convolution holds the scales of the norm, which the small network would apply once more."""
    base = nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Conv2d(32, 5, 3)).eval()
    net = adjoin(base, X, alpha=2)
    base[0], base[1] = fuse_conv_bn_eval(base[0], base[1]), nn.Identity()  # pyright: ignore[reportArgumentType]
    with pytest.raises(AdjoinedError, match=r"'1': .*expected batchnorm.BatchNorm2d, got linear.Identity.*Undo"):
        net.extract()


MARKS: dict[str, Callable[[nn.Module], None]] = {
    "Opacus": lambda layer: setattr(layer.weight, "grad_sample", None),
    "BackPACK": lambda layer: setattr(layer, "_backpack_extend", True),
}


@pytest.mark.parametrize("tool", MARKS)
def test_gradients_per_sample_from_hooks_on_layers_are_refused(tool: str):
    """The hooks do not see what the small network does with a shared weight."""
    net = joint().eval()
    before = net(X)[1]
    MARKS[tool](net.base.get_submodule("inner"))
    for call in (net, net.small):
        with pytest.raises(AdjoinedError, match=rf"'inner\.weight': .*{tool}.*torch\.func"):
            call(X)
    with torch.no_grad():
        assert same(net(X)[1], before)
    assert same(net.extract()(X), before)


def double(*args: Any) -> torch.Tensor:
    """A hook."""
    return args[2] * 2


CHANGES: dict[str, Callable[[AdjoinedNetwork], object]] = {
    "hook of the base": lambda net: net.base.get_submodule("norm1").register_forward_hook(double),
    "hook of the small network": lambda net: net.smalls[0].get_submodule("norm1").register_forward_hook(double),
    "number of the base": lambda net: setattr(net.base.get_submodule("norm1"), "eps", 1.0),
    "number of the small network": lambda net: setattr(net.smalls[0].get_submodule("norm1"), "eps", 1.0),
    "number of all": lambda net: [setattr(part, "eps", 1.0) for part in net.modules() if hasattr(part, "eps")],
    "forward of the base": lambda net: setattr(net.base, "forward", lambda x: x),
    "compiled base": lambda net: setattr(net, "base", torch.compile(net.base, backend="eager")),
    "wrapped base": lambda net: setattr(net, "base", nn.DataParallel(net.base)),
    "other classes of norms": nn.SyncBatchNorm.convert_sync_batchnorm,
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_extracted_network_is_the_one_that_ran_whatever_was_changed_after_it_was_joined(change: Callable[..., object]):
    net = joint().eval()
    before = net.small(X)
    change(net)
    assert same(net.eval().extract()(X), net.small(X))
    of_all = change in (CHANGES["number of all"], CHANGES["number of the small network"])
    assert same(net.small(X), before) != (of_all or change is CHANGES["hook of the small network"])


class Softened(nn.Conv2d):
    """A layer with a setting that loops lower during training."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size)
        self.temperature = 30.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) / self.temperature


class SoftGate(nn.Module):
    """The same with a raw parameter."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits, self.temperature = nn.Parameter(torch.ones(channels, 1, 1)), 30.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.logits / self.temperature)


@pytest.mark.parametrize("loop", [False, True])
def test_settings_of_every_layer_can_be_changed_in_all_networks(loop: bool):
    def cool(module: nn.Module) -> None:
        if hasattr(module, "temperature"):
            module.temperature = 0.5  # pyright: ignore
        if not loop and isinstance(module, (nn.Conv2d, SoftGate)):  # a function may initialise weights, too
            nn.init.ones_(next(module.parameters()))

    net = adjoin(nn.Sequential(Softened(3, 32, 3), SoftGate(32), nn.Conv2d(32, 5, 3)), X, alpha=2)
    if loop:
        for module in net.modules():
            cool(module)
    else:
        net.apply(cool)
        assert all(bool((weight == 1).all()) for weight in net.parameters() if weight.ndim > 2)
    assert [each.temperature for each in net.smalls[0][:2]] == [0.5, 0.5]  # pyright: ignore
    assert same(net.extract()(X), net.small(X))
    assert all(parameter is None for part in net.smalls[0].modules() for parameter in part._parameters.values())


def test_a_network_with_activation_checkpointing_is_extracted_after_a_step():
    """Its small network keeps slices for the backward pass, of weights that the step changes in place."""

    class Checkpointed(nn.Sequential):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, input, use_reentrant=False)  # pyright: ignore

    net = adjoin(nn.Sequential(Checkpointed(nn.Conv2d(3, 32, 3), nn.ReLU()), nn.Conv2d(32, 5, 3)), X, alpha=2)
    for _ in range(2):
        sum(out.square().mean() for out in net(X)).backward()  # pyright: ignore
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        assert same(net.extract()(X), net.small(X))
        assert not any(name in vars(part) for part in net.extract().modules() for name in part._parameters)


def test_parametrizations_are_removed_from_only_one_network():
    """Torch deletes the weight's property from the class, which deep copies share."""
    layers = nn.Conv2d(3, 32, 3), weight_norm(nn.Conv2d(32, 32, 3)), nn.Conv2d(32, 5, 3)
    net = adjoin(nn.Sequential(*layers), X, alpha=2, round_to=1).eval()
    for small in (net.extract(), net.plan.apply(net.base)):
        expected = small(X)
        remove_parametrizations(small[1], "weight")  # pyright: ignore
        assert type(small[1]) is nn.Conv2d  # pyright: ignore
        torch.testing.assert_close(small(X), expected)
        torch.testing.assert_close(net(X)[1], expected)


MOVES: dict[str, Callable[[AdjoinedNetwork], object]] = {
    "device": lambda net: net.base.to("meta"),
    "type": lambda net: net.base.double(),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_base_that_was_moved_alone_is_reported(move: str):
    net = joint().eval()
    MOVES[move](net)
    weight = next(net.base.parameters())
    x = X.to(weight.device, weight.dtype)
    with pytest.raises(AdjoinedError, match=r"^smalls: 'norm1\..*not where the base.*net\.to\("):
        net(x)
    net.to(weight.device, weight.dtype)
    assert [out.dtype for out in net(x)] == [weight.dtype] * 2


@pytest.mark.parametrize("which", [1, -2, "small", None])
def test_a_missing_small_network_is_refused(which: Any):
    net = joint()
    for call in (net.extract, lambda which: net.small(X, which=which)):
        with pytest.raises(AdjoinedError, match=r"^which: no such small network \(expected .* from 0 to 0"):
            call(which)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("inside", [True, False])
def test_the_state_of_a_model_is_not_that_of_a_joint_network(strict: bool, inside: bool):
    net = joint()
    outer = nn.ModuleDict({"net": net}) if inside else net
    other = nn.ModuleDict({"net": net.base}) if inside else net.base
    with pytest.raises(AdjoinedError, match=r"not the state of a joint network.*before calling adjoin"):
        outer.load_state_dict(other.state_dict(), strict=strict)
    outer.load_state_dict(outer.state_dict(), strict=strict)


def test_the_state_of_a_wrapped_joint_network_is_named():
    net = joint()
    state = {f"module.{name}": tensor for name, tensor in net.state_dict().items()}
    with pytest.raises(AdjoinedError, match=r"Leave out 'module\.' in front of all names\.$"):
        net.load_state_dict(state)


@pytest.mark.parametrize("whole", [True, False])
def test_traced_models_are_extracted_and_keep_their_modes(whole: bool):
    """Every copy of what `torch.fx` has traced has a class of its own and begins in train mode."""
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Dropout(), nn.BatchNorm2d(32), nn.Conv2d(32, 5, 3)).eval()
    if whole:  # with a graph for each mode
        traced: nn.Module = create_feature_extractor(model, {"3": "out"})
    else:
        traced = nn.Sequential(OrderedDict(traced=torch.fx.symbolic_trace(model[:3]), head=model[3])).eval()
    net = adjoin(traced, X, alpha=2, round_to=1)
    assert not any(part.training for part in net.smalls[0].modules())
    assert sum(p.numel() for p in net.extract().parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    for training in (False, True):
        net.train(training)
        small = net.extract()
        for each in (small, net.smalls[0], net.plan.apply(net.base)):
            assert {part.training for part in each.modules()} == {training}
        torch.manual_seed(0)
        got = tensor_leaves(small(X))
        torch.manual_seed(0)
        assert all(same(a, b) for a, b in zip(got, tensor_leaves(net.small(X)), strict=True))
        assert same(got[-1], tensor_leaves(small(X))[-1]) != training  # dropout, in train mode alone
