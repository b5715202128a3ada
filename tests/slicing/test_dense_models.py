"""Segmentation, detection and video networks of torchvision: sliced, and trained one step, at alpha = 2 and 4."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from adjoined import AdjoinedNetwork, adjoint_loss
from adjoined.slicing import tensor_leaves
from unchecked import adjoin, make_plan
from zoo import images, parameters, seeded

LEFT_AT_MOST = {2: 0.45, 4: 0.22}
"""Share of the parameters that may be left, by alpha."""

VIDEO = {"r3d_18": (8, 48), "mc3_18": (8, 48), "r2plus1d_18": (8, 48), "s3d": (16, 224)}
"""Video networks, with the number of frames and the image side that they need."""
VIDEO_WITH_ATTENTION = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}
"""Hybrids: convolutions pool their queries, keys and values. The patches of swin3d are its only convolution."""


@functools.cache
def names(module: str) -> list[str]:
    return torchvision.models.list_models(module=getattr(torchvision.models, module))


def model_of(name: str, **options: Any) -> nn.Module:
    """A torchvision network with random weights, in eval mode."""
    try:
        return seeded(lambda: torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)).eval()
    except TypeError:  # video networks have no backbone
        return seeded(lambda: torchvision.models.get_model(name, weights=None, **options)).eval()


def check(model: nn.Module, x: Tensor, alpha: float) -> None:
    """Slice, compare the outputs' shapes, and see a gradient arrive at every parameter."""
    net = adjoin(model, x[:1], alpha=alpha)
    assert parameters(net.extract()) <= LEFT_AT_MOST[int(alpha)] * parameters(model)
    p, q = (tensor_leaves(out) for out in net.train()(x))
    assert [each.shape for each in p] == [each.shape for each in q]
    assert p
    sum(each.square().mean() for each in p + q).backward()
    check_gradients(net)


def check_gradients(net: AdjoinedNetwork) -> None:
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def segmentation(name: str, alpha: float) -> None:
    check(model_of(name), images(2, 3, 48, 48), alpha)


def video(name: str, alpha: float) -> None:
    frames, side = (VIDEO | VIDEO_WITH_ATTENTION)[name]
    check(model_of(name), images(2, 3, frames, side, side), alpha)


def backbone(name: str, alpha: float) -> None:
    """The backbone of a detector."""
    side = 300 if name == "ssd300_vgg16" else 64
    check(model_of(name).backbone, images(2, 3, side, side), alpha)  # pyright: ignore[reportArgumentType]


def detector(name: str, alpha: float) -> None:
    """Slice a whole detector; then both networks return losses in train mode and detections in eval mode.

    It takes lists of images, and returns as many boxes as happen to be found.
    """
    side = 300 if name.startswith("ssd") else 96
    sizes = {} if name.startswith("ssd") else {"min_size": side, "max_size": side}
    model = model_of(name, num_classes=2 if name.startswith("keypoint") else 7, **sizes)
    pictures = [torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    net = adjoin(model, (pictures[:1],), alpha=alpha, round_to=1)
    small = net.extract()
    assert parameters(small) <= LEFT_AT_MOST[int(alpha)] * parameters(model)
    heads = [group for group in net.plan.groups if "predictor" in group.name or "logits" in group.name]
    assert all(group.kept == group.width for group in heads), heads  # none of them is read by a layer
    with torch.no_grad():
        found = small(pictures)
    assert [list(each) for each in found] == [list(each) for each in model(pictures)]
    targets = [target_of(side, keypoints=17) for _ in pictures]
    p, q = net.train()(pictures, targets)
    assert set(p) == set(q)
    assert len(p) >= 2
    (sum(p.values()) + sum(q.values())).backward()
    check_gradients(net)


def target_of(side: int, keypoints: int) -> dict[str, Tensor]:
    box = torch.tensor([[8.0, 8.0, 0.7 * side, 0.8 * side]])
    mask = torch.zeros(1, side, side, dtype=torch.uint8)
    mask[:, 8 : int(0.8 * side), 8 : int(0.7 * side)] = 1
    points = torch.full((1, keypoints, 3), 20.0)
    return {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "keypoints": points}


FAST = [
    (segmentation, "lraspp_mobilenet_v3_large"),
    (video, "r2plus1d_18"),
    (backbone, "ssdlite320_mobilenet_v3_large"),
    (detector, "fasterrcnn_mobilenet_v3_large_320_fpn"),
]
EVERY = [
    *((segmentation, name) for name in names("segmentation")),
    *((video, name) for name in (*VIDEO, *VIDEO_WITH_ATTENTION)),
    *((part, name) for part in (backbone, detector) for name in names("detection")),
]


@pytest.mark.parametrize(("sliced", "name"), FAST)
def test_a_network_of_each_kind(sliced: Callable[[str, float], None], name: str):
    sliced(name, 4)


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2, 4])
@pytest.mark.parametrize(("sliced", "name"), EVERY)
def test_every_network(sliced: Callable[[str, float], None], name: str, alpha: float):
    sliced(name, alpha)


def test_deeplab_trains_adjointly():
    """Two steps on the main and the auxiliary output, with pixels that do not count."""
    model = model_of("deeplabv3_mobilenet_v3_large", num_classes=5, aux_loss=True)
    x, y = images(2, 3, 48, 48), torch.arange(5).repeat(2, 48, 10)[:, :, :48]
    y[:, :4] = 255
    net = adjoin(model, x[:1], alpha=4).train()
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses = []
    for progress in (0.5, 1.0):
        torch.manual_seed(0)  # the same dropout in both steps
        p, q = net(x)
        assert list(p) == list(q) == ["out", "aux"]
        terms = {part: adjoint_loss(p[part], q[part], y, progress=progress, ignore_index=255) for part in p}
        loss = terms["out"] + 0.5 * terms["aux"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    changed = {name for name, parameter in net.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == set(before)


def test_a_head_that_no_box_reaches_keeps_its_outputs():
    """Values decide how many objects there are; without any, the run does not show the head's output."""

    class Finder(nn.Module):
        def __init__(self, *, by_value: bool) -> None:
            super().__init__()
            self.stem, self.head, self.by_value = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 12, 1), by_value

        def forward(self, x: Tensor) -> Tensor:
            features = self.stem(x).relu()
            out = self.head(features)
            if self.by_value:
                found = out.flatten(1)[out.flatten(1) > 1e6]
                return found.new_zeros(len(found), 1)
            return features

    x = images(1, 3, 8, 8)
    kept = {g.name: g.kept for g in make_plan(Finder(by_value=True), x, alpha=4, round_to=1).groups}
    assert kept == {"stem": 8, "head": 12}
    assert {g.name: g.kept for g in make_plan(Finder(by_value=False), x, alpha=4, round_to=1).groups}["stem"] == 32
