"""torchvision's detectors are trained with their twins, by their own losses and a distance of dense heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops import MultiScaleRoIAlign

import adjoined
from adjoined.integrations.torchvision import WithHead, head_distance, own_loss

SIDE = 64


class Backbone(nn.Sequential):
    """Four convolutions with stride 2."""

    def __init__(self, out_channels: int | list[int] = 32) -> None:
        layers: list[nn.Module] = []
        for before, after in ((3, 16), (16, 32), (32, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*layers)
        self.out_channels = out_channels


def one_level() -> AnchorGenerator:
    return AnchorGenerator(((16, 32),), ((1.0,),))


def faster_rcnn() -> nn.Module:
    pool = MultiScaleRoIAlign(["0"], output_size=3, sampling_ratio=1)
    return FasterRCNN(
        Backbone(), 3, min_size=SIDE, max_size=SIDE, rpn_anchor_generator=one_level(), box_roi_pool=pool,
        rpn_pre_nms_top_n_train=64, rpn_post_nms_top_n_train=32, box_batch_size_per_image=16,
    )  # fmt: skip


def retinanet() -> nn.Module:
    return RetinaNet(Backbone(), 3, min_size=SIDE, max_size=SIDE, anchor_generator=one_level(), score_thresh=0.0)


def fcos() -> nn.Module:
    generator = AnchorGenerator(((16,),), ((1.0,),))
    return FCOS(Backbone(), 3, min_size=SIDE, max_size=SIDE, anchor_generator=generator, score_thresh=0.0)


def ssd() -> nn.Module:
    return SSD(Backbone([32]), DefaultBoxGenerator([[2]]), (SIDE, SIDE), 3)


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]])
    images[:, :, 8:40, 8:40] += 1
    return list(images), [{"boxes": boxes, "labels": torch.tensor([label])} for label in (1, 2)]


@pytest.mark.parametrize("make", [faster_rcnn, retinanet, fcos, ssd])
def test_a_detector_trains_with_its_twin_and_the_twin_is_cut_out(make: Callable[[], nn.Module]):
    torch.manual_seed(0)
    model = WithHead(make())
    images, targets = batch()
    net = adjoined.adjoin(model, (images[:1],), alpha=2).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    objective = partial(adjoined.adjoint_objective, task=own_loss, distance=head_distance, progress=1.0)
    losses = []
    for _ in range(6):
        p, q = net(images, targets)
        assert p["scores"].shape == q["scores"].shape
        assert p["boxes"].shape == (*p["scores"].shape[:2], 4)
        loss = objective((p, q))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    small = net.eval().extract()
    assert type(small.get_submodule("detector")) is type(model.detector)
    sizes = [sum(each.numel() for each in network.parameters()) for network in (model, small)]
    assert sizes[1] < sizes[0] / 2
    with torch.no_grad():
        found, expected = small.get_submodule("detector")(images), net(images)[1]
    assert sum(len(each["boxes"]) for each in expected)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", [faster_rcnn, retinanet, ssd])
def test_the_distance_is_zero_for_equal_heads_and_pulls_where_it_says(make: Callable[[], nn.Module]):
    torch.manual_seed(0)
    images, targets = batch()
    p, q = (WithHead(make()).train()(images, targets) for _ in range(2))
    assert head_distance(p, p).item() == pytest.approx(0, abs=1e-6)
    assert head_distance(p, q) > 0
    for pull in (False, True):
        distance = head_distance(p, q, pull=pull)
        (gradient,) = torch.autograd.grad(distance, p["scores"], allow_unused=True, retain_graph=True)
        assert (gradient is not None) is pull


def test_losses_are_the_detectors_own():
    torch.manual_seed(0)
    detector, (images, targets) = retinanet().train(), batch()
    output = WithHead(detector)(images, targets)
    own = detector(images, targets)
    assert output["losses"].keys() == own.keys()
    torch.testing.assert_close(own_loss(output), sum(own.values()))


def test_what_is_not_a_detector_is_refused():
    with pytest.raises(adjoined.AdjoinedError, match="Linear: the module has no dense head"):
        WithHead(nn.Linear(2, 2))
