"""What does sharing cost? The loss of `adjoint+` on two networks that share no weights.

    python benchmarks/own_weights.py --seeds 0 1 --data-root FOLDER --out FOLDER

Each run is an `adjoined train --recipe cifar-fast` of ten epochs, in which the small network has its own weights and
learns from the base while the base trains. The rows of `adjoint+` with the same alpha and seed in
results/converged_cifar100 differ only in sharing their weights. Rerun the command to continue.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

from torch import Tensor, nn

from adjoined.cli import main as adjoined
from adjoined.methods import METHODS
from adjoined.methods.base import Step
from adjoined.methods.mutual import Mutual
from adjoined.objective import kl_weight


class OwnWeights(Mutual):
    """Trains both networks with separate weights; only the small one learns from the other."""

    def step(self, network: nn.Module, x: Tensor, y: Tensor, *, progress: float, measure: bool) -> Step:
        """Return CE(p, y) + λ(t) · (CE(q, y) + KL(p ‖ q)), with p detached and temperature 4, as `adjoint+` does."""
        logits = self.logits(network, x)
        p, q = logits["base"], logits["small"]
        ce, kl = self.task.terms(p, q, y, detach=True, temperature=4.0)
        small, weight = self.task.loss([q], y), kl_weight(progress)
        terms: dict[str, Tensor | float] = {"ce": ce.detach(), "small_ce": small.detach(), "kl": kl.detach()}
        return Step(ce + weight * (kl + small), logits, terms)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, help="the folder of the data set")
    parser.add_argument("--alpha", default="4", help="of the small network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    args = parser.parse_args()
    words = ["--recipe", "cifar-fast", "--method", "mutual", "--precision", "bf16-mixed", "--data-root", args.data_root]
    words += ["--alpha", args.alpha, "--epochs", str(args.epochs), "--warmup-epochs", str(args.epochs / 4)]
    with mock.patch.dict(METHODS, mutual=OwnWeights):
        for seed in args.seeds:
            run = args.out / f"alpha{args.alpha}-seed{seed}"
            start = ["--resume", str(run)] if run.exists() else [*words, "--seed", str(seed), "--run", str(run)]
            if adjoined(["train", *start]):
                raise SystemExit(1)


if __name__ == "__main__":
    main()
