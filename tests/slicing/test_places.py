"""Dimensions that are not channels keep their size, whatever reads the parameter; the channels around them narrow."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mixtures
import places
from adjoined.slicing import check_plan
from constructs import Net, X, network
from masked import masked, relative_error
from unchecked import adjoin, make_plan

KEPT = places.KEPT | mixtures.KEPT
EACH = pytest.mark.parametrize("cls", KEPT, ids=lambda cls: cls.__name__)


@EACH
@pytest.mark.parametrize("alpha", [2, 4])
def test_what_is_not_a_channel_keeps_its_size_and_the_channels_narrow(cls: type[Net], alpha: float):
    model = network(cls)
    plan = make_plan(model, X, alpha=alpha, round_to=1)
    for name, dims in KEPT[cls].items():
        assert all(plan.small_shape(name)[dim] == plan.shapes[name][dim] for dim in dims), name
    assert plan.small_shape("stem.0.weight") == (32 / alpha, 3, 3, 3)
    assert plan.small_shape("body.weight") == (48 / alpha, 32 / alpha, 3, 3)
    checked = check_plan(model, X, plan)
    assert checked.how == "masked base"
    assert checked.error is not None
    assert checked.error <= 1e-12
    assert relative_error(plan.apply(model)(X), masked(model, plan)(X)) <= 1e-10


BESIDE: dict[type[Net], dict[str, tuple[int, ...]]] = {
    places.ExpertsByView: {"experts.weight": (64, 16, 3, 3)},
    places.ExpertsByViewAndSum: {"experts.weight": (64, 16, 3, 3)},
    places.ExpertsByViewBehindChannels: {"experts.weight": (64, 16, 3, 3)},
    places.ExpertsOfOneWeight: {"experts.weight": (64, 16, 3, 3)},
    places.LayersWeighed: {"layers.weight": (64, 16, 3, 3)},
    places.BasisOfFunctions: {"share": (16, 16, 7)},
    places.Polynomials: {"share": (16, 16, 5)},
    places.Neighbourhoods: {"kernel": (16, 16, 9)},
    places.HeadsInAParameter: {"query": (16, 4, 4), "value": (16, 4, 4), "out": (4, 4, 16)},
    places.Residuals: {"centres": (6, 16), "out.weight": (16, 96)},
}
"""Network -> the small shapes of parameters in which channels and other dimensions lie side by side, at alpha 2."""
BESIDE |= mixtures.NARROWED


@pytest.mark.parametrize("cls", BESIDE, ids=lambda cls: cls.__name__)
def test_channels_beside_other_dimensions_narrow_independently(cls: type[Net]):
    plan = make_plan(network(cls), X, alpha=2, round_to=1)
    assert {name: plan.small_shape(name) for name in BESIDE[cls]} == BESIDE[cls]
    net = adjoin(network(cls), X, plan=plan)  # slices of weights are bound, of which the code makes views
    torch.testing.assert_close(net(X)[1], net.extract()(X))


def test_codes_drawn_at_random_keep_their_number():
    plan = make_plan(network(mixtures.CodesAtRandom), X, alpha=2, round_to=1)
    assert plan.small_shape("codes.weight") == (24, 16)
    assert plan.small_shape("score.weight") == (24, 16, 1, 1)


def test_a_width_chosen_on_the_way_to_a_failure_is_given_up_with_it():
    model = network(FrequenciesWritten)
    plan = make_plan(model, X, alpha=2, round_to=1)
    assert plan.small_shape("weight") == (16, 32, 3, 3)  # the code makes 32 channels, whatever it reads
    assert "expand" in next(group.reason for group in plan.groups if group.name == "skip")
    check_plan(model, X, plan)


class FrequenciesWritten(Net):
    """A Fourier layer that writes into a tensor of a fixed width."""

    def parts(self) -> None:
        self.skip, self.weight = nn.Conv2d(32, 32, 1), nn.Parameter(torch.randn(32, 32, 3, 3, dtype=torch.cdouble) / 8)

    def mid(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x)
        out = torch.zeros(len(x), 32, *waves.shape[2:], dtype=waves.dtype, device=x.device)
        out[:, :, :3, :3] = torch.einsum("nixy,ioxy->noxy", waves[:, :, :3, :3], self.weight)
        return torch.fft.irfft2(out, s=x.shape[2:]) + self.skip(x)
