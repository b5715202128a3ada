"""Time the training engine against a bare loop of the same arithmetic, and a training step's overhead.

Engine and loop train the same joint network on the same batches, with the same optimizer and schedule, in one process,
epoch by epoch in turns. Validation, files and the display are left out. Ratios are taken epoch by epoch.

Usage:
    python benchmarks/engine.py                        # ResNet-18 for small images, 32 px, batch 128, plain base
    python benchmarks/engine.py --recipe cifar-fast    # a recipe's network, batch and settings
    python benchmarks/engine.py --profile              # where the engine's own time goes, by function
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bare_trainer import bare_trainer
from environment import measuring, write
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from adjoined.methods import METHODS
from adjoined.models import build, resolve
from adjoined.recipes import RECIPES
from adjoined.settings import Settings
from adjoined.training.loaders import RunData
from adjoined.training.module import TrainingModule
from adjoined.training.optimizers import make_optimizer, make_schedule

CLASSES = 100


class Batches:
    """The same batches in every epoch, in memory, so that reading images costs nothing."""

    def __init__(self, settings: Settings, steps: int) -> None:
        size = settings.image_size or 32
        self.batches = [
            (torch.randn(settings.batch_size, 3, size, size), torch.randint(CLASSES, (settings.batch_size,)))
            for _ in range(steps)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)


class InMemory(RunData):
    """A run's data without images to read."""

    def __init__(self, settings: Settings, batches: Batches) -> None:
        super().__init__(settings, images=None)  # pyright: ignore[reportArgumentType]
        self._train: Any = batches

    def setup(self, stage: str) -> None:
        """Leave the batches as they are."""


class Turns(Callback):
    """After every epoch of the engine, an epoch of the bare loop."""

    def __init__(self, bare: Callable[[], None]) -> None:
        self.bare = bare
        self.engine: list[float] = []
        self.loop: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the engine's clock."""
        self._began = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it, and time an epoch of the loop."""
        end = time.perf_counter()
        self.engine.append(end - self._began)
        self.bare()
        self.loop.append(time.perf_counter() - end)


def settings_of(args: argparse.Namespace) -> Settings:
    """Return the settings of the engine's run."""
    if args.recipe:
        chosen = replace(RECIPES[args.recipe](), method="adjoint+", data_on_device=False, low_resolution={})
    else:
        chosen = Settings(model=args.model, method="standard", batch_size=args.batch, image_size=32)
    return replace(chosen, epochs=args.rounds + 1, warmup_epochs=0, accelerator="cpu", devices=1)


@measuring()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), help="a recipe's network and settings")
    parser.add_argument("--model", default="cifar_resnet18", help="the base network, without --recipe")
    parser.add_argument("--batch", type=int, default=128, help="images in a step, without --recipe")
    parser.add_argument("--steps", type=int, default=8, help="steps in an epoch")
    parser.add_argument("--rounds", type=int, default=12, help="timed epochs after one that warms up")
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0 for its own choice")
    parser.add_argument("--profile", action="store_true", help="show where the time of the engine goes")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = settings_of(args)
    batches = Batches(settings, args.steps)
    method = METHODS[settings.method](settings)
    size = settings.image_size or 32

    def network() -> Any:
        torch.manual_seed(0)
        options = {"in_channels": 3, "image_size": size, "options": dict(settings.model_options)}
        model = build(resolve(settings.model), num_classes=CLASSES, **options)
        return method.build(model, torch.randn(1, 3, size, size), {})

    own = network().network.train()
    if settings.channels_last:
        own = own.to(memory_format=torch.channels_last)
    optimizer = make_optimizer(settings, own, small_rate=method.small_rate)
    steps = len(batches) * settings.epochs
    schedule = make_schedule(settings, optimizer, steps)
    done = 0

    def bare() -> None:
        nonlocal done
        for x, y in batches:
            images = x.contiguous(memory_format=torch.channels_last) if settings.channels_last else x
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bf16-mixed"):
                loss = method.step(own, images, y, progress=done / steps, measure=False).loss
            optimizer.zero_grad()
            loss.backward()
            if settings.grad_clip:
                torch.nn.utils.clip_grad_norm_(own.parameters(), settings.grad_clip)
            optimizer.step()
            schedule.step()
            done += 1

    turns = Turns(bare)
    trainer = bare_trainer(settings, turns)
    module = TrainingModule(settings, method, network(), CLASSES)
    profiler = cProfile.Profile()
    if args.profile:
        turns.bare = lambda: None
        profiler.enable()
    trainer.fit(module, datamodule=InMemory(settings, batches))
    profiler.disable()
    if args.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(40)
        return
    ratios = [a / b for a, b in zip(turns.engine[1:], turns.loop[1:], strict=True)]
    write(
        {
            "model": settings.model,
            "method": settings.method,
            "batch size": settings.batch_size,
            "steps in an epoch": args.steps,
            "seconds of a step, bare loop": round(statistics.median(turns.loop[1:]) / args.steps, 4),
            "ratio": "quartiles of engine / bare loop, epoch by epoch",
            "engine / bare loop": [round(value, 3) for value in statistics.quantiles(ratios)],
        },
        args.out,
    )


if __name__ == "__main__":
    main()
