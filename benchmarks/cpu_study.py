"""A study for a CPU: all methods on CIFAR-100, settings of the adjoint method, and regularisers of the base.

    python benchmarks/cpu_study.py --data-root FOLDER --estimate   # how long it will take on this machine
    python benchmarks/cpu_study.py --data-root FOLDER              # run it; rerun the command to continue

Five comparisons by `adjoined compare`, whose folders are in `--out`; tables, plots and the CSV of every run are copied
to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from adjoined.cli import main as adjoined
from adjoined.comparison.variants import Variant, read_variants
from adjoined.methods import METHODS
from adjoined.recipes import cifar
from adjoined.settings import Settings
from adjoined.training.cost import training_macs
from adjoined.training.job import Job, make_job

ALL = [
    *("standard", "dropout", "scratch", "scratch-compute", "distillation", "mutual", "slimmable"),
    *("slimmable-distill", "filter-pruning", "weight-pruning"),
    *("adjoint", "adjoint:kl_detach=true", "adjoint:small_ce=1", "adjoint+", "replay"),
]
DETACHED = "adjoint:kl_detach=true"
SETTINGS = [
    *("standard", "distillation", DETACHED, f"{DETACHED}:kl_schedule=constant"),
    *(f"{DETACHED}:kl_schedule=constant:{each}" for each in ("small_ce=1", "small_ce=0.3")),
    *(f"{DETACHED}:{each}" for each in ("small_ce=1", "small_ce=0.5", "small_ce=1:temperature=4")),
    "adjoint+",
]
"""The settings from which `adjoint+` was chosen."""
EQUAL_COST = ["standard", "distillation", "adjoint+", "standard:epochs=8", "adjoint+:epochs=8"]
"""Eight epochs of joint training cost as much as six of a teacher and six of its student."""
LONGER = [
    *("standard", "distillation", "slimmable", "slimmable:private_head=true"),
    *(f"{DETACHED}:small_ce=1:{each}" for each in ("temperature=4", "private_head=true")),
    *("adjoint+", "standard:epochs=16", "adjoint+:epochs=16"),
]
"""The effect of twice the epochs, of a private head, and of `adjoint+` at the cost of a student."""
REGULARISERS = [
    *("standard", "dropout:dropout_rate=0.1", "dropout:dropout_rate=0.3"),
    *("adjoint:alpha=2", "adjoint:alpha=4", "dropout:dropout_rate=0.5"),
]


# bfloat16 and NHWC halve the time on a processor that has instructions for them; every contender gets them.
COMMON = {
    "model": "resnet8",
    "alpha": 4.0,
    "batch_size": 64,
    "workers": 0,
    "warmup_epochs": 1.0,
    "precision": "bf16-mixed",
    "channels_last": True,
}


@dataclass(frozen=True)
class Part:
    """One comparison of the study."""

    name: str
    methods: list[str]
    epochs: int
    limit: int
    width: float = 2.0
    augment: str = "standard"
    unequal: bool = False

    @property
    def flags(self) -> dict[str, Any]:
        """The settings that all contenders share, beside the recipe."""
        own = {"epochs": self.epochs, "limit": self.limit, "augment": self.augment}
        return {**COMMON, **own, "model_options": {"width": self.width}}

    def settings(self, data_root: str) -> Settings:
        """Return the settings of the runs."""
        begin = {name: getattr(cifar(), name) for name in ("data", "lr", "weight_decay", "schedule")}
        return Settings.from_dict({**begin, **self.flags, "data_root": data_root})

    def argv(self, data_root: str, out: Path, seeds: int) -> list[str]:
        """Return the arguments of the command that runs it."""
        values = {name.replace("_", "-"): json.dumps(value).strip('"') for name, value in self.flags.items()}
        own = [word for name, value in values.items() for word in (f"--{name}", value)]
        which = ["--methods", ",".join(self.methods), "--seeds", str(seeds)]
        which += ["--unequal"] if self.unequal else []
        return ["compare", "--recipe", "cifar", *own, "--data-root", data_root, *which, "--out", str(out / self.name)]


def estimate(parts: list[Part], data_root: str, seeds: int, console: Console) -> None:
    """Time one epoch of `standard` on 10 images a class and one validation batch; multiply by the work of all runs.

    CPU time is counted, so other programs do not matter: with one thread the study takes this long on an idle machine,
    with several threads less. Small networks take more time per MAC than large ones, so the estimate is rather low.
    Pruned networks count as those of the same budget while their size is unknown.
    """
    total = 0.0
    for part in parts:
        settings = part.settings(data_root)
        values = {**vars(settings.for_method("standard")), "epochs": 1, "limit": 10, "warmup_epochs": 0.0}
        job = make_job(Settings.from_dict(values))
        network = job.network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):  # as COMMON says
            began = time.process_time()
            for x, y in job.images.train_loader(seed=0):
                x = x.contiguous(memory_format=torch.channels_last)
                job.method.step(network.train(), x, y, progress=0.5, measure=False).loss.backward()
            pace = (time.process_time() - began) / _macs(job)
            x, _ = next(iter(job.images.val_loader()))
            began = time.process_time()
            with torch.no_grad():
                job.method.logits(network.eval(), x.contiguous(memory_format=torch.channels_last))
            validation = (time.process_time() - began) / len(x) * len(job.images.val)
        found = [_work(each) for each in read_variants(part.methods, settings, unequal=part.unequal)]
        seconds = seeds * sum(pace * macs + validation * epochs for macs, epochs in found)
        total += seconds
        console.print(f"{part.name}: {len(found) * seeds} runs, {timedelta(seconds=round(seconds))} of CPU time")
    console.print(f"together {timedelta(seconds=round(total))} of CPU time, {torch.get_num_threads()} threads")


def _macs(job: Job) -> int:
    macs = training_macs(job)
    assert macs is not None  # every operator of these networks can be counted
    return macs


def _work(variant: Variant) -> tuple[int, int]:
    """Return multiply-adds and epochs of the training that a contender needs, beside the standard run."""
    settings = variant.settings
    model = make_job(settings.for_method("standard")).model
    names = [stage.name for stage in METHODS[settings.method](settings).before()]
    job = make_job(settings, earlier=dict.fromkeys(names, model))
    return _macs(job), job.settings.epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="folder that holds cifar-100-python")
    parser.add_argument("--out", type=Path, default=Path("runs/cpu-study"), help="folder for all runs")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each contender")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of the comparison of all methods")
    parser.add_argument("--limit", type=int, default=100, help="its training images per class, of 500")
    parser.add_argument("--width", type=float, default=2.0, help="factor on the channels of ResNet-8")
    parser.add_argument("--few-epochs", type=int, default=8, help="epochs of the comparison of regularisers")
    parser.add_argument("--part", help="only this comparison")
    parser.add_argument("--estimate", action="store_true", help="only estimate the time")
    asked = parser.parse_args()
    parts = [
        Part("methods", ALL, asked.epochs, asked.limit, asked.width),
        Part("settings", SETTINGS, asked.epochs, asked.limit, asked.width),
        Part("equal-cost", EQUAL_COST, asked.epochs, asked.limit, asked.width, unequal=True),
        Part("longer", LONGER, 2 * asked.epochs, asked.limit, asked.width, unequal=True),
        # Without augmentation, so that there is something to regularise within a few epochs.
        Part("regularisers", REGULARISERS, asked.few_epochs, 100, asked.width, "none"),
    ]
    if asked.part and asked.part not in (known := [each.name for each in parts]):
        parser.error(f"--part {asked.part}: expected one of {', '.join(known)}")
    parts = [each for each in parts if each.name == (asked.part or each.name)]
    if asked.estimate:
        estimate(parts, asked.data_root, asked.seeds, Console())
        return
    for part in parts:
        if code := adjoined(part.argv(asked.data_root, asked.out, asked.seeds)):
            raise SystemExit(code)
        kept = Path(__file__).parent / "results" / f"cpu_study_{part.name.replace('-', '_')}"
        kept.mkdir(parents=True, exist_ok=True)
        for file in [*(asked.out / part.name).glob("*.csv"), *(asked.out / part.name).glob("*.[mp][dn]*")]:
            shutil.copy(file, kept / file.name)


if __name__ == "__main__":
    main()
