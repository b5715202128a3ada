"""Compare the gradients that base and small network send to the shared weights, layer by layer, during `adjoint+`.

At some points of a run, the gradients of both networks' losses are computed on one batch, in a copy of the joint
network, so the training itself is unchanged. Two numbers compare them on each shared weight's slice:

    cosine  cos(g_base, g_small): below 0 the networks pull in opposite directions
    ratio   ‖g_small‖ / ‖g_base‖, both on the slice; g_small is halved, as in `adjoint+`, but not multiplied by λ

Usage:
    python benchmarks/gradients.py --data-root FOLDER --out FILE            # cifar-fast, twelve epochs of CIFAR-100
    python benchmarks/gradients.py --recipe digits --at 0.5 --epochs 2      # a minute

The file has a row for every layer and point of the run.
"""

from __future__ import annotations

import argparse
import copy
import csv
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from bare_trainer import bare_trainer
from environment import measuring
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from adjoined import AdjoinedNetwork
from adjoined.methods.adjoint import Adjoint
from adjoined.recipes import RECIPES
from adjoined.slicing import take
from adjoined.training.job import make_job
from adjoined.training.loaders import RunData
from adjoined.training.module import TrainingModule

Row = dict[str, Any]


class Gradients(Callback):
    """Compares the gradients at given shares of the run."""

    def __init__(self, at: list[float]) -> None:
        self.at = sorted(at)
        self.rows: list[Row] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Compare, if the next point has been reached."""
        assert isinstance(pl_module, TrainingModule)
        if self.at and pl_module.progress >= self.at[0]:
            with trainer.precision_plugin.train_step_context():
                self.rows += compare(pl_module, *batch, at=self.at.pop(0))


def compare(module: TrainingModule, x: Tensor, y: Tensor, *, at: float) -> list[Row]:
    """Return cosine and ratio for every weight that is sliced."""
    method = module.method
    assert isinstance(method, Adjoint)
    assert isinstance(module.network, AdjoinedNetwork)
    network = copy.deepcopy(module.network)
    mix, plan = method.mix, network.plan
    weights = {name: weight for name, weight in network.base.named_parameters() if weight.requires_grad}
    p, q = network(x)
    ce, kl = method.task.terms(p, q, y, detach=mix.detach, temperature=mix.temperature)
    of_small = kl + mix.small_ce * method.task.loss([q], y)
    options: dict[str, Any] = {"allow_unused": True, "retain_graph": True}
    pairs = zip(
        torch.autograd.grad(ce, list(weights.values()), **options),
        torch.autograd.grad(of_small, list(weights.values()), **options),
        strict=True,
    )
    rows: list[Row] = []
    for name, (of_base, of_slice) in zip(weights, pairs, strict=True):
        if of_base is None or of_slice is None:  # private to one of the networks
            continue
        a, b = (take(each, plan.indices(name)).flatten().double() for each in (of_base, of_slice))
        rows.append(
            {
                "at": at,
                "weight": name,
                "numbers": a.numel(),
                "cosine": round(float(torch.dot(a, b) / (a.norm() * b.norm()).clamp(min=1e-30)), 4),
                "ratio": round(float(b.norm() / a.norm().clamp(min=1e-30)), 4),
            }
        )
    return rows


@measuring()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=list(RECIPES), default="cifar-fast", help="network, data and settings")
    parser.add_argument("--data-root", type=Path, help="the folder of the data set")
    parser.add_argument("--alpha", type=float, default=4.0, help="of the small network")
    parser.add_argument("--epochs", type=int, help="epochs instead of the recipe's")
    parser.add_argument("--precision", default="32-true", help="as for `adjoined train`")
    parser.add_argument("--accelerator", default="cpu", help="cpu or gpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--at", type=float, nargs="+", default=[0.05, 0.1, 0.3, 0.5, 0.7, 0.9], help="shares of the run"
    )
    parser.add_argument("--out", type=Path, help="write the rows as CSV")
    args = parser.parse_args()
    changes = {"alpha": args.alpha, "seed": args.seed, "method": "adjoint+", "precision": args.precision}
    if args.data_root:
        changes["data_root"] = str(args.data_root)
    if args.epochs:
        changes["epochs"] = args.epochs
    settings = replace(RECIPES[args.recipe](), **changes, accelerator=args.accelerator, devices=1)
    job = make_job(settings)
    module = TrainingModule(settings, job.method, job.built, job.images.info.num_classes)
    gradients = Gradients(args.at)
    trainer = bare_trainer(settings, gradients)
    trainer.fit(module, datamodule=RunData(settings, job.images))
    show(gradients.rows)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with args.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(gradients.rows[0]))
            writer.writeheader()
            writer.writerows(gradients.rows)


def show(rows: list[Row]) -> None:
    """Print the medians over the layers for every point of the run, and how many layers disagree."""
    for at in sorted({row["at"] for row in rows}):
        here = [row for row in rows if row["at"] == at]
        cosine, ratio = (statistics.median(row[what] for row in here) for what in ("cosine", "ratio"))
        against = sum(row["cosine"] < 0 for row in here)
        print(f"t = {at:g}: cosine {cosine:.2f}, ratio {ratio:.2f}, {against} of {len(here)} weights below 0")


if __name__ == "__main__":
    main()
