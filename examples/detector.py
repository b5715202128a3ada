"""Two detectors from one run: discs, squares and triangles on crops of photos, with exact boxes.

A one-stage, anchor-free detector: a backbone of cross-stage-partial blocks, path aggregation over three strides, and a
decoupled head whose boxes are distributions over bins. Each network has its own task loss, with its own assignment of
anchor points to objects, and the small network is pulled towards the base, most where the base is confident. Decoding
and non-maximum suppression are outside the network, so it can be exported as it is.

`--alone` also trains each network alone, for the same number of epochs; `--export FOLDER` writes both networks for ONNX
Runtime and OpenVINO and compares the detections; `detector_files.py` times these files.

It needs `pip install '.[export]' pycocotools`. The defaults take minutes.

Usage:

    python examples/detector.py
    python examples/detector.py --epochs 60 --images 1024 --alone --seed 1
    python examples/detector.py --epochs 1 --images 32 --export build/detectors
"""

from __future__ import annotations

import argparse
import copy
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detector_files import RUNTIMES, exported
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import batched_nms, box_iou, generalized_box_iou_loss

import adjoined
from adjoined.benchmark.environment import environment
from adjoined.distances import bins_kl, confidence, score_kl
from adjoined.methods.scratch import fresh_small
from adjoined.slicing import measure_cost
from adjoined.statistics import measure_statistics

SHAPES, SIDE, MOST = ("disc", "square", "triangle"), 96, 4  # classes, pixels, objects in an image
STRIDES, BINS = (8, 16, 32), 8  # a side is at most 7 strides away from its anchor point
LAST = ("heads.*.1",)  # the last convolution of every branch: each network has its own
Detections = dict[str, Tensor]


# The network. Shapes: N images, A anchor points over all strides, K classes, B bins.


class Conv(nn.Sequential):
    """A convolution, its norm and its activation."""

    def __init__(self, before: int, after: int, size: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after), nn.SiLU()
        )


class Residual(nn.Module):
    """Two convolutions, added to their input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = Conv(width, width, 3), Conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the same shape."""
        return x + self.second(self.first(x))


class Partial(nn.Module):
    """A cross-stage-partial block: one half of the channels passes through residual blocks, the other bypasses them."""

    def __init__(self, before: int, after: int, depth: int = 1) -> None:
        super().__init__()
        self.through, self.past = Conv(before, after // 2), Conv(before, after // 2)
        self.blocks = nn.Sequential(*(Residual(after // 2) for _ in range(depth)))
        self.join = Conv(after, after)

    def forward(self, x: Tensor) -> Tensor:
        """Return features with `after` channels."""
        return self.join(torch.cat([self.blocks(self.through(x)), self.past(x)], dim=1))


class Head(nn.Module):
    """A decoupled head: one branch predicts each anchor point's class, the other its distances to the box's sides."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.score = nn.Sequential(Conv(width, width, 3), nn.Conv2d(width, classes, 1))
        self.box = nn.Sequential(Conv(width, width, 3), nn.Conv2d(width, 4 * BINS, 1))
        nn.init.constant_(self.score[1].bias, -math.log(99))  # pyright: ignore[reportArgumentType] - 1 % objects

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return class logits (N, A, K) and logits over bins (N, A, 4, B) of one stride."""
        scores, boxes = (each.flatten(2).transpose(1, 2) for each in (self.score(x), self.box(x)))
        return scores, boxes.unflatten(2, (4, BINS))


class Detector(nn.Module):
    """Backbone, path aggregation and a head for every stride."""

    def __init__(self, width: int = 16, classes: int = len(SHAPES)) -> None:
        super().__init__()
        w1, w2, w3, w4 = width, 2 * width, 4 * width, 4 * width
        self.stem = nn.Sequential(Conv(3, w1, 3, 2), Conv(w1, w2, 3, 2), Partial(w2, w2))
        self.down8 = nn.Sequential(Conv(w2, w3, 3, 2), Partial(w3, w3))
        self.down16 = nn.Sequential(Conv(w3, w4, 3, 2), Partial(w4, w4))
        self.down32 = nn.Sequential(Conv(w4, w4, 3, 2), Partial(w4, w4))
        self.up16, self.up8 = Partial(w4 + w4, w3), Partial(w3 + w3, w3)  # top down
        self.back16, self.again16 = Conv(w3, w3, 3, 2), Partial(w3 + w3, w3)  # bottom up
        self.back32, self.again32 = Conv(w3, w3, 3, 2), Partial(w3 + w4, w3)
        self.heads = nn.ModuleList(Head(w3, classes) for _ in STRIDES)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return `scores`, class logits (N, A, K), and `boxes`, logits over bins (N, A, 4, B)."""
        fine = self.down8(self.stem(x))
        middle = self.down16(fine)
        coarse = self.down32(middle)
        at16 = self.up16(torch.cat([F.interpolate(coarse, scale_factor=2.0), middle], dim=1))
        at8 = self.up8(torch.cat([F.interpolate(at16, scale_factor=2.0), fine], dim=1))
        at16 = self.again16(torch.cat([self.back16(at8), at16], dim=1))
        at32 = self.again32(torch.cat([self.back32(at16), coarse], dim=1))
        found = [head(each) for head, each in zip(self.heads, (at8, at16, at32), strict=True)]
        scores, boxes = (torch.cat(each, dim=1) for each in zip(*found, strict=True))
        return {"scores": scores, "boxes": boxes}


# From outputs to boxes.


def anchors(side: int = SIDE) -> tuple[Tensor, Tensor]:
    """Return the anchor points (A, 2) as x, y in pixels, and the stride of each (A, 1)."""
    points, strides = [], []
    for stride in STRIDES:
        centres = (torch.arange(side // stride) + 0.5) * stride
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        points.append(torch.stack([x, y], dim=-1).flatten(0, 1))
        strides.append(torch.full((len(points[-1]), 1), float(stride)))
    return torch.cat(points), torch.cat(strides)


POINTS, STRIDE = anchors()


def decode(boxes: Tensor) -> Tensor:
    """Return boxes (N, A, 4) as x1, y1, x2, y2 in pixels: the mean of each distribution is a distance in strides."""
    distances = (boxes.softmax(dim=-1) * torch.arange(BINS, dtype=boxes.dtype)).sum(dim=-1) * STRIDE
    return torch.cat([POINTS - distances[..., :2], POINTS + distances[..., 2:]], dim=-1)


def detect(output: dict[str, Tensor], threshold: float = 0.05) -> list[Detections]:
    """Return the detections of every image: boxes, scores and labels after non-maximum suppression."""
    found = []
    for scores, boxes in zip(output["scores"].sigmoid(), decode(output["boxes"]), strict=True):
        score, label = scores.max(dim=-1)
        sure = score > threshold
        boxes, score, label = boxes[sure], score[sure], label[sure]
        kept = batched_nms(boxes, score, label, 0.6)[:100]
        found.append({"boxes": boxes[kept], "scores": score[kept], "labels": label[kept]})
    return found


# The task: which anchor point learns which object, and the loss.


@dataclass
class Truth:
    """The objects of a batch, padded: boxes (N, M, 4) in pixels, labels (N, M), -1 where there is none."""

    boxes: Tensor
    labels: Tensor


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
    """Return the target scores (N, A, K) and target boxes (N, A, 4).

    An object is learned by the ten anchor points inside it whose predictions fit it best, by score^½ · IoU⁶; a
    target score is their fit, scaled so that the best of an object has its IoU.

    Source: Feng et al., "TOOD: Task-aligned one-stage object detection", arXiv 2108.07755.
    """
    there = truth.labels >= 0
    ious = torch.stack([box_iou(one, two) for one, two in zip(truth.boxes, boxes, strict=True)])  # (N, M, A)
    labels = truth.labels.clamp(min=0)
    likely = scores.sigmoid().transpose(1, 2).gather(1, labels.unsqueeze(2).expand(-1, -1, scores.shape[1]))
    low, high = POINTS - truth.boxes[..., None, :2], truth.boxes[..., None, 2:] - POINTS
    inside = torch.cat([low, high], dim=-1).amin(dim=-1) > 0
    fit = (
        likely.sqrt() * ious**6 * (inside & there.unsqueeze(2)) + 1e-9 * inside
    )  # so that predictions that fit no object yet also learn
    best = torch.zeros_like(fit).scatter(2, fit.topk(10, dim=2).indices, 1.0) * inside * there.unsqueeze(2)
    only = F.one_hot((ious * best).argmax(dim=1), ious.shape[1]).transpose(1, 2)  # one object for each point
    mine = best * only
    fit = fit * mine
    scaled = fit / fit.amax(dim=2, keepdim=True).clamp(min=1e-12) * (ious * mine).amax(dim=2, keepdim=True)
    object_of = mine.argmax(dim=1)
    targets = F.one_hot(labels.gather(1, object_of), scores.shape[2]) * scaled.amax(dim=1).unsqueeze(2)
    return targets, truth.boxes.gather(1, object_of.unsqueeze(2).expand(-1, -1, 4))


def task(output: dict[str, Tensor], truth: Truth) -> Tensor:
    """Return the loss of one network: scores by cross-entropy, boxes by IoU and by their distributions over bins."""
    scores, boxes = output["scores"], decode(output["boxes"])
    targets, wanted = assign(scores, boxes, truth)
    weights, total = targets.amax(dim=-1), targets.sum().clamp(min=1)
    loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    learned = weights > 0
    overlap = generalized_box_iou_loss(boxes[learned], wanted[learned])
    sides = torch.cat([POINTS - wanted[..., :2], wanted[..., 2:] - POINTS], dim=-1) / STRIDE
    focal = two_bins(output["boxes"][learned], sides[learned].clamp(0, BINS - 1.01))
    return (loss + ((2.0 * overlap + 1.5 * focal) * weights[learned]).sum()) / total


def two_bins(logits: Tensor, sides: Tensor) -> Tensor:
    """Return the cross-entropy with the two bins around each side's distance, the mean over the four sides.

    Source: Li et al., "Generalized focal loss", arXiv 2006.04388, the distribution focal loss.
    """
    low = sides.long()
    share = sides - low
    losses = [F.cross_entropy(logits.transpose(1, 2), bin_, reduction="none") for bin_ in (low, low + 1)]
    return (losses[0] * (1 - share) + losses[1] * share).mean(dim=1)


def distance(p: dict[str, Tensor], q: dict[str, Tensor]) -> Tensor:
    """Return how far the small network's scores and boxes are from the base's, most where the base is confident."""
    return score_kl(p["scores"], q["scores"]) + bins_kl(p["boxes"], q["boxes"], confidence(p["scores"]))


# The images.


def draw(count: int, seed: int) -> tuple[Tensor, Truth]:
    """Return images, float32 (count, 3, 96, 96), and their objects: shapes on crops of two photos."""
    random, photos = np.random.default_rng(seed), load_sample_images().images
    images = np.empty((count, SIDE, SIDE, 3), dtype=np.float32)
    boxes, labels = torch.zeros(count, MOST, 4), torch.full((count, MOST), -1)
    y, x = np.mgrid[:SIDE, :SIDE] + 0.5
    for number in range(count):
        photo = photos[random.integers(len(photos))]
        top, left = (random.integers(0, size - SIDE) for size in photo.shape[:2])
        image = photo[top : top + SIDE, left : left + SIDE].astype(np.float32)
        taken = torch.zeros(0, 4)
        for place in range(random.integers(1, MOST + 1)):
            radius = random.uniform(6, 20)
            across, down = random.uniform(radius, SIDE - radius, 2)
            box = torch.tensor([[across - radius, down - radius, across + radius, down + radius]])
            if len(taken) and box_iou(box, taken).max() > 0.05:
                continue
            kind, taken = random.integers(len(SHAPES)), torch.cat([taken, box])
            dx, dy = np.abs(x - across), y - down
            inside = [
                dx**2 + dy**2 <= radius**2,
                np.maximum(dx, np.abs(dy)) <= radius,
                (np.abs(dy) <= radius) & (2 * dx <= dy + radius),
            ]
            image[inside[kind]] = random.uniform(0, 255, 3) + random.normal(0, 8, (int(inside[kind].sum()), 3))
            boxes[number, place], labels[number, place] = box[0], int(kind)
        images[number] = image
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous() / 127.5 - 1, Truth(boxes, labels)


# Training and measuring.


def batches(images: Tensor, truth: Truth, size: int, seed: int) -> Iterator[tuple[Tensor, Truth]]:
    """Yield the images in random order; half of each batch is mirrored."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    for chosen in order[: len(order) // size * size].split(size):
        x, boxes = images[chosen], truth.boxes[chosen].clone()
        half = size // 2
        x[:half], boxes[:half, :, [0, 2]] = x[:half].flip(-1), SIDE - boxes[:half][..., [2, 0]]
        yield x, Truth(boxes, truth.labels[chosen])


def objective(outputs: Sequence[dict[str, Tensor]], truth: Truth, progress: float) -> Tensor:
    """Return the loss of both networks: each one's own task, and λ(t) times their distance.

    `adjoint_objective` would multiply the small network's task by λ(t), too, so that the base starts alone. In ten
    epochs of training, that was worse for both networks.
    """
    p, q = outputs
    return task(p, truth) + task(q, truth) + adjoined.kl_weight(progress) * distance(p, q)


def train(network: nn.Module, data: tuple[Tensor, Truth], epochs: int, seed: int, size: int = 16) -> None:
    """Train one network, or base and small network together if it is a joint one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.05)
    steps = epochs * (len(data[0]) // size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)
    step = 0
    network.train()
    for epoch in range(epochs):
        total = torch.zeros(())
        for x, truth in batches(*data, size, seed + 1000 * epoch):
            outputs = network(x)
            joint = isinstance(network, adjoined.AdjoinedNetwork)
            loss = objective(outputs, truth, step / steps) if joint else task(outputs, truth)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            step += 1
            total += loss.detach()
        print(f"epoch {epoch + 1}: loss {total / (len(data[0]) // size):.3f}", flush=True)


@torch.no_grad()
def mean_average_precision(network: nn.Module, data: tuple[Tensor, Truth]) -> dict[str, float]:
    """Return COCO's `map`, over IoU thresholds of 0.5 to 0.95, and `map_50` of a network in evaluation mode."""
    metric = MeanAveragePrecision()
    images, truth = data
    for start in range(0, len(images), 64):
        part = slice(start, start + 64)
        wanted = [
            {"boxes": boxes[labels >= 0], "labels": labels[labels >= 0]}
            for boxes, labels in zip(truth.boxes[part], truth.labels[part], strict=True)
        ]
        metric.update(detect(network(images[part])), wanted)
    found = metric.compute()
    return {name: float(found[name]) for name in ("map", "map_50")}


@torch.no_grad()
def export(networks: dict[str, nn.Module], images: Tensor, folder: Path) -> None:
    """Write every network for ONNX Runtime and OpenVINO, and compare its detections there with PyTorch's."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, network in networks.items():
        here, program = detect(network(images), threshold=0.02), exported(network, images)
        for suffix, write, open_it in RUNTIMES.values():
            path = folder / f"{name}{suffix}"
            write(program, path)
            apart = 0.0
            for one, two in zip(here, detect(open_it(path)(images), threshold=0.02), strict=True):
                assert torch.equal(one["labels"], two["labels"]), "other classes"
                apart = max([apart, *(one["boxes"] - two["boxes"]).abs().flatten().tolist()])
            count = sum(len(each["labels"]) for each in here)
            print(f"{path}: {count} detections, boxes at most {apart:.1g} pixels apart")


def main() -> None:
    parser = argparse.ArgumentParser(description="Two detectors from one run.")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--images", type=int, default=512, help="images to train on")
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--joint", action=flag, default=True, help="train the base and the small network together")
    parser.add_argument("--alone", action=flag, default=False, help="train the base and the small network alone")
    parser.add_argument("--export", type=Path, help="folder for the files of the two networks")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    options = parser.parse_args()
    if options.export and not options.joint:
        parser.error("--export is for the networks that are trained together")
    if not (options.joint or options.alone):
        parser.error("--no-joint trains nothing without --alone")
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)

    data, test = draw(options.images, seed=10 + options.seed), draw(256, seed=5)
    torch.manual_seed(options.seed)
    base = Detector()
    net = adjoined.adjoin(base, data[0][:1], alpha=options.alpha, private=LAST)
    networks: dict[str, nn.Module] = {}
    if options.alone:
        small = fresh_small(base, net.plans[0])
        networks = {"small alone": small, "base alone": copy.deepcopy(base)}
        for network in networks.values():
            train(network, data, options.epochs, options.seed)
    if options.joint:
        train(net, data, options.epochs, options.seed)
        networks |= {"base": base, "small": net.eval().extract()}
    figures = []
    for name, network in networks.items():
        measure_statistics([network], [network], data[0].split(64))
        found, cost = mean_average_precision(network.eval(), test), measure_cost(network, test[0][:1])
        figures.append({"name": name, "parameters": cost.parameters, "macs": cost.macs, **found})
        print(f"{name}: {cost.parameters} parameters, {cost.macs / 1e6:.1f} M MACs, mAP {100 * found['map']:.1f}")
    if options.out:
        options.out.write_text(json.dumps({"networks": figures, "environment": environment()}, indent=1) + "\n")
    if options.export:
        export({name: networks[name] for name in ("base", "small")}, test[0][:16], options.export)


if __name__ == "__main__":
    main()
