"""The masking factor: zeros at the same kernel positions of all filters of a layer, in the small network alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoined import AdjoinedError, AdjoinedNetwork, adjoin
from adjoined.models import build
from adjoined.settings import Settings
from adjoined.training import train
from tiny_runs import QUIET, TINY

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
HALF_OF_NINE = 4


def joined(seed: int, factor: float = 0.5) -> AdjoinedNetwork:
    torch.manual_seed(seed)
    return adjoin(build("digits_resnet", num_classes=10, in_channels=1), X, masking_factor=factor)


def test_every_layer_has_zeros_at_positions_of_its_own_and_the_base_has_none():
    net = joined(0).eval()
    small = net.extract()
    torch.testing.assert_close(small(X), net(X)[1])
    torch.testing.assert_close(small(X), net.small(X))
    found = []
    for module in small.modules():
        if isinstance(module, nn.Conv2d):
            kept = (module.weight != 0).flatten(2)
            assert torch.equal(kept, kept[:1, :1].expand_as(kept))
            zeros = HALF_OF_NINE if kept.shape[2] == 9 else 0  # int(1 * 0.5) of a 1x1 kernel
            assert kept.shape[2] - int(kept[0, 0].sum()) == zeros
            found.append(str(kept[0, 0].tolist()))
    assert len(set(found)) > 2
    assert all(bool((each.weight != 0).all()) for each in net.base.modules() if isinstance(each, nn.Conv2d))


def test_the_small_network_gives_no_gradient_where_it_has_zeros():
    net = joined(0).train()
    net.small(X).square().sum().backward()
    for module, small in zip(net.base.modules(), net.extract().modules(), strict=True):
        if isinstance(module, nn.Conv2d) and isinstance(small, nn.Conv2d):
            kept = (small.weight != 0)[0, 0].flatten()
            assert module.weight.grad is not None
            gradient = module.weight.grad.flatten(2)
            assert not gradient[..., ~kept].any()
            assert gradient[..., kept].any()


def test_masks_stay_with_a_checkpoint():
    net, other = joined(0).eval(), joined(1).eval()
    other.load_state_dict(net.state_dict())
    torch.testing.assert_close(other(X)[1], net(X)[1])
    assert not [name for name in joined(0, factor=0.0).state_dict() if "mask" in name]


def test_a_run_leaves_the_zeros_in_the_file_and_does_not_count_them(tmp_path: Path):
    run = train(replace(TINY, masking_factor=0.5), tmp_path / "run", console=QUIET)
    base, small = run.networks
    assert base.nonzero is None
    assert small.nonzero is not None
    assert 0.5 * small.parameters < small.nonzero < 0.8 * small.parameters


def test_a_share_that_leaves_nothing_is_a_mistake():
    with pytest.raises(AdjoinedError, match=r"masking_factor: out of range \(expected a number in \[0, 1\), got 1"):
        joined(0, factor=1.0)
    with pytest.raises(AdjoinedError, match="--masking-factor"):
        Settings(masking_factor=1.0)
    with pytest.raises(AdjoinedError, match="--masking-factor: the method standard does not read this setting"):
        Settings(method="standard", masking_factor=0.5)
